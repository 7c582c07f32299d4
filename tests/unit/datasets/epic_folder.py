"""A folder with the files of EPIC-Kitchens-100, made up: two training videos, one to validate."""

from __future__ import annotations

from pathlib import Path

HEAD = "video_id,start_timestamp,stop_timestamp,verb_class,noun_class\n"


def row(video: str, start: str, stop: str, verb: int, noun: int) -> str:
    return f"{video},00:00:{start},00:00:{stop},{verb},{noun}\n"


def make_epic_folder(
    folder: Path,
    *,
    train: str = row("a", "01.00", "02.50", 3, 299) + row("b", "00.50", "01.25", 0, 7),
    validation: str = row("c", "01.00", "02.00", 3, 7),
    info: str | None = "a,10.5,50\nb,20,60\nc,30,25\n",
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "EPIC_100_train.csv").write_text(HEAD + train, encoding="utf-8")
    (folder / "EPIC_100_validation.csv").write_text(HEAD + validation, encoding="utf-8")
    if info is not None:
        path = folder / "EPIC_100_video_info.csv"
        path.write_text("video_id,duration,fps\n" + info, encoding="utf-8")
    return folder

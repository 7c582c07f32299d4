"""The project file `tadpipe.toml`: what the commands fall back to in a project folder.

Every option is looked up on the command line, then in the project file, then in the defaults
here. Paths in the file are relative to it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from tadpipe.config import build, read_toml
from tadpipe.errors import ConfigError
from tadpipe.location import Address, below, location

FILE = "tadpipe.toml"


@dataclass(frozen=True)
class Project:
    """A project folder's settings; None where nothing is set."""

    dataset: str | None = None  # a name of `tadpipe list datasets`
    annotations: Path | None = None  # ActivityNet-style JSON
    class_scores: Path | None = None  # of a video classifier, for class-agnostic detectors
    videos: Path | None = None  # folder of videos
    store: Path = Path("store/features.zarr")
    runs: Path = Path("runs")  # folder that training runs are written to
    backbone: str | None = None
    weights: str | None = None  # file, or "random"
    stride: int | None = None  # frames between snippets
    detector: str | None = None
    preset: str | None = None  # a name of `tadpipe list presets`, or a TOML file
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.stride is not None and self.stride < 1:
            raise ConfigError("stride must be positive.", f"{FILE}: stride = {self.stride}")
        location(self.store)  # says what is wrong with an address
        for key in ("annotations", "class_scores", "videos", "runs"):
            place = location(getattr(self, key) or "")
            if isinstance(place, Address):
                raise ConfigError(
                    "Only the feature store can be on object storage.",
                    f"{FILE}: {key} = {place}",
                    "Name a path on this machine.",
                )

    @classmethod
    def find(cls, folder: Path | None = None) -> Project:
        """The project of `folder` (default: here); the defaults where there is no file.

        Raises:
            ConfigError: the file is not TOML, or holds an unknown key or a wrong value.
        """
        path = (folder or Path()) / FILE
        if not path.is_file():
            return cls()
        project = build(cls, read_toml(path), str(path))
        anchor = path.parent
        return replace(
            project,
            store=below(anchor, project.store),
            runs=anchor / project.runs,
            annotations=None if project.annotations is None else anchor / project.annotations,
            class_scores=None if project.class_scores is None else anchor / project.class_scores,
            videos=None if project.videos is None else anchor / project.videos,
        )

    def need(self, field: str, option: str) -> object:
        """A setting that has no default.

        Raises:
            ConfigError: it is not set; the message names the option and the key to give.
        """
        value = getattr(self, field)
        if value is None:
            raise ConfigError(
                f"No {field} given.", todo=f"Give {option}, or set `{field}` in {FILE}."
            )
        return value


def project_text(values: dict[str, str | int | None]) -> str:
    """The text of a project file: the keys set, and the others as comments with their meaning."""
    notes = {
        "dataset": "a name of `tadpipe list datasets`; leave out for your own videos",
        "annotations": "ActivityNet-style JSON; needed for training and evaluation",
        "class_scores": "video-level class scores, for class-agnostic detectors",
        "videos": "folder of videos",
        "store": "features are kept here (.zarr or .h5, or s3://bucket/name.zarr)",
        "runs": "training runs are written here",
        "backbone": "a name of `tadpipe list backbones`",
        "weights": "file of backbone weights; left out: the named download",
        "stride": "frames between snippets",
        "detector": "a name of `tadpipe list detectors`",
        "preset": "a name of `tadpipe list presets`, or a TOML file",
        "device": "cpu, cuda or auto",
    }
    lines = ["# Settings of this project folder; an option on the command line wins."]
    for key, note in notes.items():
        value = values.get(key)
        if value is None:
            lines.append(f"# {key} =    # {note}")
        else:
            shown = str(value) if isinstance(value, int) else _quote(value)
            lines.append(f"{key} = {shown}    # {note}")
    return "\n".join(lines) + "\n"


def _quote(text: str) -> str:
    """A TOML basic string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in escaped) + '"'

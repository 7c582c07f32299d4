"""Small pictures of videos, good and bad."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import av
import pytest

from tadpipe.video.thumbnails import HEIGHT, WIDTH, Strip, picture_strips
from tests.corpus import make_video


@pytest.fixture(scope="module")
def strips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Strip]:
    """Of a video, of a text file, and of another video behind it."""
    folder = tmp_path_factory.mktemp("films")
    files = {name: folder / f"{name}.mp4" for name in ("film", "text", "last")}
    make_video(files["film"], frames=60)
    files["text"].write_text("no video")
    make_video(files["last"], frames=20)
    return dict(picture_strips(files, 3, 100_000))


def test_strip_is_a_jpeg_of_pictures_side_by_side(strips: dict[str, Strip]) -> None:
    assert strips["film"].data_url is not None
    jpeg = base64.b64decode(strips["film"].data_url.removeprefix("data:image/jpeg;base64,"))
    with av.open(io.BytesIO(jpeg)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == (3 * WIDTH, HEIGHT)
    assert strips["film"].pictures == 3


def test_file_that_is_no_video_says_so_and_stops_nothing(strips: dict[str, Strip]) -> None:
    assert strips["text"].data_url is None
    assert "text.mp4" in strips["text"].problem
    assert strips["last"].pictures == 3


def test_missing_file_has_no_pictures(tmp_path: Path) -> None:
    ((_, strip),) = picture_strips({"gone": tmp_path / "gone.mp4"}, 2, 100_000)
    assert (strip.data_url, strip.pictures) == (None, 0)


def test_busy_pictures_become_coarser_then_fewer_to_fit(tmp_path: Path) -> None:
    film = make_video(tmp_path / "film.mp4", frames=60)
    sizes = []
    for most_bytes in (100_000, 3_000, 2_000):
        ((_, strip),) = picture_strips({"film": film}, 4, most_bytes)
        assert strip.data_url is not None
        jpeg = base64.b64decode(strip.data_url.removeprefix("data:image/jpeg;base64,"))
        sizes.append((len(jpeg) <= most_bytes, strip.pictures))
    assert sizes == [(True, 4), (True, 4), (True, 2)]

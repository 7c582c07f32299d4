"""Optical flow: bytes and their scale, files in their known forms, and computing it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from tadpipe.backbones.pixel_recipes import PIXEL_RECIPES
from tadpipe.config import PixelRecipe
from tadpipe.errors import ConfigError, VideoError
from tadpipe.pipeline.extract import extract
from tadpipe.pipeline.optical_flow import ComputedFlow, FlowFiles, flow_source, to_bytes
from tadpipe.pipeline.video_files import VideoFile
from tadpipe.store.feature_store import FeatureStore
from tests.corpus import make_video

FRAMES = 4
VIDEO = VideoFile(Path("clip_x.mp4"), "clip_x")
SMALL = PixelRecipe(size=32, mean=(0.5, 0.5), std=(0.5, 0.5), colour="flow-tvl1")


def frames(count: int = FRAMES) -> Iterator[np.ndarray]:
    random = np.random.default_rng(0)
    return (random.integers(0, 256, (24, 32, 3), dtype=np.uint8) for _ in range(count))


def flows(count: int = FRAMES) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 24, 32, 2), dtype=np.uint8)


def write_picture(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream("png", rate=1)
        stream.height, stream.width = pixels.shape
        stream.pix_fmt = "gray"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="gray")))
        container.mux(stream.encode())


def read(folder: Path, count: int = FRAMES) -> np.ndarray:
    return np.stack(list(FlowFiles(folder).pictures(VIDEO, frames(count))))


@pytest.mark.parametrize(
    ("movement", "byte"), [(-25.0, 0), (-20.0, 0), (0.0, 128), (1.0, 134), (20.0, 255), (99.0, 255)]
)
def test_movement_of_twenty_pixels_fills_the_bytes(movement: float, byte: int) -> None:
    assert to_bytes(np.array([movement, 0.0]))[0] == byte


def test_array_file_of_bytes_is_taken_as_it_is(tmp_path: Path) -> None:
    np.save(tmp_path / "clip_x.npy", flows())
    assert np.array_equal(read(tmp_path), flows())


def test_array_file_of_movements_is_turned_into_bytes(tmp_path: Path) -> None:
    movements = np.random.default_rng(2).normal(0, 9, (FRAMES, 24, 32, 2)).astype(np.float32)
    np.save(tmp_path / "clip_x.npy", movements)
    assert np.array_equal(read(tmp_path), to_bytes(movements))


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ("flow_x_{:05d}.png", "flow_y_{:05d}.png"),
        ("x/{:03d}.png", "y/{:03d}.png"),
        ("clip_x-{:06d}x.png", "clip_x-{:06d}y.png"),
        ("u_{:d}.png", "v_{:d}.png"),
    ],
)
def test_picture_files_are_found_under_their_usual_names(tmp_path: Path, x: str, y: str) -> None:
    for i, picture in enumerate(flows()):
        for axis, name in enumerate((x, y)):
            write_picture(tmp_path / "clip_x" / name.format(i + 8), picture[..., axis])
    assert np.array_equal(read(tmp_path), flows())


def test_last_picture_stands_for_the_frame_without_a_next_one(tmp_path: Path) -> None:
    np.save(tmp_path / "clip_x.npy", flows(3))
    assert np.array_equal(read(tmp_path), flows(3)[[0, 1, 2, 2]])


@pytest.mark.parametrize("count", [2, 5, 9])
def test_flow_of_another_length_than_the_video_is_refused(tmp_path: Path, count: int) -> None:
    np.save(tmp_path / "clip_x.npy", flows(count))
    with pytest.raises(VideoError, match="another length"):
        read(tmp_path)


def test_empty_flow_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "clip_x.npy", flows(0))
    with pytest.raises(VideoError, match="another length"):
        read(tmp_path)


def test_video_without_flow_is_named(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="no flow") as caught:
        read(tmp_path)
    assert "clip_x.npy" in str(caught.value)


def test_flow_of_one_axis_is_refused(tmp_path: Path) -> None:
    write_picture(tmp_path / "clip_x" / "flow_x_1.png", flows()[0, ..., 0])
    with pytest.raises(VideoError, match="both axes"):
        read(tmp_path)


@pytest.mark.parametrize("wrong", [np.zeros((4, 2, 24, 32), np.uint8), np.zeros((4, 8, 8, 2), int)])
def test_array_of_another_shape_or_type_is_refused(tmp_path: Path, wrong: np.ndarray) -> None:
    np.save(tmp_path / "clip_x.npy", wrong)
    with pytest.raises(VideoError, match="must be"):
        read(tmp_path)


def test_damaged_files_are_video_errors(tmp_path: Path) -> None:
    (tmp_path / "clip_x.npy").write_bytes(b"no array")
    with pytest.raises(VideoError, match="cannot be read"):
        read(tmp_path)
    (tmp_path / "clip_x.npy").unlink()
    for axis in "xy":
        write_picture(tmp_path / "clip_x" / f"{axis}_1.png", flows()[0, ..., 0])
        (tmp_path / "clip_x" / f"{axis}_1.png").write_bytes(b"no picture")
    with pytest.raises(VideoError, match="cannot be read"):
        read(tmp_path)


def test_missing_folder_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--flow DIR"):
        FlowFiles(None).check()
    with pytest.raises(ConfigError, match="no folder"):
        FlowFiles(tmp_path / "nowhere").check()


def test_flow_for_a_backbone_on_colours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing reads them"):
        flow_source(PIXEL_RECIPES["i3d"], tmp_path)
    assert flow_source(PIXEL_RECIPES["i3d"], None) is None


def stub_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cv2 whose flow is the difference of the grey means, so that pairs can be told."""

    def calc(before: np.ndarray, after: np.ndarray, _start: None) -> np.ndarray:
        return np.full((*before.shape, 2), after.mean() - before.mean(), dtype=np.float32)

    def resize(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return np.full((size[1], size[0], 3), frame[0, 0, 0], dtype=np.uint8)

    module: Any = SimpleNamespace(
        optflow=SimpleNamespace(DualTVL1OpticalFlow_create=lambda: SimpleNamespace(calc=calc)),
        resize=resize,
        cvtColor=lambda frame, _code: frame[..., 0],
        COLOR_RGB2GRAY=7,
    )
    monkeypatch.setitem(sys.modules, "cv2", module)


def test_computed_flow_goes_from_each_frame_to_the_next_at_the_recipes_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stub_opencv(monkeypatch)
    levels = (10, 12, 20, 5)
    source = (np.full((24, 32, 3), level, dtype=np.uint8) for level in levels)
    pictures = np.stack(list(ComputedFlow(PIXEL_RECIPES["i3d-flow"]).pictures(VIDEO, source)))
    assert pictures.shape == (4, 256, 341, 2)
    assert pictures[:, 0, 0, 0].tolist() == to_bytes(np.array([2.0, 8, -15, -15])).tolist()


def test_one_frame_has_no_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_opencv(monkeypatch)
    assert list(ComputedFlow(SMALL).pictures(VIDEO, frames(1))) == []


def test_without_opencv_the_error_names_both_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ConfigError, match="opencv-contrib-python-headless") as caught:
        ComputedFlow(SMALL).check()
    assert "--flow DIR" in str(caught.value)


def test_opencv_tells_the_direction_of_a_movement() -> None:
    pytest.importorskip("cv2")
    random = np.random.default_rng(3).integers(0, 256, (16, 16), dtype=np.uint8)
    texture = np.kron(random, np.ones((8, 8), dtype=np.uint8))
    moved = [np.roll(texture, 2 * i, axis=1)[..., None].repeat(3, axis=2) for i in range(2)]
    recipe = PixelRecipe(size=128, colour="flow-tvl1", mean=(0.5, 0.5), std=(0.5, 0.5))
    picture = next(iter(ComputedFlow(recipe).pictures(VIDEO, iter(moved))))
    assert np.median(picture[..., 0]) == to_bytes(np.array(2.0))
    assert np.median(picture[..., 1]) == 128


def test_features_of_flow_files_are_stored_under_their_own_spec(tmp_path: Path) -> None:
    video = make_video(tmp_path / "v.mp4", frames=40)
    np.save(tmp_path / "v.npy", np.random.default_rng(4).integers(0, 256, (39, 40, 40, 2), "u1"))
    report = extract(
        [video],
        store=tmp_path / "s.zarr",
        backbone="i3d-flow",
        weights="random",
        pixels=SMALL,
        flow=tmp_path,
        stride=12,
        batch=3,
        device="cpu",
    )
    store = FeatureStore.open(tmp_path / "s.zarr")
    spec = store.spec(report.fid)
    assert spec.pixels is not None
    assert spec.pixels.colour == "flow-files"
    assert store["v"][:].shape == ((40 - 16) // 12 + 1, 1024)
    assert np.isfinite(store["v"][:]).all()

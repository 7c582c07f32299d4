"""Extraction: features equal the clip-by-clip loop, nothing is done twice, nothing is lost."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from tadpipe.backbones.loading import load_backbone
from tadpipe.backbones.pixels import prepare
from tadpipe.config import PixelRecipe
from tadpipe.errors import ConfigError
from tadpipe.pipeline.clip_lanes import ClipLanes
from tadpipe.pipeline.extract import extract
from tadpipe.pipeline.frame_source import VideoRows
from tadpipe.pipeline.progress import Silent
from tadpipe.store.feature_store import FeatureStore
from tadpipe.video.reader import open_frames
from tadpipe.video.snippets import SnippetPlan
from tests.corpus import make_video, uneven_times

SETTINGS: dict[str, Any] = {"backbone": "videomae-tiny", "weights": "random", "device": "cpu"}

SMALL_CONV: dict[str, Any] = {
    **SETTINGS,
    "backbone": "tsm-r50",
    "clip_len": 2,
    "pixels": PixelRecipe(size=32, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)),
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for i, frames in enumerate((70, 53, 41)):
        make_video(folder / f"v{i}.mp4", frames=frames)
    return folder


def clip_by_clip(path: Path, plan: SnippetPlan) -> np.ndarray[Any, Any]:
    """The naive loop: every clip on its own, batch 1; only tests and benches have it."""
    model = load_backbone("videomae-tiny", "random")
    frames = np.stack(list(open_frames(path)))
    rows = []
    for indices in plan.frame_indices(len(frames)):
        pixels = prepare(torch.from_numpy(frames[indices]), model.pixels, "cpu")
        with torch.inference_mode():
            rows.append(model(pixels.transpose(0, 1)[None])[0].numpy())
    return np.stack(rows)


@pytest.mark.parametrize("anchor", ["start", "centre", "cell"])
@pytest.mark.parametrize(("batch", "stride"), [(1, 4), (5, 4), (1, 23)])
def test_features_equal_the_clip_by_clip_loop_bit_for_bit(
    videos: Path,
    tmp_path: Path,
    anchor: Literal["start", "centre", "cell"],
    batch: int,
    stride: int,
) -> None:
    store = tmp_path / "s.zarr"
    settings = {**SETTINGS, "stride": stride, "feature_dtype": "float32"}
    extract([videos], store=store, anchor=anchor, batch=batch, **settings)
    for path in sorted(videos.iterdir()):
        expected = clip_by_clip(path, SnippetPlan(anchor, 16, 1, stride))
        stored = FeatureStore.open(store)[path.stem][:]
        assert np.array_equal(stored, expected)


def test_convolutional_features_are_the_same_bits_at_equal_padded_batches(
    videos: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {**SMALL_CONV, "stride": 25, "feature_dtype": "float32"}
    report = extract([videos], store=tmp_path / "s.zarr", batch=3, **settings)
    assert FeatureStore.open(tmp_path / "s.zarr").spec(report.fid).batch == 3
    model = load_backbone("tsm-r50", "random")
    path, plan = videos / "v2.mp4", SnippetPlan("start", 2, 1, 25)  # its last clip fills a batch
    frames = np.stack(list(open_frames(path)))
    stored = FeatureStore.open(tmp_path / "s.zarr")["v2"][:]
    for row, indices in zip(stored, plan.frame_indices(len(frames)), strict=True):
        pixels = prepare(torch.from_numpy(frames[indices]), SMALL_CONV["pixels"], "cpu")
        with torch.inference_mode():
            naive = model(pixels.transpose(0, 1).expand(3, -1, -1, -1, -1))[0]
        assert np.array_equal(row, naive.numpy())


def test_batch_is_part_of_the_spec_only_where_bits_depend_on_it(
    videos: Path, tmp_path: Path
) -> None:
    def fid(settings: dict[str, Any], batch: int | None) -> str:
        return extract(
            [videos],
            store=tmp_path / "s.zarr",
            batch=batch,
            dry_run=True,
            calibrate_sec=0,
            **settings,
        ).fid

    assert fid(SMALL_CONV, None) == fid(SMALL_CONV, 8) != fid(SMALL_CONV, 3)
    assert fid(SETTINGS, None) == fid(SETTINGS, 3)


@pytest.mark.parametrize("decoders", [1, 2])
def test_every_frame_is_decoded_once(videos: Path, tmp_path: Path, decoders: int) -> None:
    report = extract([videos], store=tmp_path / "s.zarr", decoders=decoders, **SETTINGS)
    assert report.total("frames_decoded") == 70 + 53 + 41
    assert [v.name for v in report.videos] == ["v0", "v1", "v2"]  # whichever ended first
    assert [v.rows for v in report.videos] == [(n - 16) // 4 + 1 for n in (70, 53, 41)]


def test_row_times_are_those_of_the_published_formula(videos: Path, tmp_path: Path) -> None:
    extract([videos], store=tmp_path / "s.zarr", **SETTINGS)
    view = FeatureStore.open(tmp_path / "s.zarr")["v0"]
    expected = (np.arange(len(view)) * 4 + 8) / 30
    np.testing.assert_allclose(view.times, expected, atol=1e-9)
    np.testing.assert_allclose([view.grid.to_sec(i) for i in range(len(view))], expected, atol=1e-9)


def test_variable_rate_rows_carry_presentation_times(tmp_path: Path) -> None:
    times = uneven_times(60)
    path = make_video(tmp_path / "v.mp4", frames=60, times_sec=times)
    extract([path], store=tmp_path / "s.zarr", **SETTINGS)
    view = FeatureStore.open(tmp_path / "s.zarr")["v"]
    expected = [float(times[i * 4 + 8]) for i in range(len(view))]
    np.testing.assert_allclose(view.times, expected, atol=1e-4)
    assert view.grid.is_variable_rate


def test_resampling_takes_the_nearest_frames(tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.mp4", frames=120, fps=30)
    extract([path], store=tmp_path / "s.zarr", fps=15.0, feature_dtype="float32", **SETTINGS)
    view = FeatureStore.open(tmp_path / "s.zarr")["v"]
    assert float(view.row.fps or 0) == 15.0
    model = load_backbone("videomae-tiny", "random")
    frames = np.stack(list(open_frames(path)))[::2][:16]  # 15 of 30 frames a second
    pixels = prepare(torch.from_numpy(frames), model.pixels, "cpu")
    with torch.inference_mode():
        first = model(pixels.transpose(0, 1)[None])[0].numpy()
    assert np.array_equal(view[0], first)
    np.testing.assert_allclose(view.times[0], 8 / 15, atol=1e-9)


def test_same_content_under_two_names_is_extracted_once(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        shutil.copyfile(videos / "v0.mp4", folder / name)
    report = extract([folder], store=tmp_path / "s.zarr", **SETTINGS)
    assert [(v.name, v.status, v.reason) for v in report.videos] == [
        ("a", "done", ""),
        ("b", "reused", "duplicate-content"),
    ]
    store = FeatureStore.open(tmp_path / "s.zarr")
    assert np.array_equal(store["a"][:], store["b"][:])
    assert report.total("frames_decoded") == 70


def test_truncated_video_is_skipped_or_kept_as_asked(videos: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.mp4"
    whole = make_video(tmp_path / "whole.mp4", frames=120).read_bytes()
    path.write_bytes(whole[: len(whole) * 6 // 10])
    report = extract([path], store=tmp_path / "s.zarr", **SETTINGS)
    assert [(v.status, v.reason) for v in report.videos] == [("failed", "truncated")]
    assert report.exit_code == 3
    report = extract([path], store=tmp_path / "s.zarr", on_truncated="keep", **SETTINGS)
    (outcome,) = report.videos
    row = FeatureStore.open(tmp_path / "s.zarr")["cut"].row
    assert outcome.status == "done"
    assert row.truncated
    assert row.frames == outcome.frames_decoded < 120
    assert row.rows == (row.frames - 16) // 4 + 1


def test_too_short_video_is_a_typed_row(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4", frames=15)
    report = extract([tmp_path / "v.mp4"], store=tmp_path / "s.zarr", **SETTINGS)
    assert [(v.status, v.reason) for v in report.videos] == [("failed", "too-short")]
    rows = [row for _, row in FeatureStore.open(tmp_path / "s.zarr").backend.attempts()]
    assert [(row.name, row.reason) for row in rows] == [("v", "too-short")]


def test_jobs_of_an_array_share_the_videos(videos: Path, tmp_path: Path) -> None:
    done = []
    for job in range(2):
        report = extract([videos], store=tmp_path / "s.zarr", shard_of=(job, 2), **SETTINGS)
        done += [v.name for v in report.videos]
    assert sorted(done) == ["v0", "v1", "v2"]
    assert len(FeatureStore.open(tmp_path / "s.zarr").videos(report.fid)) == 3


def test_video_that_another_run_committed_before_its_turn_is_not_decoded(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "s.zarr"
    add = ClipLanes.add

    def add_late(lanes: ClipLanes, video: VideoRows) -> None:
        monkeypatch.setattr(ClipLanes, "add", add)
        extract([video.file.path], store=store, **SETTINGS)
        add(lanes, video)

    monkeypatch.setattr(ClipLanes, "add", add_late)
    report = extract([videos / "v0.mp4"], store=store, **SETTINGS)
    assert [(v.status, v.frames_decoded) for v in report.videos] == [("reused", 0)]
    assert FeatureStore.open(store).status().frames_decoded == 70


def test_interrupted_run_keeps_what_was_finished(videos: Path, tmp_path: Path) -> None:
    class StopAtTheSecond(Silent):
        def advance(self, units: int = 1, note: str = "") -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract([videos], store=tmp_path / "s.zarr", progress=StopAtTheSecond(), **SETTINGS)
    report = extract([videos], store=tmp_path / "s.zarr", **SETTINGS)
    assert [v.status for v in report.videos].count("reused") == 1
    assert len(FeatureStore.open(tmp_path / "s.zarr").videos(report.fid)) == 3


def test_annotated_videos_without_a_file_are_named(videos: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.json"
    labels.write_text(
        '{"database": {"v0": {"subset": "training", "duration": 2.0, "annotations": []},'
        ' "lost": {"subset": "training", "duration": 2.0, "annotations": []}}}'
    )
    report = extract([videos], store=tmp_path / "s.zarr", annotations=labels, **SETTINGS)
    assert report.annotated_without_video == ["lost"]
    assert FeatureStore.open(tmp_path / "s.zarr").annotations() == labels.read_bytes()
    assert "lost" in report.text()


def test_options_that_decide_numbers_decide_the_fid(videos: Path, tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"stride": 8},
        {"clip_len": 8},
        {"frame_interval": 2},
        {"anchor": "centre"},
        {"fps": 15.0},
        {"pixels": "mmaction"},
        {"dtype": "bf16"},
        {"feature_dtype": "float32"},
        {"on_truncated": "keep"},
        {"seed": 1},
    ]
    fids = {
        extract(
            [videos],
            store=tmp_path / "s.zarr",
            dry_run=True,
            calibrate_sec=0,
            **{**SETTINGS, **change},
        ).fid
        for change in changes
    }
    assert len(fids) == len(changes)
    assert not (tmp_path / "s.zarr").exists()


def test_pixel_recipe_of_other_channels_is_refused(videos: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "backbone": "i3d-flow", "pixels": "i3d"}
    with pytest.raises(ConfigError, match="does not fit the backbone"):
        extract([videos], store=tmp_path / "s.zarr", **settings)


def test_unknown_pixel_recipe_is_refused(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mmaction"):
        extract([videos], store=tmp_path / "s.zarr", pixels="mmactoin", **SETTINGS)

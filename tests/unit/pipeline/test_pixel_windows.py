"""Training windows of pixels: the frames extraction uses, videos that break, reversed windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tadpipe.annotations import load_annotations
from tadpipe.backbones.augment import AugmentConfig
from tadpipe.datasets.windows import WindowConfig
from tadpipe.errors import TadpipeError
from tadpipe.pipeline.e2e_plan import PixelPlan, files_by_name, plan_pixels
from tadpipe.pipeline.extract import extract
from tadpipe.pipeline.frame_cache import FrameCache, keep_for
from tadpipe.pipeline.pixel_windows import (
    FailedVideos,
    PixelLoader,
    PixelWindows,
    reversed_in_time,
)
from tadpipe.pipeline.presets import load_preset
from tadpipe.pipeline.video_features import VideoTable
from tadpipe.store.feature_store import FeatureStore
from tadpipe.training.e2e import PixelWindow, WindowClips
from tadpipe.video.process import DecodeProcess
from tests.unit.pipeline.small_project import SETTINGS, SmallProject, make_project

PRESET = "actionformer/default"
AS_EXTRACTED = AugmentConfig(enabled=False)
MADE_WITH = {"backbone": "videomae-tiny", "weights": "random", "device": "cpu", "seed": 3}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> SmallProject:
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def decoder() -> Any:
    with DecodeProcess() as process:
        yield process


def pixels_of(*sets: str) -> PixelPlan:
    preset = load_preset(PRESET, [*SETTINGS, "e2e.picture_size=0", *sets], None)
    return plan_pixels(preset, "videomae-tiny", "random", stride=4, device="cpu", seed=3)


def table(project: SmallProject, plan: PixelPlan, decoder: DecodeProcess) -> VideoTable:
    assert isinstance(plan.backbone, nn.Module)
    plan.backbone.eval()
    files = files_by_name([project.videos])
    return VideoTable(files, plan.backbone, plan.spec, plan.grid, decoder, device="cpu", batch=8)


def loader(
    project: SmallProject,
    plan: PixelPlan,
    decoder: DecodeProcess,
    folder: Path,
    *,
    augment: AugmentConfig,
    most_failed: float = 0.5,
    limit_bytes: int = 0,
) -> PixelLoader:
    recipe = plan.backbone.pixels
    cache = FrameCache(decoder, keep_for(recipe, augment), limit_bytes=limit_bytes, fps=None)
    videos = load_annotations(project.annotations).subset("training")
    windows = PixelWindows(
        files_by_name([project.videos]),
        videos,
        {"class 0": 0, "class 1": 1},
        WindowConfig(),
        plan.grid,
        cache,
        augment,
        recipe.size,
    )
    failed = FailedVideos(folder, len(windows), most_failed)
    return PixelLoader(windows, 2, seed=5, failed=failed)


@pytest.fixture(scope="module")
def stored(project: SmallProject, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    path = tmp_path_factory.mktemp("store") / "s.zarr"
    extract([project.videos], store=path, feature_dtype="float32", stride=4, **MADE_WITH)
    return FeatureStore.open(path)


def test_tested_features_are_those_of_extraction(
    project: SmallProject, stored: FeatureStore, decoder: DecodeProcess
) -> None:
    plan = pixels_of()
    ours = table(project, plan, decoder).open("video 5")
    assert np.array_equal(ours.features, np.asarray(stored["video 5"]))
    for row in (0, len(ours.features) - 1):
        assert ours.grid.to_sec(row) == pytest.approx(stored["video 5"].grid.to_sec(row))


def test_trained_features_are_those_of_extraction(
    project: SmallProject, stored: FeatureStore, decoder: DecodeProcess, tmp_path: Path
) -> None:
    plan = pixels_of()
    assert isinstance(plan.backbone, nn.Module)
    batch = loader(project, plan, decoder, tmp_path, augment=AS_EXTRACTED).batch(0)
    clips = WindowClips(batch.windows, plan.backbone.pixels, torch.device("cpu"))
    for number, window in enumerate(batch.windows):
        rows = torch.arange(window.valid)
        with torch.no_grad():
            ours = plan.backbone.eval()(clips.take(torch.full_like(rows, number), rows))
        wanted = np.asarray(stored[window.name])[window.start : window.start + window.valid]
        assert np.array_equal(ours.numpy(), wanted), window.name


@pytest.mark.parametrize("kind", ["tia", "ladder", "plain"])
def test_new_adapters_change_no_bit_of_the_frozen_features(
    kind: str, project: SmallProject, decoder: DecodeProcess
) -> None:
    frames = ("e2e.representation=frame", "e2e.frames_per_step=2", "e2e.picture_size=32")
    plain = table(project, pixels_of(*frames, "e2e.tune=frozen"), decoder).open("video 0")
    adapted = pixels_of(*frames, "e2e.tune=adapter", f"e2e.adapter.kind={kind}")
    ours = table(project, adapted, decoder).open("video 0")
    assert np.array_equal(ours.features, plain.features)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(("harm", "reason"), [(cut_off, "truncated"), (Path.unlink, "not-found")])
def test_a_video_that_breaks_during_training_is_replaced_and_counted(
    harm: Any,
    reason: str,
    tmp_path: Path,
    decoder: DecodeProcess,
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = make_project(tmp_path / "own")
    made = loader(own, pixels_of(), decoder, tmp_path, augment=AugmentConfig())
    for step in range(made.steps_per_pass):
        made.batch(step)
    harm(own.videos / "video 1.mp4")
    names = [[w.name for w in made.batch(step).windows] for step in (2, 3)]
    assert [len(set(batch)) for batch in names] == [2, 2]
    assert "video 1" not in {name for batch in names for name in batch}
    own_records = [record for record in caplog.records if "left out" in record.getMessage()]
    assert [record.levelname for record in own_records] == ["WARNING"]
    message = own_records[0].getMessage()
    assert "(1 of 4 videos so far)" in message
    assert reason in message
    assert set(made.failed.since) == {"video 1"}
    assert set(FailedVideos(tmp_path, 4, 0.5).since) == {"video 1"}, "kept in the run folder"


def test_more_broken_videos_than_stated_are_an_error(
    tmp_path: Path, decoder: DecodeProcess
) -> None:
    own = make_project(tmp_path / "own")
    made = loader(own, pixels_of(), decoder, tmp_path, augment=AugmentConfig(), most_failed=0.25)
    made.batch(0)
    for number in (1, 2):
        cut_off(own.videos / f"video {number}.mp4")
    with pytest.raises(TadpipeError, match="Too many training videos") as caught:
        made.batch(2), made.batch(3)
    assert "2 of 4, at most 25%" in str(caught.value)


@pytest.mark.parametrize("limit_bytes", [0, 1 << 30], ids=["decoded each time", "kept in memory"])
def test_a_file_that_is_cut_off_from_the_start_is_found(
    limit_bytes: int, tmp_path: Path, decoder: DecodeProcess
) -> None:
    own = make_project(tmp_path / "own")
    cut_off(own.videos / "video 1.mp4")
    made = loader(
        own, pixels_of(), decoder, tmp_path, augment=AugmentConfig(), limit_bytes=limit_bytes
    )
    made.batch(0), made.batch(1)
    assert set(made.failed.since) == {"video 1"}


def test_windows_do_not_depend_on_what_is_kept_in_memory(
    project: SmallProject, decoder: DecodeProcess, tmp_path: Path
) -> None:
    plan = pixels_of()
    kept, decoded = (
        loader(project, plan, decoder, tmp_path, augment=AugmentConfig(), limit_bytes=limit).batch(
            3
        )
        for limit in (1 << 30, 0)
    )
    for ours, wanted in zip(kept.windows, decoded.windows, strict=True):
        assert torch.equal(ours.frames, wanted.frames)
        assert torch.equal(ours.clips, wanted.clips)


@pytest.mark.parametrize("representation", ["snippet", "frame"])
def test_a_window_reversed_twice_is_the_window(representation: str) -> None:
    valid = 3
    line = torch.arange(8).clamp(max=5)  # two frames a row, a fourth row repeats the last
    clips = line.view(2, 4) if representation == "frame" else torch.arange(6).view(3, 2)
    window = PixelWindow(
        "v",
        0,
        valid,
        torch.zeros(6, 3, 1, 1),
        clips,
        None,
        torch.tensor([[0.0, 1.5]]),
        torch.zeros(1),
    )
    once = reversed_in_time(window, representation)
    assert once.clips.flatten()[:6].tolist() == [5, 4, 3, 2, 1, 0]
    assert once.segments.tolist() == [[0.5, 2.0]]
    twice = reversed_in_time(once, representation)
    assert torch.equal(twice.clips, window.clips)
    assert torch.equal(twice.segments, window.segments)

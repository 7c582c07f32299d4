"""Features of frame representation: those that training saw, averaged where windows overlap."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tadpipe.backbones.pixels import prepare
from tadpipe.backbones.representation import frame_features
from tadpipe.backbones.tia import AdapterConfig, adapter_parameters, add_adapters
from tadpipe.backbones.videomae import VideoMAE, videomae_tiny
from tadpipe.datasets.windows import covering_windows
from tadpipe.pipeline.frame_rows import FrameWindows
from tadpipe.pipeline.frame_source import VideoRows
from tadpipe.pipeline.pixel_grid import PixelGrid
from tadpipe.pipeline.video_files import VideoFile
from tadpipe.training.e2e import E2EConfig, E2ELearner, PixelBatch, PixelWindow
from tadpipe.training.loop import TrainingConfig
from tadpipe.video.process import DecodeProcess
from tadpipe.video.reader import open_frames
from tadpipe.video.snippets import SnippetPlan
from tests.corpus import make_video

ROWS = 16  # of a window
PER_ROW = 2  # frames
GRID = PixelGrid(SnippetPlan("centre", 16, 1, PER_ROW), "frame", ROWS, frames_per_step=PER_ROW)


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecodeProcess]:
    with DecodeProcess() as process:
        yield process


def tuned() -> VideoMAE:
    """Adapters that do something; what trains is set by the learner."""
    torch.manual_seed(4)
    model = videomae_tiny()
    add_adapters(model, AdapterConfig())
    with torch.no_grad():
        for parameter in adapter_parameters(model).values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def extracted(
    model: VideoMAE, path: Path, decoder: DecodeProcess, *, overlap_rows: int = 0
) -> np.ndarray[Any, Any]:
    windows = FrameWindows(
        model,
        GRID,
        decoder,
        device="cpu",
        overlap_frames=overlap_rows * PER_ROW,
        fps=None,
        keep_truncated=False,
    )
    (done,) = windows.run([VideoRows(VideoFile(path, path.stem), "")])
    assert done.error is None
    return done.features()


def pixels_of(model: VideoMAE, path: Path) -> Tensor:
    """[N, 3, S, S] of a whole video."""
    return prepare(torch.from_numpy(np.stack(list(open_frames(path)))), model.pixels, "cpu")


class Recorder(nn.Module):
    """A detector that keeps the features it is shown."""

    feats: Tensor

    def forward(self, feats: Tensor, mask: Tensor) -> Tensor:
        self.feats = feats.detach()
        return feats

    def loss(self, outputs: Tensor, targets: object) -> dict[str, Tensor]:
        return {"loss": outputs.sum()}


def trained_on(model: VideoMAE, frames: Tensor, rows: int) -> np.ndarray[Any, Any]:
    """[rows, C] that the detector sees in training when the whole video is its window."""
    recorder = Recorder()
    config = E2EConfig(
        tune="adapter",
        adapter=AdapterConfig(),
        representation="frame",
        frames_per_step=PER_ROW,
    )
    learner = E2ELearner(
        model,
        recorder,
        TrainingConfig(tensorboard=False),
        config,
        window_len=ROWS,
        seed=0,
        device="cpu",
    )
    places = torch.from_numpy(GRID.clips(len(frames), 0, rows))
    window = PixelWindow(
        "v", 0, rows, frames, places, None, torch.zeros(0, 2), torch.zeros(0).long()
    )
    learner.backward(PixelBatch([window]), lambda loss: loss, 0)
    shown: np.ndarray[Any, Any] = recorder.feats[0, :, :rows].T.numpy()
    return shown


@pytest.mark.parametrize("frames", [ROWS * PER_ROW, 27, 24])
def test_a_video_within_one_window_has_the_features_of_training(
    tmp_path: Path, decoder: DecodeProcess, frames: int
) -> None:
    path = tmp_path / "v.mp4"
    make_video(path, frames=frames)
    model = tuned()
    ours = extracted(model, path, decoder, overlap_rows=8)
    assert len(ours) == GRID.plan.rows(frames)
    wanted = trained_on(model, pixels_of(model, path), len(ours))
    assert np.allclose(ours, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("frames", "overlap_rows"), [(101, 4), (64, 0), (33, 15)])
def test_a_long_video_has_the_mean_of_the_windows_that_see_a_row(
    tmp_path: Path, decoder: DecodeProcess, frames: int, overlap_rows: int
) -> None:
    path = tmp_path / "v.mp4"
    make_video(path, frames=frames)
    model = tuned()
    pixels = pixels_of(model, path)
    rows = GRID.plan.rows(frames)
    sums, seen = torch.zeros(rows, model.out_channels), torch.zeros(rows, 1)
    for start in covering_windows(rows, ROWS, overlap_rows / ROWS):
        places = torch.arange(start * PER_ROW, (start + ROWS) * PER_ROW).clamp(max=frames - 1)
        with torch.no_grad():
            line = frame_features(model, pixels[places].transpose(0, 1)[None], ROWS)[0].T
        part = line[: rows - start]
        sums[start : start + ROWS] += part
        seen[start : start + ROWS] += 1
    assert seen.min() == 1
    ours = extracted(model, path, decoder, overlap_rows=overlap_rows)
    assert np.allclose(ours, (sums / seen).numpy(), rtol=0, atol=1e-5)


def test_overlap_lets_rows_at_the_ends_of_windows_see_their_neighbours(
    tmp_path: Path, decoder: DecodeProcess
) -> None:
    path = tmp_path / "v.mp4"
    make_video(path, frames=64)
    model = tuned()
    apart, shared = (extracted(model, path, decoder, overlap_rows=rows) for rows in (0, 8))
    assert apart.shape == shared.shape
    assert np.allclose(apart[0], shared[0], atol=1e-5)  # one window sees the first row
    assert not np.allclose(apart[ROWS - 1], shared[ROWS - 1], atol=1e-3)

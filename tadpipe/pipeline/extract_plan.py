"""What an extraction would take: clips, FLOPs, bytes and hours, without writing anything.

Videos are hashed and their packets read, so that frames and what is there already are exact.
FLOPs are counted by torch on tensors without data. Hours come from a short calibration on this
machine: the first new videos are decoded and prepared, and the backbone runs on empty clips.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tadpipe.backbones.protocol import Backbone
from tadpipe.backbones.representation import frame_features
from tadpipe.errors import VideoError
from tadpipe.pipeline.extract_report import ExtractPlan, ExtractRates, ExtractReport
from tadpipe.pipeline.extract_run import Runner, content_of
from tadpipe.pipeline.frame_rows import FrameWindows
from tadpipe.pipeline.frame_source import VideoRows, resampled
from tadpipe.pipeline.video_files import VideoFile
from tadpipe.pipeline.video_outcomes import VideoOutcome
from tadpipe.store.content import ContentIndex
from tadpipe.store.feature_store import FeatureStore
from tadpipe.store.metadata import FeatureSpec

DECODE_SHARE = 1 / 3  # of the calibration, at most
ENOUGH_FRAMES = 2000  # decoded ones
ENOUGH_PASSES = 20  # of the backbone


def plan_extraction(
    report: ExtractReport,
    files: Sequence[VideoFile],
    spec: FeatureSpec,
    runner: Runner,
    *,
    device: str,
    calibrate_sec: float,
) -> None:
    """Fill a report with what a run would do.

    Args:
        calibrate_sec: spent on measuring, about; 0 leaves the hours out.
    """
    store = FeatureStore.open(report.store) if FeatureStore.exists(report.store) else None
    content = ContentIndex(report.store, remember=False)
    width = spec.channels * (2 if spec.stored_dtype == "float16" else 4)
    new: dict[str, VideoFile] = {}  # by content
    passes = 0
    for file in files:
        try:
            sha256 = content_of(content, file.path)
            if sha256 in new or (store is not None and store.has_content(spec.fid, sha256)):
                report.videos.append(VideoOutcome(file.name, "reused"))
                continue
            probe = runner.decoders[0].probe(file.path)
        except VideoError as error:
            message = f"{error.what} {error.where}".strip()
            report.videos.append(VideoOutcome(file.name, "failed", error.reason.value, message))
            continue
        new[sha256] = file
        used = probe if spec.fps is None else resampled(probe, spec.fps)[0]
        rows = runner.plan.rows(used.frames)
        passes += _passes(runner, rows)
        report.videos.append(
            VideoOutcome(
                file.name, "done", rows=rows, frames_decoded=probe.frames, bytes=rows * width
            )
        )
    rates = None
    if calibrate_sec > 0 and new:
        rates = _calibrate(runner, list(new.values()), device, calibrate_sec)
    report.plan = ExtractPlan(
        unit="window" if isinstance(runner, FrameWindows) else "clip",
        passes=passes,
        flops_per_pass=pass_flops(runner),
        frames=report.total("frames_decoded"),
        device=device,
        shares_cores=torch.device(device).type == "cpu",
        decoders=len(runner.decoders),
        dtype=spec.compute_dtype,
        rates=rates,
    )


def _passes(runner: Runner, rows: int) -> int:
    """Clips, or windows of frames, that a video of so many rows takes."""
    if not isinstance(runner, FrameWindows):
        return rows
    beyond = max(rows - runner.grid.window_len, 0)
    return (1 + -(-beyond // runner.hop)) if rows else 0


def pass_flops(runner: Runner) -> int:
    """FLOPs of one clip, or of one window of frames; multiply and add are two.

    torch's counter knows matrix products, convolutions and attention; it leaves out what is done
    element by element.
    """
    model = cast(nn.Module, runner.backbone)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    without_data = {name: tensor.to("meta") for name, tensor in tensors}
    step = _OnePass(model, runner)
    with (
        torch.no_grad(),
        FlopCounterMode(display=False) as counter,
        torch.compiler.set_stance("force_eager"),
    ):
        named = {f"model.{name}": tensor for name, tensor in without_data.items()}
        torch.func.functional_call(step, named, (_empty(runner, 1, "meta"),))
    return int(counter.get_total_flops())


class _OnePass(nn.Module):
    """The backbone as the runner calls it."""

    def __init__(self, model: nn.Module, runner: Runner) -> None:
        super().__init__()
        self.model = model
        self.window_len = runner.grid.window_len if isinstance(runner, FrameWindows) else None

    def forward(self, pixels: Tensor) -> Tensor:
        if self.window_len is None:
            features: Tensor = self.model(pixels)
            return features
        return frame_features(cast(Backbone, self.model), pixels, self.window_len)


def _empty(runner: Runner, count: int, device: str) -> Tensor:
    """Pixels of `count` clips, or of one window: [N, 3, F, S, S]."""
    backbone = runner.backbone
    side, channels = backbone.pixels.size, backbone.pixels.channels
    if isinstance(runner, FrameWindows):
        return torch.zeros(1, channels, runner.grid.window_frames, side, side, device=device)
    return torch.zeros(count, channels, backbone.clip_len, side, side, device=device)


def _calibrate(
    runner: Runner, files: Sequence[VideoFile], device: str, seconds: float
) -> ExtractRates:
    """Measure decoding and the backbone, one after the other."""
    started = time.perf_counter()
    frames_per_sec = _decoding_rate(runner, files, seconds * DECODE_SHARE)
    remaining = seconds - (time.perf_counter() - started)
    passes_per_sec, batch = _backbone_rate(runner, device, remaining)
    spent = time.perf_counter() - started
    return ExtractRates(passes_per_sec, frames_per_sec, batch, spent)


def _decoding_rate(runner: Runner, files: Sequence[VideoFile], seconds: float) -> float | None:
    """Frames that one decoder makes ready in a second; None where none can be decoded."""
    count, ready, busy = 0, 0, 0.0
    for file in files:
        video = VideoRows(file, "")
        began = time.perf_counter()
        try:
            for _ in islice(runner.source.frames(video), ENOUGH_FRAMES - ready):
                ready += 1
                if busy + time.perf_counter() - began > seconds:
                    break
        except VideoError:
            continue  # the run will say so
        count += video.frames_decoded
        busy += time.perf_counter() - began
        if ready >= ENOUGH_FRAMES or busy > seconds:
            break
    return count / busy if count else None


def _backbone_rate(runner: Runner, device: str, seconds: float) -> tuple[float, int]:
    """Clips or windows per second, and how many there were in a pass.

    The first pass, of a single clip, warms up; where full batches would take too long, single
    clips are measured.
    """
    is_windows = isinstance(runner, FrameWindows)
    batch = 1 if isinstance(runner, FrameWindows) else runner.batch
    wait: Callable[[], None] = (
        torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    )

    def timed(pixels: Tensor) -> float:
        began = time.perf_counter()
        step(pixels)
        wait()
        return time.perf_counter() - began

    step = _OnePass(cast(nn.Module, runner.backbone), runner)
    with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
        began = time.perf_counter()
        single = timed(_empty(runner, 1, device))
        left = seconds - (time.perf_counter() - began)
        if is_windows or single * batch > left:
            batch = 1
        pixels = _empty(runner, batch, device)
        times = [single] if batch == 1 and single > left else [timed(pixels)]
        while len(times) < ENOUGH_PASSES and sum(times) + min(times) <= left:
            times.append(timed(pixels))
    steady = times[1:] or times  # the first full batch still sets up memory
    return batch * len(steady) / sum(steady), batch

"""Videos into a feature store: every frame decoded once, every clip through the backbone once.

Decoding runs in its own process, pixels are prepared once per frame, clips are cut from a ring
buffer (`pipeline/clip_batches.py`), batches are filled across videos. A video that cannot be used
becomes a typed ledger row and the run goes on; a finished video survives any kill.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from tadpipe.backbones.loading import checked_device, require_compiler
from tadpipe.backbones.protocol import Backbone
from tadpipe.config import PixelRecipe
from tadpipe.datasets import DATASETS
from tadpipe.datasets.annotation_files import annotation_copy, read_annotations
from tadpipe.datasets.spec import DatasetSpec
from tadpipe.location import location
from tadpipe.pipeline.clip_batches import batch_of, decoders_of
from tadpipe.pipeline.device import resolve_device
from tadpipe.pipeline.extract_checks import check_store, check_workers, compiling
from tadpipe.pipeline.extract_plan import plan_extraction
from tadpipe.pipeline.extract_recipes import with_recipe
from tadpipe.pipeline.extract_report import ExtractReport
from tadpipe.pipeline.extract_run import ExtractRun
from tadpipe.pipeline.extract_spec import Choices, Handling, as_chosen, as_tuned
from tadpipe.pipeline.known_weights import KnownWeights, remember_weights
from tadpipe.pipeline.optical_flow import FlowFiles, flow_source
from tadpipe.pipeline.progress import SILENT, Progress
from tadpipe.pipeline.spec_backbone import tuned_backbone
from tadpipe.pipeline.video_features import clip_runner
from tadpipe.pipeline.video_files import VideoFile, find_videos, shard
from tadpipe.registry import resolve
from tadpipe.store.feature_store import FeatureStore
from tadpipe.store.metadata import FeatureSpec
from tadpipe.video.process import DecodeProcess

CALIBRATE_SEC = 30.0  # of a dry run


def extract(
    videos: Sequence[Path | str],
    *,
    store: Path | str,
    backbone: str | None = None,
    recipe: str | None = None,
    weights: str | Path | None = None,
    stride: int | None = None,
    clip_len: int | None = None,
    frame_interval: int | None = None,
    anchor: Literal["start", "centre", "cell"] | None = None,
    fps: float | None = None,
    pixels: str | PixelRecipe | None = None,
    flow: Path | str | None = None,
    dataset: str | None = None,
    annotations: Path | str | None = None,
    device: str = "auto",
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32",
    batch: int | None = None,
    compile: bool = False,
    feature_dtype: Literal["float16", "float32"] = "float16",
    decoder: Literal["pyav", "decord"] = "pyav",
    decoders: int | None = None,
    decode_timeout_sec: float = 60.0,
    on_truncated: Literal["skip", "keep"] = "skip",
    shard_of: tuple[int, int] | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    seed: int = 0,
    dry_run: bool = False,
    calibrate_sec: float = CALIBRATE_SEC,
    progress: Progress = SILENT,
) -> ExtractReport:
    """Extract the features of videos into a store; what the store has is not done again.

    Args:
        videos: files and folders.
        store: a .zarr folder, .h5 file or s3:// address; made if missing.
        backbone: a name of `tadpipe list backbones`; may be left out for a run folder.
        recipe: released features to make again, a name of `tadpipe list recipes`: decides
            backbone, clips, rate and pixels.
        weights: a checkpoint file, "random", the folder of an end-to-end run, or None for the
            named download. A run decides where its snippets or windows are and how its pixels
            are made; only the stride of snippets may differ.
        stride: frames between the starts of neighbouring snippets; default 4.
        clip_len: frames of a snippet; default the backbone's.
        frame_interval: take every n-th frame of a snippet; default 1.
        anchor: where snippets sit, see docs/concepts.md; default "start".
        fps: resample to this rate by presentation times first; None keeps the file's frames.
        pixels: a named recipe or one of your own; None takes the backbone's.
        flow: folder of optical flow computed elsewhere, for a backbone that takes it; None computes
            it from the frames.
        dataset: whose annotations these are: names its file prefix and the labels it drops.
        annotations: kept in the store, so that training needs only the store.
        dtype: arithmetic of the backbone.
        batch: clips per forward pass; default 1 on the CPU and 32 on a GPU. For convolutional
            backbones 8 anywhere, the last batch is padded, and the number is part of the spec.
        feature_dtype: how rows are stored.
        decoders: processes that decode, each a video of its own; default 1 on the CPU, 4 on a GPU.
        on_truncated: "skip" a file that ends early, or "keep" what can be decoded.
        shard_of: (i, n) takes every n-th video from the i-th on.
        workers: processes that share the videos, each with a backbone of its own and, where there
            are GPUs, one of them; None and 1 extract in this process.
        scheduler: address of a Dask cluster whose workers do it instead.
        seed: of random weights.
        calibrate_sec: that a dry run measures this machine for, at most; 0 leaves the hours out.
    Returns:
        What became of each video; `exit_code` is 3 when some failed.
    Raises:
        ConfigError: a wrong option. AnnotationError: defects in the annotations.
        CheckpointError: weights that do not fit. StoreError: the store cannot be read or written.
    """
    files = find_videos([Path(video) for video in videos])
    if shard_of is not None:
        files = shard(files, *shard_of)
    annotated = _read_annotations(annotations, dataset)
    check_workers(workers, scheduler)
    shared = scheduler is not None or (workers or 1) > 1
    check_store(store, several=shared, dry_run=dry_run)
    flow = None if flow is None else Path(flow)
    if flow is not None:
        FlowFiles(flow).check()
    is_here = dry_run or not shared  # else workers compute; a dry run measures this machine
    load_on = _device_to_load_on(device, scheduler, is_here, compile)
    choices = Choices(backbone, stride, clip_len, frame_interval, anchor, fps, pixels)
    if recipe is not None:
        choices = with_recipe(choices, recipe)
    model, spec, known = _load(
        choices,
        weights,
        (on_truncated, dtype, feature_dtype),
        device=load_on,
        compile=compile and is_here,
        batch=batch,
        seed=seed,
        flow=flow,
    )
    source = flow_source(model.pixels, flow)
    if source is not None and scheduler is None and not dry_run:
        source.check()
    if known is not None and not dry_run:
        remember_weights(spec.adapter_sha256 or spec.weights_sha256, known)
    if not is_here:
        from tadpipe.pipeline.extract_cluster import extract_on_cluster
        from tadpipe.pipeline.extract_worker import Job

        del model
        report = extract_on_cluster(
            files,
            Job(
                store=str(store),
                spec=spec,
                weights=known,
                flow=flow,
                device=device,
                batch=batch,
                compile=compile,
                decoder=decoder,
                decoders=decoders,
                decode_timeout_sec=decode_timeout_sec,
            ),
            workers=workers,
            scheduler=scheduler,
            annotations=annotated.raw,
            progress=progress,
        )
    else:
        report = extract_features(
            files,
            model,
            spec,
            store=store,
            annotations=annotated.raw,
            flow=flow,
            device=load_on,
            batch=batch,
            pad=compile,
            decoder=decoder,
            decoders=decoders,
            decode_timeout_sec=decode_timeout_sec,
            dry_run=dry_run,
            calibrate_sec=calibrate_sec,
            progress=progress,
        )
    report.annotated_without_video = annotated.without(files)
    return report


def _device_to_load_on(device: str, scheduler: str | None, is_here: bool, compile: bool) -> str:
    """This process's device; "cpu" where workers compute, who have been asked then.

    Raises:
        ConfigError: no such device, scheduler or compiler.
    """
    load_on = resolve_device(device) if is_here else "cpu"
    if not is_here:
        from tadpipe.pipeline.scheduler_client import check_cluster  # Dask takes a second

        check_cluster(scheduler, device)
    if compile and scheduler is None:
        require_compiler(checked_device(load_on))
    return load_on


def _load(
    choices: Choices,
    weights: Path | str | None,
    handling: Handling,
    *,
    device: str,
    compile: bool,
    batch: int | None,
    seed: int,
    flow: Path | None,
) -> tuple[Backbone, FeatureSpec, KnownWeights | None]:
    """The backbone, the spec of its features and where its weights are."""
    tuned = tuned_backbone(weights)
    if tuned is None:
        model, spec = as_chosen(choices, weights, handling, device, compile, batch, seed)
        known = None if weights is None else KnownWeights(weights, seed)
    else:
        model, spec = as_tuned(tuned, choices, handling, device, compile)
        known = KnownWeights(tuned.file)
    if flow is not None and model.pixels.channels == 2:
        model.pixels = replace(model.pixels, colour="flow-files")
        spec = replace(spec, pixels=model.pixels)
    return model, spec, known


def extract_features(
    files: Sequence[VideoFile],
    model: Backbone,
    spec: FeatureSpec,
    *,
    store: Path | str,
    annotations: bytes | None = None,
    flow: Path | None = None,
    device: str = "cpu",
    batch: int | None = None,
    pad: bool = False,
    decoder: Literal["pyav", "decord"] = "pyav",
    decoders: int | None = None,
    decode_timeout_sec: float = 60.0,
    dry_run: bool = False,
    calibrate_sec: float = CALIBRATE_SEC,
    progress: Progress = SILENT,
) -> ExtractReport:
    """Extract features of a stated spec with a backbone that is loaded already; see `extract`.

    Args:
        model: on `device`; its weights, pixels and channels are those of the spec.
        flow: folder of optical flow, where the spec's pixels are read from files.
        batch: clips per forward pass, where the spec leaves it open.
        pad: fill the last batch, for a compiled backbone with fixed shapes; always done where the
            spec states the batch.
        calibrate_sec: that a dry run measures this machine for, at most.
    """
    started = time.monotonic()
    report = ExtractReport(location(store), spec.fid, dry_run)
    source = flow_source(model.pixels, flow)
    if source is not None and not dry_run:
        source.check()
    with ExitStack() as held:
        processes = [
            held.enter_context(DecodeProcess(decoder, decode_timeout_sec))
            for _ in range(decoders or decoders_of(device))
        ]
        batches = clip_runner(
            model,
            spec,
            processes,
            device=device,
            batch=batch or batch_of(device),
            pad=pad,
            flow=source,
        )
        if dry_run:
            plan_extraction(
                report, files, spec, batches, device=device, calibrate_sec=calibrate_sec
            )
        else:
            opened = FeatureStore.create(report.store)
            if annotations is not None:
                opened.set_annotations(annotations)
            with compiling(spec), opened.writer(spec) as writer:
                ExtractRun(report, opened, writer, batches, progress).over(files)
            report.take(report.videos, files)
    report.seconds = time.monotonic() - started
    return report


class _Annotated(NamedTuple):
    """The annotation file as it is, and the videos it names."""

    raw: bytes | None = None
    names: tuple[str, ...] = ()
    prefix: str = ""  # of video files, absent in the annotations

    def without(self, files: Sequence[VideoFile]) -> list[str]:
        """The annotated videos that none of the files is."""
        there = {file.name for file in files} | {
            file.name.removeprefix(self.prefix) for file in files
        }
        return [name for name in self.names if name not in there]


def _read_annotations(annotations: Path | str | None, dataset: str | None) -> _Annotated:
    """Check the annotation file before anything is extracted for it."""
    spec: DatasetSpec | None = None if dataset is None else resolve("dataset", DATASETS, dataset)
    if annotations is None:
        return _Annotated()
    names = tuple(read_annotations(annotations, spec).videos)
    prefix = "" if spec is None else spec.feature_prefix
    return _Annotated(annotation_copy(annotations, spec), names, prefix)

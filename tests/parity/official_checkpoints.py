"""Official files of a stored case: its weights as a training state, its configuration as YAML.

With the case's features in a store that is all a user has; `imported_detections` goes the way of
the command line from there to segments in seconds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from torch import Tensor

from tadpipe.annotations import Detection
from tadpipe.cli.main import run
from tadpipe.datasets.sources import FeatureSource
from tadpipe.pipeline.detect import detect_on_source
from tadpipe.pipeline.feature_tables import open_tables
from tadpipe.pipeline.official_configs import lifted
from tadpipe.pipeline.recipe import load_detector
from tadpipe.store.feature_store import FeatureStore
from tadpipe.store.metadata import FeatureSpec
from tests.parity.case import Case


class Clip(NamedTuple):
    """Features of one video and how they lie in time."""

    feats: Tensor  # [C, T]
    fps: float
    duration_sec: float
    stride: int
    span: int  # frames of a snippet


def training_state(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a release saves after an epoch: the weights as averaged ones, others as plain ones."""
    parameters = [torch.nn.Parameter(value.clone()) for value in list(weights.values())[:3]]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    sum((p.sum() for p in parameters), torch.zeros(())).backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    averaged = {f"module.{name}": value for name, value in weights.items()}
    return {
        "epoch": 39,
        "state_dict": {
            name: value if "shift_conv" in name else value + 0.25  # DyFADet's are constants
            for name, value in averaged.items()
        },
        "state_dict_ema": averaged,
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "mAP": np.float64(0.6927),
    }


def official_yaml(tables: Mapping[str, Any], clip: Clip) -> str:
    """The configuration as in the release's file, where `dataset` has what both tables share."""
    lifted_tables = lifted(tables)
    model = dict(lifted_tables["model"])
    shared = ("input_dim", "num_classes", "max_seq_len")
    dataset = {key: model.pop(key) for key in shared}
    dataset |= {"feat_stride": clip.stride, "num_frames": clip.span, "crop_ratio": None}
    document = {
        "dataset": dataset,
        "model": {k: v for k, v in model.items() if k not in ("train_cfg", "test_cfg")},
        "train_cfg": dict(lifted_tables["train_cfg"]),
        "test_cfg": dict(lifted_tables["test_cfg"]),
    }
    return yaml.safe_dump(document)


def one_stage_clips(case: Case) -> list[Clip]:
    """The videos of a case that has final detections."""
    if "inference_inputs" in case.config:
        return [
            Clip(
                case.tensor(video["video"]),
                video["fps"],
                video["duration"],
                int(video["feat_stride"]),
                int(video["feat_num_frames"]),
            )
            for video in case.config["inference_inputs"]
        ]
    clips = []
    while f"c_scores_{len(clips)}" in case:
        fps, duration_sec, stride, span = case.read(f"c_meta_{len(clips)}").tolist()
        feats = case.tensor(f"feats_{len(clips)}")
        clips.append(Clip(feats, fps, duration_sec, int(stride), int(span)))
    return clips


def make_store(path: Path, clips: list[Clip]) -> None:
    """A store with the videos "0", "1", ..., in float32 as the case has them."""
    spec = FeatureSpec(
        backbone="official",
        weights_sha256="",
        channels=clips[0].feats.shape[0],
        clip_len=clips[0].span,
        stride=clips[0].stride,
        pixels=None,
        stored_dtype="float32",
    )
    store = FeatureStore.create(path)
    with store.writer(spec) as writer:
        for number, clip in enumerate(clips):
            rows = clip.feats.T.contiguous().numpy()
            fps = Fraction(repr(clip.fps))
            times = (np.arange(len(rows)) * clip.stride + clip.span / 2) / clip.fps
            writer.add(
                str(number),
                hashlib.sha256(rows.tobytes() + bytes([number])).hexdigest(),
                rows,
                times,
                t0=float(times[0]),
                dt=Fraction(clip.stride) / fps,
                fps=fps,
                frames=(len(rows) - 1) * clip.stride + clip.span,
                duration_sec=clip.duration_sec,
            )


def imported_detections(
    folder: Path, detector: str, state: Mapping[str, Any], config: str | None, clips: list[Clip]
) -> list[list[Detection]]:
    """Import by the command line, load the run folder, detect on the store.

    Returns:
        Detections of each clip, best first; labels are the class numbers as text.
    """
    checkpoint, store = folder / "epoch_039.pth.tar", folder / "store.zarr"
    torch.save(dict(state), checkpoint)
    make_store(store, clips)
    names = state["state_dict_ema" if "state_dict_ema" in state else "state_dict"]
    heads = [value for name, value in names.items() if name.endswith("cls_head.conv.bias")]
    labels = folder / "labels.txt"
    labels.write_text("\n".join(map(str, range(len(heads[0])))), encoding="utf-8")
    arguments = ["checkpoint", "import", str(checkpoint), "--from", detector, "--json"]
    arguments += ["--features", str(store), "--labels", str(labels), "--device", "cpu"]
    arguments += ["--out", str(folder / "run")]
    if config is not None:
        (folder / "official.yaml").write_text(config, encoding="utf-8")
        arguments += ["--config", str(folder / "official.yaml")]
    assert run(arguments) == 0
    trained = load_detector(folder / "run")
    source = FeatureSource(open_tables([store]))
    videos = {str(number): str(number) for number in range(len(clips))}
    found = detect_on_source(
        trained.model,
        source,
        videos,
        trained.recipe,
        durations_sec={name: clips[int(name)].duration_sec for name in videos},
    )
    return [found[name] for name in videos]


def import_class_agnostic(folder: Path, case: Case) -> None:
    """Import one of the two ETAD by the command line, as `folder`/run.

    Training states of ETAD hold no averaged weights.
    """
    is_release = "MODEL" in case.config["config"]
    detector = "etad" if is_release else "etad-opentad"
    state = training_state(case.weights())
    state["state_dict"] = state.pop("state_dict_ema")
    checkpoint, store, config = (folder / name for name in ("last.pth", "s.zarr", "etad.json"))
    torch.save(state, checkpoint)
    make_store(store, [Clip(case.tensor("features")[0], 30.0, 10.0, 4, 16)])
    config.write_text(json.dumps(case.config["config"]), encoding="utf-8")  # JSON is YAML
    arguments = ["checkpoint", "import", str(checkpoint), "--from", detector, "--device", "cpu"]
    arguments += ["--preset", f"{detector}/default", "--config", str(config)]
    arguments += ["--features", str(store), "--out", str(folder / "run")]
    arguments += [] if is_release else ["--set", "model.cell_offset_grid=0.0"]
    assert run(arguments) == 0

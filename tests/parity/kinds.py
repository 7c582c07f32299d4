"""Which module runs which kind of case; a new kind is one line here.

The kind is the name of the folder a case lies in; a case that lies elsewhere is told by content.
"""

from __future__ import annotations

from importlib import import_module

from tests.parity.case import Case, Runner

KINDS = {
    "actionformer": "tests.parity.anchor_free",
    "adatad": "tests.parity.adatad",
    "adatad_cnn": "tests.parity.adatad_cnn",
    "asl": "tests.parity.asl",
    "cltdr_gmg": "tests.parity.cltdr_gmg",
    "detad": "tests.parity.detad",
    "dyfadet": "tests.parity.dyfadet",
    "etad": "tests.parity.etad",
    "frame_indices": "tests.parity.frame_indices",
    "i3d": "tests.parity.i3d",
    "imported": "tests.parity.imported",
    "map": "tests.parity.detection_map",
    "nms": "tests.parity.nms",
    "preprocess": "tests.parity.preprocess",
    "r2plus1d": "tests.parity.r2plus1d",
    "sampling": "tests.parity.sampling",
    "slowfast": "tests.parity.slowfast",
    "slowonly": "tests.parity.slowonly",
    "tridet": "tests.parity.anchor_free",
    "tsm": "tests.parity.tsm",
    "videomae": "tests.parity.videomae",
    "videoswin": "tests.parity.videoswin",
}


class UnknownKindError(ValueError):
    """No module runs this case."""


def kind_of(case: Case) -> str:
    """The kind of a case by its folder, else by what it holds."""
    for folder in (case.path.parent.name, case.path.parent.parent.name):
        if folder in KINDS:
            return folder
    config, arrays = case.config, case.arrays
    source = str(config.get("source", "")).lower()
    if "cases" in config and "frame_inds_0" in arrays:
        return "frame_indices"
    if "videomaev2" in arrays:
        return "preprocess"
    if "segs" in arrays or "in_segs" in arrays:
        return "nms"
    if "fp_error_counts" in arrays or "detad" in source:
        return "detad"
    if "tiou_thresholds" in config and "label_to_id" in config:
        return "map"
    if "frames_uint8" in arrays or "tia" in arrays:
        return "adatad"
    if "first4_layer1" in arrays and "layers" in config.get("config", {}):
        return "r2plus1d"
    if "input_first8" in arrays and ("i3d" in source or "first4_Mixed_3b" in arrays):
        return "i3d"
    if "tsm" in source and "input_first8" in arrays:
        return "tsm"
    if "pixel_values" in arrays or "videomae" in source:
        return "videomae"
    if "cltdr" in source:
        return "cltdr_gmg"
    if "asl paper" in source:
        return "asl"
    for name in ("actionformer", "dyfadet", "tridet"):
        if name in source:
            return name
    raise UnknownKindError(
        f"{case.path}: unknown kind of case (folder '{case.path.parent.name}'). "
        f"Known kinds: {', '.join(sorted(KINDS))}."
    )


def run(case: Case) -> None:
    """Make every comparison of the case."""
    runner: Runner = import_module(KINDS[kind_of(case)]).run
    runner(case)

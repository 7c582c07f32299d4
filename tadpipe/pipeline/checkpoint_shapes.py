"""What the names and shapes in a detector's checkpoint tell: which detector, and its Config.

Names are those of the official releases (ASL has none: they are ours). A field is only told if the
shapes leave no choice; window length, pooling ranges, heads of the attention and everything of
training are in no checkpoint.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from tadpipe.detectors.parts.pyramid import per_level
from tadpipe.detectors.tridet import wide_kernel

ENCODER = r"(?:backbone|encoder)\."
BLOCK = ENCODER + r"(?:stem|branch)\.\d+\."
BRANCH = ENCODER + r"branch\.(\d+)\."
LAST = r"cls_head\.cls_head\.conv\."

# Fields of which many values mean the same shapes.
ANY_OF_MANY = {"sgp_factor", "dyne_factor"}


class Shapes:
    """The shapes of a state dict, asked by patterns of whole names."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.shapes = {name: tuple(value.shape) for name, value in state.items()}

    def sizes(self, pattern: str, axis: int) -> list[int]:
        """The size of an axis in all tensors of that name."""
        matching = (shape for name, shape in self.shapes.items() if re.fullmatch(pattern, name))
        return [shape[axis] for shape in matching if axis < len(shape)]

    def size(self, pattern: str, axis: int) -> int | None:
        """The most common size: one misshapen tensor is named by the strict load, not followed."""
        sizes = Counter(self.sizes(pattern, axis))
        return sizes.most_common(1)[0][0] if sizes else None

    def has(self, pattern: str) -> bool:
        """Whether a name begins like this."""
        return any(re.match(pattern, name) for name in self.shapes)

    def count(self, pattern: str) -> int:
        """One more than the highest number of the pattern's group, matched from a name's start."""
        found = (re.match(pattern, name) for name in self.shapes)
        return max((int(match[1]) for match in found if match), default=-1) + 1


# Names that only one detector has; the first that is there tells.
SIGNATURES: dict[str, str] = {
    "etad": r"(base_detector\.)?(temporal_enhance|stage_pem)\.",
    "etad-opentad": r"(roi_head\.proposal_heads|neck\.mem_[fb])\.",
    "asl": r"encoder\.(stem|branch)\.\d+\.attn\.[qkv]_[td]\.",
    "cltdr-gmg": r"(refineHead|decls|dereg|cross_level)\.|backbone\.(stem|branch)\.\d+\.w1$",
    "dyfadet": r"(cls|reg)_head\.head\.\d+\.(dynamic_convs|depth_module)\.",
    "actionformer": r"backbone\.(stem|branch)\.\d+\.attn\.query_conv\.",
    "tridet": r"(start_head|end_head)\.",
}
SGP = r"backbone\.(stem|branch)\.\d+\.(psi|convkw|global_fc)\."
CONVOLUTIONAL = r"backbone\.(stem|branch)\.\d+\.conv1\."


def detectors_like(state: Mapping[str, Tensor]) -> list[str]:
    """The detectors these names can be of, most often one; none for anything else.

    Plain heads on TriDet's encoder may be TriDet's or DyFADet's, which differ in a ReLU; the
    convolutional encoder with plain heads may be of three.
    """
    shapes = Shapes(state)
    for detector, signature in SIGNATURES.items():
        if shapes.has(signature):
            return [detector]
    if shapes.has(SGP):
        return ["tridet", "dyfadet"]
    return ["actionformer", "tridet", "dyfadet"] if shapes.has(CONVOLUTIONAL) else []


def told_by_shapes(
    detector: str, state: Mapping[str, Tensor], stated: Mapping[str, Any]
) -> dict[str, Any]:
    """Fields of the detector's Config that the shapes tell.

    Args:
        state: official names, without the prefix of data-parallel training.
        stated: what preset and official configuration say; of two values that mean the same shapes
            (windows, the factor of a kernel) the stated one is kept.
    """
    told = READERS[detector](Shapes(state), stated)
    return {field: value for field, value in told.items() if value is not None}


def _pyramid(shapes: Shapes) -> dict[str, Any]:
    """Encoder, neck and static heads, which all one-stage detectors have."""
    embed_layers = shapes.count(ENCODER + r"embd\.(\d+)\.")
    head_layers = shapes.count(r"cls_head\.head\.(\d+)\.") + 1
    neck_width = shapes.size(r"neck\.fpn_norms\.\d+\.weight", 1)
    has_fpn = shapes.has(r"neck\.(lateral|fpn)_convs\.")
    told: dict[str, Any] = {
        "in_channels": shapes.size(ENCODER + r"embd\.0\.conv\.weight", 1),
        "num_classes": shapes.size(LAST + r"(weight|bias)", 0),
        "embed_layers": embed_layers,
        "stem_layers": shapes.count(ENCODER + r"stem\.(\d+)\."),
        "branch_layers": shapes.count(ENCODER + r"branch\.(\d+)\."),
        "embed_dim": shapes.size(ENCODER + r"embd\.\d+\.conv\.weight", 0),
        "embed_kernel": shapes.size(ENCODER + r"embd\.\d+\.conv\.weight", 2),
        "embed_norm": shapes.has(ENCODER + r"embd_norm\.\d") if embed_layers else None,
        "neck": "fpn" if has_fpn else "identity",
        "neck_dim": neck_width or shapes.size(r"(cls|reg)_head\.head\.0\.conv\.weight", 1),
        "neck_norm": neck_width is not None,
        "head_kernel": shapes.size(LAST + "weight", 2),
        "head_layers": head_layers,
        "head_norm": shapes.has(r"cls_head\.norm\.\d") if head_layers > 1 else None,
        "head_dim": shapes.size(LAST + "weight", 1) if head_layers > 1 else None,
    }
    if shapes.has(BLOCK) and not shapes.has(CONVOLUTIONAL):
        scales = shapes.has(BLOCK + r"drop_path_\w+\.scale")
        told["drop_path"] = None if scales else 0.0  # with scales any share above 0
    return told


def _actionformer(shapes: Shapes, stated: Mapping[str, Any]) -> dict[str, Any]:
    told = _pyramid(shapes)
    sources = shapes.count(r"backbone\.proj\.(\d+)\.")
    if sources:
        names = [rf"backbone\.proj\.{i}\.conv\.weight" for i in range(sources)]
        told["in_channels"] = tuple(shapes.size(name, 1) for name in names)
        told["embed_dim"] = tuple(shapes.size(name, 0) for name in names)
    told["backbone"] = "conv" if shapes.has(CONVOLUTIONAL) else "transformer"
    used = shapes.count(r"reg_head\.scale\.(\d+)\.")
    told["start_level"] = told["branch_layers"] + 1 - used if used else None
    told |= _attention(shapes, stated)
    return told


def _attention(shapes: Shapes, stated: Mapping[str, Any]) -> dict[str, Any]:
    """Stride of the branch, and what a relative bias [1, 1, heads, window] tells."""
    kernel = shapes.size(r"backbone\.branch\.\d+\.attn\.query_conv\.conv\.weight", 2)
    told: dict[str, Any] = {"scale_factor": None if kernel is None else kernel - 1}
    if shapes.has(BLOCK + r"attn\.rel_pe"):
        told["rel_pos"] = True
        told["num_heads"] = shapes.size(BLOCK + r"attn\.rel_pe", 2)
        levels = [r"stem\.\d+", *(rf"branch\.{i}" for i in range(shapes.count(BRANCH)))]
        sizes = [shapes.size(rf"backbone\.{level}\.attn\.rel_pe", 3) for level in levels]
        told["attention_windows"] = _per_level(
            sizes,
            stated.get("attention_windows"),
            filler=-1,  # without a bias a level attends to everything
            leaves_none=lambda window: window <= 1,
        )
    return told


def _asl(shapes: Shapes, stated: Mapping[str, Any]) -> dict[str, Any]:
    told = _pyramid(shapes)
    kernel = shapes.size(r"encoder\.branch\.\d+\.attn\.convs\.0\.conv\.weight", 2)
    told["attention_convs"] = shapes.has(r"encoder\.(stem|branch)\.\d+\.attn\.convs\.")
    told["scale_factor"] = None if kernel is None else kernel - 1
    return told


def _windows(shapes: Shapes, layer: str, stated: Any) -> int | tuple[int, ...] | None:
    """Depth-wise windows per level; the first entry only pads, so that no tensor has it."""
    count = shapes.count(BRANCH)
    sizes = [shapes.size(rf"backbone\.branch\.{i}\.{layer}\.weight", 2) for i in range(count)]
    if not sizes or None in sizes:
        return None
    return _per_level([None, *sizes], stated, filler=1, leaves_none=lambda _: True)


def _per_level(
    sizes: Sequence[int | None], stated: Any, *, filler: int, leaves_none: Callable[[int], bool]
) -> int | tuple[int, ...]:
    """One number per level, as stated where that means the same tensors.

    Args:
        sizes: None where a level has no such tensor.
        filler: the number of such a level, if `stated` does not fit.
        leaves_none: whether a stated number means no tensor.
    """
    if stated is not None:
        given = per_level(stated, len(sizes))
        pairs = zip(given, sizes, strict=False)
        agree = (leaves_none(n) if size is None else n == size for n, size in pairs)
        if len(given) == len(sizes) and all(agree):
            return stated if isinstance(stated, int) else tuple(stated)
    return tuple(filler if size is None else size for size in sizes)


def _sgp(shapes: Shapes, stated: Mapping[str, Any], windows: str, factor: str) -> dict[str, Any]:
    """TriDet's encoder: windows, and a factor that gives the wide kernels their sizes."""
    told = _pyramid(shapes)
    told["mlp_dim"] = shapes.size(r"backbone\.(stem|branch)\.\d+\.mlp\.0\.weight", 0)
    told[windows] = _windows(shapes, "psi", stated.get(windows))
    pairs = _kernel_pairs(shapes)
    fits = (
        float(k)
        for k in (stated.get(factor), *_factors(pairs))
        if k is not None and all(wide_kernel(narrow, float(k)) == wide for narrow, wide in pairs)
    )
    told[factor] = next(fits, None) if pairs else None
    return told


def _kernel_pairs(shapes: Shapes) -> list[tuple[int, int]]:
    """(window, wide kernel) of every block."""
    pairs = set()
    for name, shape in shapes.shapes.items():
        match = re.fullmatch(r"(backbone\.(?:stem|branch)\.\d+\.)psi\.weight", name)
        wide = shapes.shapes.get(f"{match[1]}convkw.weight") if match else None
        if wide is not None and len(shape) == len(wide) == 3:
            pairs.add((shape[2], wide[2]))
    return sorted(pairs)


def _factors(pairs: list[tuple[int, int]]) -> list[float]:
    """Factors that can give the wide kernels: those in the middle and at the ends of what may."""
    steps = (0.0, 0.5, 1.0, 1.49, -0.49)  # rounding, then up to odd
    return [(wide - step) / (narrow + 1) for narrow, wide in pairs for step in steps]


def _trident(shapes: Shapes) -> dict[str, Any]:
    has_bins = shapes.has(r"start_head\.")
    channels = shapes.size(r"reg_head\.offset_head\.conv\.(weight|bias)", 0)
    return {
        "downsample": "avg" if shapes.has(r"backbone\.branch\.\d+\.downsample\.1\.") else "max",
        "trident": has_bins,
        "num_bins": channels // 2 - 1 if has_bins and channels else None,
        "boundary_kernel": shapes.size(r"(start|end)_head\.cls_head\.conv\.weight", 2),
    }


def _tridet(shapes: Shapes, stated: Mapping[str, Any]) -> dict[str, Any]:
    told = _sgp(shapes, stated, "sgp_windows", "sgp_factor") | _trident(shapes)
    return told | {"backbone": "conv" if shapes.has(CONVOLUTIONAL) else "sgp"}


def _dyfadet(shapes: Shapes, stated: Mapping[str, Any]) -> dict[str, Any]:
    told = _sgp(shapes, stated, "dyne_windows", "dyne_factor")
    told["backbone"] = "conv" if shapes.has(CONVOLUTIONAL) else "dyne"
    del told["head_norm"]
    path = r"cls_head\.head\.0\.dynamic_convs\.0\."
    told["dynamic_head"] = shapes.has(path)
    if told["dynamic_head"]:
        gates = shapes.size(path + r"kernel_conv\.gate_conv\.bias", 0)
        dense = shapes.size(path + r"kernel_conv\.gate_conv\.weight", 1) != 1
        width = shapes.size(path + r"norm\.weight", 1)
        told["neck_dim"] = told["neck_dim"] or width
        told["dynamic_type"] = "k" if dense else "c" if gates == width else "ck"
    return told


def _cltdr_gmg(shapes: Shapes, stated: Mapping[str, Any]) -> dict[str, Any]:
    told = _pyramid(shapes) | _trident(shapes)
    del told["neck_dim"]
    told["backbone"] = "conv" if shapes.has(CONVOLUTIONAL) else "gmg"
    told["mlp_dim"] = shapes.size(r"backbone\.(stem|branch)\.\d+\.mlp\.0\.weight", 0)
    told["local_windows"] = _windows(shapes, "convw", stated.get("local_windows"))
    return told


def _etad(shapes: Shapes, stated: Mapping[str, Any]) -> dict[str, Any]:
    base = r"(?:base_detector\.)?"
    ext = base + r"stage_pem\.\d+\.reduce_dim_ext\.0\.weight"
    quarter = shapes.size(base + r"temporal_enhance\.layer1\.0\.weight", 1)
    width = shapes.size(base + r"temporal_enhance\.layer1\.0\.weight", 0)
    flat = shapes.size(ext, 1)
    return {
        "in_channels": None if quarter is None else 4 * quarter,  # convolutions in 4 groups
        "num_classes": 1,
        "width": width,
        "mid_dim": shapes.size(ext, 0),
        "fc_dim": shapes.size(base + r"stage_pem\.\d+\.iou_fc\.0\.weight", 0),
        "roi_bins": flat // (width // 2) if flat and width else None,
    }


def _etad_opentad(shapes: Shapes, stated: Mapping[str, Any]) -> dict[str, Any]:
    trunk = r"roi_head\.proposal_heads\.\d+\.shared_conv_fc\.fcs\.0\.0\.weight"
    head = r"roi_head\.proposal_heads\.\d+\.iou_head\.fcs\."
    quarter = shapes.size(r"projection\.convs\.0\.conv\.weight", 1)
    width = shapes.size(r"projection\.convs\.0\.conv\.weight", 0)
    flat = shapes.size(trunk, 1)
    return {
        "in_channels": None if quarter is None else 4 * quarter,
        "num_classes": 1,
        "width": width,
        "trunk_dim": shapes.size(trunk, 0),
        "fc_dim": shapes.size(head + r"0\.0\.weight", 0),
        "fc_layers": shapes.count(head + r"(\d+)\.") or None,
        "roi_bins": flat // width if flat and width else None,
    }


READERS: dict[str, Callable[[Shapes, Mapping[str, Any]], dict[str, Any]]] = {
    "actionformer": _actionformer,
    "asl": _asl,
    "cltdr-gmg": _cltdr_gmg,
    "dyfadet": _dyfadet,
    "etad": _etad,
    "etad-opentad": _etad_opentad,
    "tridet": _tridet,
}

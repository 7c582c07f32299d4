"""The configurations of the official releases in our words; the only place that maps them.

A release's configuration is nested tables (`model`, `train_cfg`, `test_cfg`, `dataset`; ETAD writes
them in capitals, OpenTAD's ETAD names its modules). A `Key` says where a value is there and
what it is called here. What a configuration does not say is left out: nothing is filled in here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tadpipe.config import build
from tadpipe.detectors import DETECTORS
from tadpipe.detectors.parts.decode import DecodeConfig
from tadpipe.detectors.parts.nms import NmsConfig
from tadpipe.errors import ConfigError
from tadpipe.registry import resolve

Tables = Mapping[str, Any]

ABSENT = object()
ACTIVATIONS = {"grelu": "gelu", "lrelu": "lrelu"}  # of DyFADet's class head; anything else is ReLU
GATES = {"GeReTanH": "geretanh", "ReTanH": "retanh", "ReLU": "relu", "Sigmoid": "sigmoid"}


class Key(NamedTuple):
    """One value of a configuration."""

    theirs: str  # path, e.g. "model.embd_dim"
    ours: str  # field of our configuration
    convert: Callable[[Any], Any] = lambda value: value


class Told(NamedTuple):
    """What a configuration says about one of our fields."""

    value: Any
    key: str  # where it says so


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _ranges(value: Sequence[Sequence[float]]) -> tuple[tuple[float, float], ...]:
    return tuple((float(low), float(high)) for low, high in value)


def _encoder(name: str) -> Callable[[Any], str]:
    """ "conv" is the ablation every release shares; anything else is the release's own encoder."""
    return lambda value: "conv" if value == "conv" else name


def _item(index: int) -> Callable[[Any], Any]:
    return lambda value: value[index]


PYRAMID = (
    Key("model.num_classes", "num_classes"),
    Key("model.max_seq_len", "window_len"),
    Key("model.backbone_arch", "embed_layers", _item(0)),
    Key("model.backbone_arch", "stem_layers", _item(1)),
    Key("model.backbone_arch", "branch_layers", _item(2)),
    Key("model.embd_kernel_size", "embed_kernel"),
    Key("model.embd_with_ln", "embed_norm"),
    Key("model.use_abs_pe", "abs_pos"),
    Key("model.fpn_type", "neck"),
    Key("model.fpn_with_ln", "neck_norm"),
    Key("model.regression_range", "regression_ranges", _ranges),
    Key("model.head_dim", "head_dim"),
    Key("model.head_kernel_size", "head_kernel"),
    Key("model.head_num_layers", "head_layers"),
    Key("model.max_buffer_len_factor", "max_buffer_len_factor"),
    Key("train_cfg.loss_weight", "loss_weight"),
    Key("train_cfg.cls_prior_prob", "prior_prob"),
    Key("train_cfg.head_empty_cls", "empty_classes", _tuple),
    Key("train_cfg.label_smoothing", "label_smoothing"),
    Key("train_cfg.droppath", "drop_path"),
    Key("train_cfg.init_loss_norm", "init_loss_norm"),
)
WIDTHS = (
    Key("model.scale_factor", "scale_factor"),
    Key("model.fpn_dim", "neck_dim"),
)
ONE_SOURCE = (
    Key("model.input_dim", "in_channels"),
    Key("model.embd_dim", "embed_dim"),
    Key("model.init_conv_vars", "conv_init_std"),
    Key("model.input_noise", "input_noise"),
)
TRIDENT = (
    Key("model.sgp_mlp_dim", "mlp_dim"),
    Key("model.downsample_type", "downsample"),
    Key("model.head_with_ln", "head_norm"),
    Key("model.use_trident_head", "trident"),
    Key("model.boudary_kernel_size", "boundary_kernel"),
    Key("model.num_bins", "num_bins"),
    Key("model.iou_weight_power", "iou_power"),
)
MODEL_KEYS: dict[str, tuple[Key, ...]] = {
    "actionformer": (
        *PYRAMID,
        *WIDTHS,
        Key("model.backbone_type", "backbone", _encoder("transformer")),
        Key("model.input_dim", "in_channels", _tuple),
        Key("model.embd_dim", "embed_dim", _tuple),
        Key("model.n_head", "num_heads"),
        Key("model.n_mha_win_size", "attention_windows", _tuple),
        Key("model.use_rel_pe", "rel_pos"),
        Key("model.fpn_start_level", "start_level"),
        Key("model.head_with_ln", "head_norm"),
        Key("train_cfg.dropout", "dropout"),
    ),
    "tridet": (
        *PYRAMID,
        *WIDTHS,
        *ONE_SOURCE,
        *TRIDENT,
        Key("model.backbone_type", "backbone", _encoder("sgp")),
        Key("model.n_sgp_win_size", "sgp_windows", _tuple),
        Key("model.k", "sgp_factor"),
    ),
    "dyfadet": (
        *PYRAMID,
        *WIDTHS,
        *ONE_SOURCE,
        Key("model.backbone_type", "backbone", _encoder("dyne")),
        Key("model.n_encoder_win_size", "dyne_windows", _tuple),
        Key("model.k", "dyne_factor"),
        Key("model.mlp_dim", "mlp_dim"),
        Key("model.dyn_head_flag", "dynamic_head"),
        Key("model.dyn_head.dyn_type", "dynamic_type"),
        Key("model.dyn_head.type", "gate", lambda value: GATES.get(value, value)),
        Key("model.dyn_head.tau", "gate_tau"),
        Key("model.head_act", "head_activation", lambda value: ACTIVATIONS.get(value, "relu")),
    ),
    "cltdr-gmg": (
        *PYRAMID,
        *ONE_SOURCE,
        *TRIDENT,
        Key("model.backbone_type", "backbone", _encoder("gmg")),
        Key("model.n_sgp_win_size", "local_windows", _tuple),
    ),
    "etad": (
        Key("DATASET.tscale", "window_len"),
        Key("DATASET.dscale", "max_duration"),
        Key("MODEL.in_channels", "in_channels"),
        Key("MODEL.roi_size", "roi_bins"),
        Key("MODEL.extend_ratio", "extend_ratio"),
        Key("MODEL.stage", "stage_tious", _tuple),
        Key("LOSS.pos_thresh", "positive_tiou"),
        Key("LOSS.coef_pem_cls", "iou_cls_weight"),
        Key("LOSS.coef_pem_reg", "iou_reg_weight"),
        Key("LOSS.coef_pem_bnd", "offset_weight"),
        Key("SAMPLING_RATIO.proposal", "dps_ratio"),
        Key("SAMPLING_STRATEGY.proposal", "dps_strategy"),
    ),
    "etad-opentad": (
        Key("projection.in_channels", "in_channels"),
        Key("projection.out_channels", "width"),
        Key("rpn_head.loss.pos_thresh", "positive_snippet"),
        Key("roi_head.proposal_generator.tscale", "window_len"),
        Key("roi_head.proposal_generator.dscale", "max_duration"),
        Key("roi_head.proposal_generator.sampling_ratio", "dps_ratio"),
        Key("roi_head.proposal_generator.strategy", "dps_strategy"),
        Key("roi_head.proposal_roi_extractor.roi_size", "roi_bins"),
        Key("roi_head.proposal_roi_extractor.extend_ratio", "extend_ratio"),
        Key("roi_head.stages.pos_iou_thresh", "stage_tious", _tuple),
        Key("roi_head.stages.loss_weight", "stage_weights", _tuple),
        Key("roi_head.proposal_head.feat_channels", "trunk_dim"),
        Key("roi_head.proposal_head.fcs_channels", "fc_dim"),
        Key("roi_head.proposal_head.fcs_num", "fc_layers"),
        Key("roi_head.proposal_head.loss.cls_weight", "iou_cls_weight"),
        Key("roi_head.proposal_head.loss.reg_weight", "iou_reg_weight"),
        Key("roi_head.proposal_head.loss.boundary_weight", "offset_weight"),
    ),
}
# Values that our detectors have no field for, as only this one is published.
FIXED: dict[str, tuple[tuple[str, Any], ...]] = {
    "cltdr-gmg": (("model.scale_factor", 2),),
    "etad-opentad": (
        ("projection.num_convs", 1),
        ("roi_head.proposal_roi_extractor.base_stride", 1),
    ),
}
DECODE_KEYS = (
    Key("test_cfg.pre_nms_thresh", "pre_nms_threshold"),
    Key("test_cfg.pre_nms_topk", "pre_nms_topk"),
    Key("test_cfg.duration_thresh", "min_length_grid"),
)
NMS_KEYS = (
    Key("test_cfg.nms_method", "method"),
    Key("test_cfg.nms_sigma", "sigma"),
    Key("test_cfg.iou_threshold", "iou_threshold"),
    Key("test_cfg.min_score", "min_score"),
    Key("test_cfg.max_seg_num", "max_segments"),
    Key("test_cfg.multiclass_nms", "multiclass"),
    Key("test_cfg.voting_thresh", "vote_threshold", lambda value: max(value, 0.0)),
)
ETAD_NMS_KEYS = (
    Key("DETECTION_POST.sigma", "sigma"),
    Key("DETECTION_POST.iou_threshold", "iou_threshold"),
)
WINDOW_KEYS = (
    Key("dataset.force_upsampling", "fit", lambda value: "resize" if value else "pad"),
    Key("dataset.trunc_thresh", "keep_ratio"),
    Key("dataset.crop_ratio", "crop_ratio", lambda value: tuple(value or ())),
    Key("dataset.num_classes", "class_agnostic", lambda value: value == 1),
)
ONE_STAGE = ("actionformer", "tridet", "dyfadet", "cltdr-gmg")


def model_fields(detector: str, tables: Tables) -> dict[str, Told]:
    """What a configuration says about the detector's own Config, by our field.

    Raises:
        ConfigError: a value of another kind, or one that no published model has.
    """
    for path, value in FIXED.get(detector, ()):
        found = find(tables, path)
        if found not in (ABSENT, value):
            raise ConfigError(
                "The official configuration has a value that is not supported.",
                f"{path} = {found!r}",
                f"Only {path} = {value!r} is published and known.",
            )
    fields = _told(tables, MODEL_KEYS[detector])
    sample = find(tables, "train_cfg.center_sample")
    if sample is not ABSENT:
        radius = find(tables, "train_cfg.center_sample_radius")
        if sample != "radius":
            fields["centre_radius"] = Told(0.0, "train_cfg.center_sample")
        elif radius is not ABSENT:
            fields["centre_radius"] = Told(radius, "train_cfg.center_sample_radius")
    if detector in ("etad", "etad-opentad") and tables:
        fields["num_classes"] = Told(1, "proposals have no class")
    return fields


def decode_fields(detector: str, tables: Tables) -> dict[str, Told]:
    """What a configuration says about our DecodeConfig."""
    return _told(tables, DECODE_KEYS) if detector in ONE_STAGE else {}


def nms_fields(detector: str, tables: Tables) -> dict[str, Told]:
    """What a configuration, and the release's own voting rule, say about our NmsConfig."""
    if detector == "etad":
        return _told(tables, ETAD_NMS_KEYS)
    if detector not in ONE_STAGE:
        return {}
    weight = "score*tiou" if detector == "actionformer" else "score"
    return {**_told(tables, NMS_KEYS), "vote_weight": Told(weight, "the release's voting rule")}


def window_fields(detector: str, tables: Tables) -> dict[str, Told]:
    """What a configuration says about our WindowConfig."""
    return _told(tables, WINDOW_KEYS) if detector in ONE_STAGE else {}


def model_config(detector: str, tables: Tables, also: Mapping[str, Any] | None = None) -> Any:
    """The detector's Config from a configuration that says everything.

    Args:
        also: fields of ours that the release keeps in its source.
    Raises:
        ConfigError: something is missing or wrong.
    """
    cls = resolve("detector", DETECTORS, detector).Config
    fields = {name: told.value for name, told in model_fields(detector, tables).items()}
    return build(cls, {**fields, **(also or {})}, f"official configuration of {detector}")


def decode_config(detector: str, tables: Tables) -> DecodeConfig:
    """Our DecodeConfig from a configuration that says everything."""
    fields = {name: told.value for name, told in decode_fields(detector, tables).items()}
    return build(DecodeConfig, fields, "test_cfg")


def nms_config(detector: str, tables: Tables) -> NmsConfig:
    """Our NmsConfig from a configuration that says everything."""
    fields = {name: told.value for name, told in nms_fields(detector, tables).items()}
    return build(NmsConfig, fields, "test_cfg")


def lifted(tables: Tables) -> Tables:
    """Tables as in the file, when `train_cfg` and `test_cfg` are inside `model`.

    The release's loader puts them there, and `input_dim`, `num_classes` and `max_seq_len` of
    `dataset` too, before it builds a model.
    """
    model = tables.get("model")
    if not isinstance(model, Mapping):
        return tables
    inside = {key: model[key] for key in ("train_cfg", "test_cfg") if key in model}
    dataset = tables.get("dataset")
    if isinstance(dataset, Mapping):
        shared = ("input_dim", "num_classes", "max_seq_len")
        model = {**{key: dataset[key] for key in shared if key in dataset}, **model}
    return {**inside, **tables, "model": model}


def known_keys(detector: str) -> set[str]:
    """Every path that is read from a configuration of this detector."""
    keys: Iterable[Key] = MODEL_KEYS[detector]
    if detector in ONE_STAGE:
        keys = (*keys, *DECODE_KEYS, *NMS_KEYS, *WINDOW_KEYS)
    elif detector == "etad":
        keys = (*keys, *ETAD_NMS_KEYS)
    return {key.theirs for key in keys} | {path for path, _ in FIXED.get(detector, ())}


def find(tables: Tables, path: str) -> Any:
    """The value at a path, ABSENT where a table or key is not there."""
    value: Any = tables
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return ABSENT
        value = value[part]
    return value


def _told(tables: Tables, keys: Sequence[Key]) -> dict[str, Told]:
    told = {}
    for key in keys:
        value = find(tables, key.theirs)
        if value is ABSENT:
            continue
        try:
            told[key.ours] = Told(key.convert(value), key.theirs)
        except (TypeError, ValueError, LookupError):
            raise ConfigError(
                "A value of the official configuration is not of the expected kind.",
                f"{key.theirs} = {value!r}",
            ) from None
    return told

"""Backbones by name: build, load strictly, place, choose precision; and our own weight files.

`load_backbone` is the only way the rest of tadpipe gets a backbone. There are no silent random
weights: they must be asked for by name.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save as serialise
from torch import Tensor, nn

from tadpipe.backbones import BACKBONES
from tadpipe.backbones.checkpoints import (
    Checkpoint,
    load_strictly,
    read_checkpoint,
    state_sha256,
)
from tadpipe.backbones.named_weights import default_weights
from tadpipe.backbones.protocol import Backbone, RemappedState
from tadpipe.backbones.tia import (
    Adaptable,
    AdapterConfig,
    adapter_parameters,
    add_adapters,
)
from tadpipe.config import (
    PixelRecipe,
    build,
    canonical_json,
    digest,
    to_mapping,
    write_atomically,
)
from tadpipe.errors import CheckpointError, ConfigError
from tadpipe.registry import resolve

logger = logging.getLogger(__name__)

RANDOM = "random"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FORMAT = "tadpipe-backbone-1"


def load_backbone(
    name: str,
    weights: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32",
    compile: bool = False,
    seed: int = 0,
    pixels: PixelRecipe | None = None,
) -> Backbone:
    """Build a backbone, load its weights strictly and make it ready for features.

    Args:
        name: a key of `BACKBONES`.
        weights: a file in the official, Hugging Face, mmaction2 or our own layout; None for the
            published weights of that name; "random" for an initialisation drawn from `seed`.
        dtype: of the matrix products; norms, sums, pooling and features stay float32.
        compile: run the trunk through torch.compile (fixed shapes).
        pixels: another recipe than the backbone's own.
    Returns:
        The backbone in evaluation mode on `device`, without a classification head.
    Raises:
        ConfigError: unknown name, dtype or device, or no compiler for `compile`.
        CheckpointError: weights that are not here, unreadable or do not fit.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"Unknown dtype '{dtype}'.", todo=f"Known: {', '.join(DTYPES)}.")
    target = checked_device(device)
    builder = resolve("backbone", BACKBONES, name)
    if weights == RANDOM:
        backbone = _random(builder, seed)
    else:
        path = default_weights(name) if weights is None else Path(weights)
        backbone = _from_file(name, builder, read_checkpoint(path))
    if pixels is not None:
        backbone.pixels = pixels
    assert isinstance(backbone, nn.Module)
    backbone.eval().to(target)
    backbone.set_matmul_dtype(DTYPES[dtype])
    if compile:
        require_compiler(target)
        backbone.compile_trunk()
    return backbone


def save_backbone(path: Path, backbone: Backbone) -> None:
    """Write weights, builder name, builder arguments and pixel recipe as one safetensors file.

    Adapters are part of the weights; their configuration stands beside the arguments. The file
    appears whole or not at all; `load_backbone(backbone.name, path)` reads it.
    """
    assert isinstance(backbone, nn.Module)
    state = {key: value.detach().cpu().contiguous() for key, value in backbone.state_dict().items()}
    metadata = {
        "format": FORMAT,
        "backbone": backbone.name,
        "arguments": canonical_json(backbone.builder_arguments()),
        "pixels": canonical_json(to_mapping(backbone.pixels)),
    }
    if isinstance(backbone, Adaptable) and backbone.adapters.kind != "none":
        metadata["adapters"] = canonical_json(to_mapping(backbone.adapters))
    write_atomically(path, _in_one_order(serialise(state, metadata=metadata)))


def _in_one_order(file: bytes) -> bytes:
    """A safetensors file with its header sorted: equal weights then have equal bytes.

    The library writes the metadata in an order that differs from call to call.
    """
    length = int.from_bytes(file[:8], "little")
    header = canonical_json(json.loads(file[8 : 8 + length])).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + file[8 + length :]


def checked_device(device: str | torch.device) -> torch.device:
    """A device that exists here.

    Raises:
        ConfigError: not a device name, or CUDA without a usable GPU.
    """
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(
            f"Unknown device '{device}'.", str(error).splitlines()[0], "Use cpu or cuda."
        ) from None
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            "No such GPU here.",
            f"device = {device}, {torch.cuda.device_count()} usable GPUs",
            "Use --device cpu.",
        )
    return target


def require_compiler(device: torch.device) -> None:
    """Compile and run a trifle, so that a missing compiler shows now and not in the first batch.

    Raises:
        ConfigError: torch.compile does not work here.
    """
    try:
        torch.compile(lambda x: x * 2 + 1, dynamic=False)(torch.ones(8, device=device))
    except Exception as error:  # inductor wraps whatever its compiler raised
        reason = str(error).strip().splitlines()
        raise ConfigError(
            "torch.compile does not work here.",
            reason[0] if reason else type(error).__name__,
            "Install a C++ compiler (for a GPU also Triton), or leave --compile out.",
        ) from error


def _random(builder: Callable[..., Backbone], seed: int) -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = builder()
    assert isinstance(backbone, nn.Module)
    backbone.weights_sha256 = state_sha256(backbone.state_dict())
    logger.warning("%s has random weights (seed %d), as asked for", backbone.name, seed)
    return backbone


def _from_file(name: str, builder: Callable[..., Backbone], checkpoint: Checkpoint) -> Backbone:
    where = str(checkpoint.path)
    pixels: PixelRecipe | None = None
    if checkpoint.metadata.get("format") == FORMAT:
        arguments, pixels = _own_metadata(name, builder, checkpoint)
        remapped = RemappedState("tadpipe", checkpoint.state, arguments)
    else:
        remap = import_module(BACKBONES[name].partition(":")[0]).remap_official_keys
        remapped = remap(checkpoint.state)
    head = [key for key in remapped.state if key.startswith("head.")]
    state = {key: value for key, value in remapped.state.items() if key not in head}
    if head:
        logger.info("%s: classification head left out", where)
    left_out = ("num_classes", "adapters")
    arguments = {key: value for key, value in remapped.arguments.items() if key not in left_out}
    with torch.device("meta"):  # no time spent on an initialisation that is overwritten
        backbone = builder(**arguments)
        if "adapters" in remapped.arguments:
            backbone = add_adapters(backbone, remapped.arguments["adapters"])
    backbone.reset_buffers()
    assert isinstance(backbone, nn.Module)
    try:
        load_strictly(backbone, state, f"{where} ({remapped.layout} layout)", "")
    except CheckpointError as error:
        todo = error.todo or _advice(name, state)
        raise CheckpointError(error.what, error.where, todo) from None
    backbone.weights_sha256 = checkpoint.sha256
    if isinstance(backbone, Adaptable):
        backbone.adapter_sha256 = _adapter_sha256(backbone)
    if pixels is not None:
        backbone.pixels = pixels
    return backbone


def _adapter_sha256(backbone: Backbone) -> str:
    """SHA-256 (hex) of what decides the adapters' numbers: weights and settings; "" without any."""
    weights = adapter_parameters(backbone)
    if not weights or not isinstance(backbone, Adaptable):
        return ""
    settings = to_mapping(replace(backbone.adapters, checkpoint=False))  # a matter of memory only
    return digest({"weights": state_sha256(weights), "settings": settings})


def _own_metadata(
    name: str, builder: Callable[..., Backbone], checkpoint: Checkpoint
) -> tuple[dict[str, Any], PixelRecipe]:
    """Builder arguments (adapters among them) and pixel recipe of a file of `save_backbone`."""
    saved = checkpoint.metadata.get("backbone", "")
    if saved != name:
        raise CheckpointError(
            "The weights belong to another backbone.",
            f"{checkpoint.path}: written from {saved}, asked for {name}",
            f"Use --backbone {saved}." if saved in BACKBONES else "",
        )
    try:
        arguments = json.loads(checkpoint.metadata["arguments"])
        recipe = json.loads(checkpoint.metadata["pixels"])
        adapters = json.loads(checkpoint.metadata.get("adapters", "null"))
        strange = sorted(set(arguments) - set(inspect.signature(builder).parameters))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise CheckpointError(
            "The file's description is damaged.", f"{checkpoint.path}: {error}", "Write it again."
        ) from None
    if strange:
        raise CheckpointError(
            f"{name} cannot be built with the file's arguments.",
            f"{checkpoint.path}: {', '.join(strange)}",
            "The file was written by another version of tadpipe; write it again.",
        )
    if adapters is not None:
        arguments["adapters"] = build(AdapterConfig, adapters, f"{checkpoint.path}: adapters")
    return arguments, build(PixelRecipe, recipe, f"{checkpoint.path}: pixels")


def _advice(name: str, state: Mapping[str, Tensor]) -> str:
    """Another backbone of the same family that the weights' shapes fit, else general advice."""
    family = BACKBONES[name].partition(":")[0]
    shapes = {key: value.shape for key, value in state.items()}
    fitting = {}  # with its number of tensors: a deep network holds those of a shallow one
    for other, target in BACKBONES.items():
        if other == name or target.partition(":")[0] != family:
            continue
        with torch.device("meta"):
            candidate = resolve("backbone", BACKBONES, other)().state_dict()
        if all(key in shapes and shapes[key] == value.shape for key, value in candidate.items()):
            fitting[other] = len(candidate)
    if fitting:
        largest = max(fitting, key=fitting.__getitem__)
        return f"The shapes are those of {largest}: use --backbone {largest}."
    return f"Name weights of {name}, of the same size, with --weights FILE."

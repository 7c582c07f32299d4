"""What of a backbone trains, end to end: its adapters, all of it, or nothing.

`set_tuning` decides by `requires_grad`. A frozen layer also stays in evaluation mode: a backbone's
`train` ends with `keep_frozen_in_eval(self)`, so that no caller can undo it. Drop path belongs to
a block, not to a layer, and stays active while the backbone is in training mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tadpipe.backbones.conv_parts import FixedBatchNorm
from tadpipe.backbones.protocol import Backbone
from tadpipe.backbones.tia import Adaptable, adapter_parameters
from tadpipe.errors import ConfigError

FIXED_STATISTICS = "fixed_statistics"  # set on batch norms that keep their running statistics


def set_tuning(
    backbone: Backbone,
    tune: Literal["adapter", "full", "frozen"],
    *,
    representation: Literal["snippet", "frame"] = "snippet",
    frozen: Sequence[str] = (),
    batch_norm_affine: bool = False,
) -> None:
    """Choose which parameters train.

    Batch norms always use their running statistics from here on, also with "full".

    Args:
        tune: "adapter" trains what `add_adapters` added, "full" everything, "frozen" nothing.
        representation: "frame" leaves out the norm that only pooled snippets pass through.
        frozen: with "full", names of modules that do not train ("patch_embed", "blocks.0").
        batch_norm_affine: with "full", whether scales and biases of batch norms train.
    Raises:
        ConfigError: "adapter" without adapters, "full" beside a ladder, or an unknown module.
    """
    assert isinstance(backbone, nn.Module)
    adapters = adapter_parameters(backbone)
    if tune == "adapter" and not adapters:
        raise ConfigError(
            f"{backbone.name} has no adapters to tune.",
            "tune = adapter, adapter = none",
            "Add adapters, or use --tune full or frozen.",
        )
    if tune == "full" and isinstance(backbone, Adaptable) and backbone.ladders is not None:
        raise ConfigError(
            "A ladder stands beside a frozen backbone, which cannot train.",
            "tune = full, adapter = ladder",
            "Use --tune adapter, or the adapter tia.",
        )
    modules = dict(backbone.named_modules())
    unknown = sorted(set(frozen) - set(modules))
    if unknown:
        raise ConfigError(
            f"{backbone.name} has no module {', '.join(unknown)}.",
            f"frozen = {list(frozen)}",
            f"Top modules: {', '.join(name for name, _ in backbone.named_children())}.",
        )
    backbone.requires_grad_(tune == "full")
    if tune == "full":
        unread = backbone.snippet_only if isinstance(backbone, Adaptable) else ()
        for name in (*frozen, *(unread if representation == "frame" else ())):
            modules[name].requires_grad_(False)
    elif tune == "adapter":
        for parameter in adapters.values():
            parameter.requires_grad_(True)
    for module in modules.values():
        if isinstance(module, (_BatchNorm, FixedBatchNorm)):
            setattr(module, FIXED_STATISTICS, True)
            if not batch_norm_affine:
                module.requires_grad_(False)
    keep_frozen_in_eval(backbone)


def keep_frozen_in_eval(backbone: nn.Module) -> None:
    """Put layers without a trained parameter, and fixed batch norms, back into evaluation mode."""
    for module in backbone.modules():
        own = list(module.parameters(recurse=False))
        layer = bool(own) and not list(module.children())
        still = layer and not any(parameter.requires_grad for parameter in own)
        if still or getattr(module, FIXED_STATISTICS, False):
            module.training = False


def trainable_groups(backbone: Backbone) -> dict[str, dict[str, nn.Parameter]]:
    """The parameters that train by name, under "adapter" and "backbone"; empty groups are left out.

    Both want a learning rate of their own.
    """
    assert isinstance(backbone, nn.Module)
    adapters = adapter_parameters(backbone)
    groups: dict[str, dict[str, nn.Parameter]] = {}
    for name, parameter in backbone.named_parameters():
        if parameter.requires_grad:
            group = "adapter" if name in adapters else "backbone"
            groups.setdefault(group, {})[name] = parameter
    return groups

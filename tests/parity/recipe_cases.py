"""Cases of convolutional backbones: weights drawn by a recipe, statistics instead of arrays.

The recipe names a key list in the layout of the case, sorted there; the renaming comes after. Of
large maps a case holds shape, mean, standard deviation and the first four values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tests.parity.case import Case

FIRST = 4  # values kept of a tensor's head
# Share of an array's largest value that float32 rounding may take, where a case states a fixed
# bound alone. In R(2+1)D-34 values reach 6647 and the stored map lies 0.0054 from our float64
# result, 54 times the stated bound: near a ReLU's zero no order of sums in float32 can meet it.
FLOAT32_SHARE = 1e-5

Shapes = Mapping[str, tuple[int, ...] | list[int]]


class Tolerance(NamedTuple):
    """|ours - stored| <= atol + rtol * |stored|, atol fixed or a share of the largest value."""

    rtol: float
    atol: float
    fraction_of_max: float

    @classmethod
    def of(cls, case: Case) -> Tolerance:
        stated = case.config["tolerance"]
        return cls(
            float(stated["rtol"]),
            float(stated.get("atol", 0.0)),
            float(stated.get("atol_fraction_of_max", FLOAT32_SHARE)),
        )

    def for_values_up_to(self, largest: float) -> dict[str, float]:
        return {"rtol": self.rtol, "atol": max(self.atol, self.fraction_of_max * largest)}


def drawn_weights(shapes: Shapes, base_seed: int) -> dict[str, Tensor]:
    """The weights of a case, by name and shape alone."""
    state: dict[str, Tensor] = {}
    for i, key in enumerate(sorted(shapes)):
        shape = tuple(shapes[key])
        generator = torch.Generator().manual_seed(base_seed + i)
        if key.endswith("num_batches_tracked"):
            state[key] = torch.zeros((), dtype=torch.int64)
        elif key.endswith("running_var"):
            state[key] = 0.5 + torch.rand(shape, generator=generator)
        elif key.endswith("running_mean"):
            state[key] = 0.1 * torch.randn(shape, generator=generator)
        elif len(shape) >= 2:
            fan_in = float(np.prod(shape[1:]))
            state[key] = torch.randn(shape, generator=generator) * (2.0 / fan_in) ** 0.5
        elif key.endswith("weight"):
            state[key] = 1.0 + 0.1 * torch.randn(shape, generator=generator)
        else:
            state[key] = 0.1 * torch.randn(shape, generator=generator)
    return state


def check_weights(case: Case, state: Mapping[str, Tensor]) -> None:
    """The first four values of the keys that the case names."""
    for key, values in case.config.get("weights_check", {}).items():
        if key not in state:
            case.claim(f"weight {key}", False, "not in our key list")
            continue
        ours = state[key].reshape(-1)[: len(values)]
        case.compare(f"weight {key}", ours, np.array(values, dtype=np.float32), rtol=1e-6)


def drawn_input(case: Case) -> Tensor:
    """The stored input, or the one drawn from the seed; its first values are checked."""
    if "input" in case:
        clips = case.tensor("input")
    else:
        config = case.config["config"]
        generator = torch.Generator().manual_seed(int(config["input_seed"]))
        clips = torch.randn(tuple(config["input_shape"]), generator=generator)
    if "input_first8" in case:
        case.check("input_first8", clips.reshape(-1)[:8], rtol=1e-6)
    return clips


def traced(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Outputs of modules by the names given, filled in by each forward pass.

    Detached copies: a ReLU that works in place would change them later.
    """
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            outputs[name] = output.detach().clone()

        return hook

    for name, module in modules.items():
        module.register_forward_hook(keep(name))
    return outputs


def check_end_points(case: Case, outputs: Mapping[str, Tensor], tolerance: Tolerance) -> None:
    """Shape, mean, standard deviation (unbiased, float64) and head of every stored end point."""
    for name, output in outputs.items():
        if f"shape_{name}" not in case:
            continue
        spread = float(case.read(f"std_{name}"))
        limits = tolerance.for_values_up_to(spread)
        wide = output.double()
        case.check(f"shape_{name}", list(output.shape))
        case.check(f"mean_{name}", wide.mean(), **limits)
        case.check(f"std_{name}", wide.std(), **limits)
        case.check(f"first4_{name}", output.reshape(-1)[:FIRST], **limits)


def check_arrays(case: Case, ours: Mapping[str, Tensor], tolerance: Tolerance) -> None:
    """Every stored array of these names."""
    for name, value in ours.items():
        if name in case:
            largest = float(np.abs(case.read(name)).max())
            case.check(name, value, **tolerance.for_values_up_to(largest))


def check_loss_gradients(
    case: Case, features: Tensor, gradient_of: Callable[[str], Tensor | None]
) -> None:
    """The loss `(features * r).sum()` with r drawn from the case's seed, and gradient norms.

    Args:
        gradient_of: our gradient of a weight, by its name in the case's layout; called after the
            backward pass.
    """
    if "loss" not in case:
        return
    generator = torch.Generator().manual_seed(int(case.config["config"]["loss_seed"]))
    loss = (features * torch.randn(features.shape, generator=generator)).sum()
    loss.backward()
    case.check("loss", loss, rtol=1e-3)
    rtol = float(case.config["tolerance"]["grad_norm_rtol"])
    for key, norm in case.config.get("grad_norms_of_loss", {}).items():
        gradient = gradient_of(key)
        if norm is None or gradient is None:
            case.claim(f"grad {key}", norm is None and gradient is None)
        else:
            case.compare(f"grad {key}", gradient.double().norm(), norm, rtol=rtol)


def with_norm_buffers(names: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes of a state dict with the counter that torch's batch norm keeps beside the variance."""
    shapes = {key: tuple(value.shape) for key, value in names.items()}
    counters = [key for key in shapes if key.endswith("running_var")]
    return shapes | {key.replace("running_var", "num_batches_tracked"): () for key in counters}

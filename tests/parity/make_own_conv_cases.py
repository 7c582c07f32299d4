"""Make the committed cases of convolutional backbones: python -m tests.parity.make_own_conv_cases.

Weights and input are drawn by the recipe, so that no weight file is kept. The networks are computed
here in float64 with numpy alone, from the papers and key names, sharing no code with tadpipe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

from tests.parity.make_own_cases import Arrays, write
from tests.parity.recipe_cases import FIRST, drawn_weights

Array = np.ndarray[Any, Any]
TOLERANCE = {"rtol": 1e-3, "atol_fraction_of_max": 1e-5}
RGB = 3
ALPHA = 4  # of the small SlowFast


class Network:
    """Layers in float64 on drawn weights; the first pass, on zeros, only collects the key list."""

    def __init__(self, eps: float) -> None:
        self.eps = eps
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.weights: Arrays | None = None
        self.ends: Arrays = {}

    def weight(self, key: str, shape: tuple[int, ...]) -> Array:
        self.shapes[key] = shape
        return np.zeros(shape) if self.weights is None else self.weights[key]

    def conv(self, key: str, x: Array, outputs: int, kernel: Sequence[int], stride: Sequence[int],
             zeros: Sequence[tuple[int, int]]) -> Array:  # fmt: skip
        """x [C, ...] -> [C', ...], one place of the kernel after the other."""
        w = self.weight(f"{key}.weight", (outputs, len(x), *kernel))
        windows = _windows(np.pad(x, [(0, 0), *zeros]), kernel, stride)
        if self.weights is None:  # shapes only
            return np.zeros((outputs, *windows.shape[1 : 1 + len(kernel)]))
        product = np.zeros((outputs, *windows.shape[1 : 1 + len(kernel)]))
        for place in np.ndindex(*kernel):
            product += np.tensordot(w[(..., *place)], windows[(..., *place)], axes=1)
        return product

    def norm(self, key: str, x: Array) -> Array:
        n = len(x)
        scale, shift = self.weight(f"{key}.weight", (n,)), self.weight(f"{key}.bias", (n,))
        mean = self.weight(f"{key}.running_mean", (n,))
        variance = self.weight(f"{key}.running_var", (n,))
        self.shapes[f"{key}.num_batches_tracked"] = ()
        factor = scale / np.sqrt(variance + self.eps)
        one = (slice(None), *[None] * (x.ndim - 1))
        return (x - mean[one]) * factor[one] + shift[one]

    def end(self, name: str, x: Array) -> Array:
        self.ends[name] = x
        return x


def main() -> None:
    write_case("i3d/rgb_tiny", i3d, (RGB, 17, 35, 44), 1e-3, 7100, {"in_channels": RGB,
               "num_classes": 0}, "pytorch-i3d names")  # fmt: skip
    config: dict[str, Any] = {"layers": [1, 1, 1, 1], "bn_eps": 1e-3}
    write_case("r2plus1d/r10_tiny", r2plus1d, (RGB, 5, 20, 27), 1e-3, 7200, config, "TSP names")
    config = {"depth": 50, "stage_blocks": [1, 2, 1, 1], "base_channels": 8, "shift_div": 8}
    write_case("tsm/narrow_tiny", tsm, (RGB, 4, 37, 50), 1e-5, 7300, config,
               "mmaction2 (keys after `backbone.`)")  # fmt: skip
    config = {"stage_blocks": [1, 2, 1, 1], "base_channels": 16, "beta_inv": 8, "alpha": ALPHA,
              "fusion_kernel": 5, "lateral_norm": False}  # fmt: skip
    write_case("slowfast/narrow_tiny", slowfast, (RGB, 8, 37, 50), 1e-5, 7400, config,
               "mmaction2 (keys after `backbone.`)")  # fmt: skip
    config = {"stage_blocks": [1, 2, 1, 1], "base_channels": 16}
    write_case("slowonly/narrow_tiny", slowonly, (RGB, 4, 37, 50), 1e-5, 7500, config,
               "mmaction2 (keys after `backbone.`)")  # fmt: skip


def write_case(
    name: str,
    network: Callable[[Network, Array], dict[str, Array]],
    shape: tuple[int, ...],
    eps: float,
    seed: int,
    config: dict[str, Any],
    layout: str,
) -> None:
    net = Network(eps)
    network(net, np.zeros(shape))
    drawn = drawn_weights(net.shapes, seed)
    net.weights = {key: value.double().numpy() for key, value in drawn.items()}
    generator = torch.Generator().manual_seed(seed + 50)
    clips = torch.randn((1, *shape), generator=generator)
    arrays: Arrays = {"input_first8": clips.reshape(-1)[:8].numpy()}
    for key, value in network(net, clips[0].double().numpy()).items():
        arrays[key] = value.astype(np.float32)
    for key, value in net.ends.items():
        arrays[f"shape_{key}"] = np.array(value.shape if "tsm" in name else (1, *value.shape))
        arrays[f"mean_{key}"] = np.array(value.mean())
        arrays[f"std_{key}"] = np.array(value.std(ddof=1))
        arrays[f"first4_{key}"] = value.reshape(-1)[:FIRST].astype(np.float32)
    keys = sorted(net.shapes)
    checked = [keys[0], keys[len(keys) // 2], keys[-1]]
    config = config | {"base_seed": seed, "input_seed": seed + 50, "input_shape": [1, *shape]}
    write(name, arrays, {
        "layout": layout,
        "config": config,
        "recipe": "tests/parity/recipe_cases.py",
        "weights_check": {key: drawn[key].reshape(-1)[:FIRST].tolist() for key in checked},
        "state_dict": {key: list(value) for key, value in net.shapes.items()},
        "parameters": sum(
            int(np.prod(shape))
            for key, shape in net.shapes.items()
            if not key.endswith(("running_mean", "running_var", "num_batches_tracked"))
        ),
        "tolerance": TOLERANCE,
    })  # fmt: skip


def i3d(net: Network, x: Array) -> dict[str, Array]:
    """One clip [C, F, H, W], padding as TensorFlow's "SAME"."""

    def unit(key: str, x: Array, outputs: int, k: int = 1, s: int = 1) -> Array:
        y = net.conv(f"{key}.conv3d", x, outputs, (k,) * 3, (s,) * 3, _same(x, (k,) * 3, (s,) * 3))
        return np.maximum(net.norm(f"{key}.bn", y), 0)

    def pool(x: Array, kernel: Sequence[int], stride: Sequence[int]) -> Array:
        padded = np.pad(x, [(0, 0), *_same(x, kernel, stride)])
        return _windows(padded, kernel, stride).max(axis=(-3, -2, -1))

    def mixed(key: str, x: Array, w: Sequence[int]) -> Array:
        b1 = unit(f"{key}.b1b", unit(f"{key}.b1a", x, w[1]), w[2], 3)
        b2 = unit(f"{key}.b2b", unit(f"{key}.b2a", x, w[3]), w[4], 3)
        b3 = unit(f"{key}.b3b", pool(x, (3, 3, 3), (1, 1, 1)), w[5])
        return net.end(key, np.concatenate([unit(f"{key}.b0", x, w[0]), b1, b2, b3]))

    x = net.end("Conv3d_1a_7x7", unit("Conv3d_1a_7x7", x, 64, 7, 2))
    x = unit("Conv3d_2b_1x1", pool(x, (1, 3, 3), (1, 2, 2)), 64)
    x = net.end("Conv3d_2c_3x3", unit("Conv3d_2c_3x3", x, 192, 3))
    x = pool(x, (1, 3, 3), (1, 2, 2))
    x = mixed("Mixed_3b", x, (64, 96, 128, 16, 32, 32))
    x = mixed("Mixed_3c", x, (128, 128, 192, 32, 96, 64))
    x = pool(x, (3, 3, 3), (2, 2, 2))
    x = mixed("Mixed_4b", x, (192, 96, 208, 16, 48, 64))
    x = mixed("Mixed_4c", x, (160, 112, 224, 24, 64, 64))
    x = mixed("Mixed_4d", x, (128, 128, 256, 24, 64, 64))
    x = mixed("Mixed_4e", x, (112, 144, 288, 32, 64, 64))
    x = mixed("Mixed_4f", x, (256, 160, 320, 32, 128, 128))
    x = pool(x, (2, 2, 2), (2, 2, 2))
    x = mixed("Mixed_5b", x, (256, 160, 320, 32, 128, 128))
    return {"trunk": mixed("Mixed_5c", x, (384, 192, 384, 48, 128, 128))[None]}


def r2plus1d(net: Network, x: Array) -> dict[str, Array]:
    def space(key: str, x: Array, outputs: int, k: int, s: int) -> Array:
        return net.conv(key, x, outputs, (1, k, k), (1, s, s), [(0, 0), *[(k // 2, k // 2)] * 2])

    def time(key: str, x: Array, outputs: int, s: int) -> Array:
        return net.conv(key, x, outputs, (3, 1, 1), (s, 1, 1), [(1, 1), (0, 0), (0, 0)])

    def both(key: str, x: Array, outputs: int, s: int) -> Array:
        inputs = len(x)
        middle = (inputs * outputs * 27) // (inputs * 9 + 3 * outputs)
        y = np.maximum(net.norm(f"{key}.0.1", space(f"{key}.0.0", x, middle, 3, s)), 0)
        return net.norm(f"{key}.1", time(f"{key}.0.3", y, outputs, s))

    x = np.maximum(net.norm("stem.1", space("stem.0", x, 45, 7, 2)), 0)
    x = net.end("stem", np.maximum(net.norm("stem.4", time("stem.3", x, 64, 1)), 0))
    for i, width in enumerate((64, 128, 256, 512)):
        key, s = f"layer{i + 1}.0", 1 if i == 0 else 2
        y = both(f"{key}.conv2", np.maximum(both(f"{key}.conv1", x, width, s), 0), width, 1)
        if i > 0:
            x = net.conv(f"{key}.downsample.0", x, width, (1, 1, 1), (s, s, s), [(0, 0)] * 3)
            x = net.norm(f"{key}.downsample.1", x)
        x = net.end(f"layer{i + 1}", np.maximum(x + y, 0))
    return {"trunk": x[None], "features": x.mean(axis=(1, 2, 3))[None]}


def tsm(net: Network, x: Array) -> dict[str, Array]:
    """One clip [3, F, H, W]; end points are frame by frame, [F, C, h, w]."""

    def unit(key: str, x: Array, outputs: int, k: int, s: int = 1, conv: str = "conv") -> Array:
        frames = [net.conv(f"{key}.{conv}", f, outputs, (k, k), (s, s), [(k // 2, k // 2)] * 2)
                  for f in x.swapaxes(0, 1)]  # fmt: skip
        return net.norm(f"{key}.bn", np.stack(frames, axis=1))

    def shifted(x: Array) -> Array:
        fold, y = len(x) // 8, x.copy()
        y[:fold] = np.concatenate([x[:fold, 1:], np.zeros_like(x[:fold, :1])], axis=1)
        before = x[fold : 2 * fold]
        y[fold : 2 * fold] = np.concatenate([np.zeros_like(before[:, :1]), before[:, :-1]], axis=1)
        return y

    x = np.maximum(unit("conv1", x, 8, 7, 2), 0)  # [8, F, h, w]
    padded = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)])
    x = _windows(padded, (1, 3, 3), (1, 2, 2)).max(axis=(-3, -2, -1))
    net.end("stem", x.swapaxes(0, 1))
    for i, blocks in enumerate((1, 2, 1, 1)):
        width = 8 * 2**i
        for j in range(blocks):
            key, s = f"layer{i + 1}.{j}", 2 if i > 0 and j == 0 else 1
            y = np.maximum(unit(f"{key}.conv1", shifted(x), width, 1, conv="conv.net"), 0)
            y = np.maximum(unit(f"{key}.conv2", y, width, 3, s), 0)
            y = unit(f"{key}.conv3", y, 4 * width, 1)
            x = np.maximum(y + (unit(f"{key}.downsample", x, 4 * width, 1, s) if j == 0 else x), 0)
        net.end(f"layer{i + 1}", x.swapaxes(0, 1))
    frames = x.mean(axis=(2, 3))
    return {
        "trunk": x.swapaxes(0, 1),
        "frames": frames[None],
        "features": frames.mean(axis=1)[None],
    }


def slowfast(net: Network, x: Array) -> dict[str, Array]:
    """One clip [3, F, H, W]; the slow pathway takes every fourth frame."""

    def lateral(name: str, slow: Array, fast: Array) -> Array:
        y = net.conv(f"slow_path.{name}_lateral.conv", fast, 2 * len(fast), (5, 1, 1),
                     (ALPHA, 1, 1), [(2, 2), (0, 0), (0, 0)])  # fmt: skip
        net.end(f"lateral_{'stem' if name == 'conv1' else name}", y)
        return np.concatenate([slow, y])

    slow = net.end("stem_slow", _stem(net, "slow_path.", x[:, ::ALPHA], 16, 1))
    fast = net.end("stem_fast", _stem(net, "fast_path.", x, 2, 5))
    slow = lateral("conv1", slow, fast)
    for i in range(4):
        spans = 1 if i < 2 else 3
        slow = net.end(f"layer{i + 1}_slow", _stage(net, "slow_path.", slow, i, 16, spans))
        fast = net.end(f"layer{i + 1}_fast", _stage(net, "fast_path.", fast, i, 2, 3))
        if i < 3:
            slow = lateral(f"layer{i + 1}", slow, fast)
    lines = [slow.mean(axis=(2, 3)), fast.mean(axis=(2, 3))]
    half = np.concatenate([_stretched(line, x.shape[1] // 2) for line in lines])
    return {
        "slow_frame_index": np.arange(0, x.shape[1], ALPHA),
        "trunk_slow": slow[None],
        "trunk_fast": fast[None],
        "frame_slow": lines[0][None],
        "frame_fast": lines[1][None],
        "frames": half[None],
        "features": np.concatenate([line.mean(axis=1) for line in lines])[None],
    }


def slowonly(net: Network, x: Array) -> dict[str, Array]:
    x = net.end("stem", _stem(net, "", x, 16, 1))
    for i in range(4):
        x = net.end(f"layer{i + 1}", _stage(net, "", x, i, 16, 1 if i < 2 else 3))
    line = x.mean(axis=(2, 3))
    return {"trunk": x[None], "frames": line[None], "features": line.mean(axis=1)[None]}


def _stem(net: Network, path: str, x: Array, width: int, spans: int) -> Array:
    x = np.maximum(_unit(net, f"{path}conv1", x, width, (spans, 7, 7), 2), 0)
    padded = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)])
    return _windows(padded, (1, 3, 3), (1, 2, 2)).max(axis=(-3, -2, -1))


def _stage(net: Network, path: str, x: Array, i: int, base: int, spans: int) -> Array:
    for j in range((1, 2, 1, 1)[i]):
        key, width, s = f"{path}layer{i + 1}.{j}", base * 2**i, 2 if i > 0 and j == 0 else 1
        y = np.maximum(_unit(net, f"{key}.conv1", x, width, (spans, 1, 1)), 0)
        y = np.maximum(_unit(net, f"{key}.conv2", y, width, (1, 3, 3), s), 0)
        y = _unit(net, f"{key}.conv3", y, 4 * width, (1, 1, 1))
        if j == 0:
            x = _unit(net, f"{key}.downsample", x, 4 * width, (1, 1, 1), s)
        x = np.maximum(x + y, 0)
    return x


def _unit(
    net: Network, key: str, x: Array, outputs: int, kernel: Sequence[int], s: int = 1
) -> Array:
    zeros = [(k // 2, k // 2) for k in kernel]
    return net.norm(f"{key}.bn", net.conv(f"{key}.conv", x, outputs, kernel, (1, s, s), zeros))


def _stretched(line: Array, length: int) -> Array:
    """[C, t] -> [C, length], linear between the centres of cells."""
    places = (np.arange(length) + 0.5) * line.shape[1] / length - 0.5
    return np.stack([np.interp(places, np.arange(line.shape[1]), row) for row in line])


def _same(x: Array, kernel: Sequence[int], stride: Sequence[int]) -> list[tuple[int, int]]:
    zeros = []
    for size, k, s in zip(x.shape[1:], kernel, stride, strict=True):
        total = max(k - (size % s or s), 0)
        zeros.append((total // 2, total - total // 2))
    return zeros


def _windows(x: Array, kernel: Sequence[int], stride: Sequence[int]) -> Array:
    """[C, ...] -> [C, places..., kernel...]."""
    axes = tuple(range(1, x.ndim))
    windows = sliding_window_view(x, tuple(kernel), axis=axes)
    return windows[(slice(None), *(slice(None, None, s) for s in stride))]


if __name__ == "__main__":
    main()

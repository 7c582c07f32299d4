"""Make the small committed cases: python -m tests.parity.make_own_cases.

The numbers are ours: seeded inputs, and outputs recomputed in float64 by plain loops over numpy
arrays that share no code with tadpipe. They keep the parity suite meaningful on a machine that
has no stored official cases.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.parity.detad_loops import Loops, random_problem

OWN = Path(__file__).parent / "own"
SOURCE = "recomputed in float64 by tests/parity/make_own_cases.py"
Arrays = dict[str, np.ndarray[Any, Any]]


def main() -> None:
    write("nms/gaussian", *soft_nms_case())
    write("frame_indices/windows", *frame_indices_case())
    write("actionformer/schedule_cosine", *schedule_case())
    arrays, config, weights = videomae_case()
    write("videomae/official_small", arrays, config)
    save_file(weights, OWN / "videomae/official_small/weights.safetensors")
    arrays, config, weights = adapter_case()
    write("adatad/adapter_3x4", arrays, config)
    save_file(weights, OWN / "adatad/adapter_3x4/weights.safetensors")
    arrays, config, files = detad_case()
    write("detad/all_characteristics", arrays, config)
    for name, document in files.items():
        text = json.dumps(document, indent=0) + "\n"
        (OWN / "detad/all_characteristics" / name).write_text(text, encoding="utf-8")


def write(name: str, arrays: Arrays, config: dict[str, Any]) -> None:
    folder = OWN / name
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "io.npz", **arrays)
    text = json.dumps({"source": f"{SOURCE}, kind {name.split('/')[0]}", **config}, indent=1)
    (folder / "case.json").write_text(text + "\n", encoding="utf-8")


def soft_nms_case() -> tuple[Arrays, dict[str, Any]]:
    """Gaussian soft-NMS of one group, candidate by candidate."""
    random = np.random.default_rng(1)
    start = random.uniform(0, 60, 40)
    segments = np.stack([start, start + random.uniform(1, 20, 40)], axis=1).astype(np.float32)
    scores = random.permutation(np.linspace(0.05, 0.95, 40)).astype(np.float32)
    sigma, min_score = 0.5, 0.02
    left = {i: float(score) for i, score in enumerate(scores)}
    kept, decayed = [], []
    while left:
        best = max(left, key=lambda i: left[i])
        kept.append(best)
        decayed.append(left.pop(best))
        (a, b) = map(float, segments[best])
        for i in list(left):
            (c, d) = map(float, segments[i])
            inter = max(0.0, min(b, d) - max(a, c) + 1e-6)
            tiou = inter / ((b - a + 1e-6) + (d - c + 1e-6) - inter)
            left[i] *= math.exp(-(tiou**2) / sigma)
            if left[i] < min_score:
                del left[i]
    dets = np.column_stack([segments[kept], decayed])
    params = {"method": "gaussian", "sigma": sigma, "iou_threshold": 0.1, "min_score": min_score}
    arrays = {"segs": segments, "scores": scores, "inds": np.array(kept), "dets": dets}
    return arrays, {"params": params}


def frame_indices_case() -> tuple[Arrays, dict[str, Any]]:
    """Centre-anchored snippets of a window, edges repeated, a short window filled up."""
    arrays: Arrays = {}
    cases = []
    for n, stride, start, end, clip, interval in ((50, 4, 0, 7, 16, 1), (61, 8, 5, 7, 8, 3)):
        window = 8
        centres = [c for c in range(0, n, stride)][start : end + 1]
        valid = len(centres)
        centres += [centres[-1]] * (window - valid)
        offsets = [interval * k for k in range(-clip // 2, clip // 2)]
        rows = [[min(max(c + o, 0), n - 1) for o in offsets] for c in centres]
        arrays[f"frame_inds_{len(cases)}"] = np.array(rows)
        arrays[f"masks_{len(cases)}"] = np.arange(window) < valid
        cases.append(
            {"kind": "snippet", "method": "sliding_window", "n": n, "stride": stride}
            | {"window": window, "start": start, "end": end, "clip_len": clip}
            | {"interval": interval}
        )
    return arrays, {"cases": cases}


def schedule_case() -> tuple[Arrays, dict[str, Any]]:
    """Linear warm-up from 0, then half a cosine, by the step."""
    base, warmup, epochs, per_epoch, eta_min = 3e-4, 2, 4, 5, 1e-8
    warm, total = warmup * per_epoch, (warmup + epochs) * per_epoch
    rates = []
    for i in range(total):
        if i < warm:
            rates.append(base * i / (warm - 1))
        else:
            wave = 1 + math.cos(math.pi * (i - warm) / (total - warm))
            rates.append(eta_min + 0.5 * (base - eta_min) * wave)
    params = {
        "learning_rate": base,
        "warmup": True,
        "warmup_epochs": warmup,
        "epochs": epochs,
        "schedule_type": "cosine",
        "num_iters_per_epoch": per_epoch,
    }
    return {"lr": np.array(rates)}, {"weights": "none", "params": params}


def detad_case() -> tuple[Arrays, dict[str, Any], dict[str, Any]]:
    """DETAD's analyses; a class nobody detects, and one whose only action is dropped."""
    truth, found, durations = random_problem(3)
    database = {
        name: {"subset": "validation", "duration": duration, "annotations": []}
        for name, duration in durations.items()
    }
    results: dict[str, list[Any]] = {name: [] for name in durations}
    for row in truth:
        entry = {key: value for key, value in row.items() if key not in ("video", "start", "end")}
        database[row["video"]]["annotations"].append(
            {**entry, "segment": [row["start"], row["end"]]}
        )
    for row in found:
        entry = {"segment": [row["start"], row["end"]], "label": row["label"]}
        results[row["video"]].append({**entry, "score": row["score"]})
    bins = {
        "coverage": {"edges": [0, 0.2, 0.4, 0.6, 0.8, 1], "names": ["XS", "S", "M", "L", "XL"]},
        "length": {"edges": [0, 10, 40, 100, "inf"], "names": ["S", "M", "L", "XL"]},
        "num-instances": {"edges": [-1, 1, 4, 8, "inf"], "names": ["XS", "S", "M", "L"]},
        "context-size": {"edges": list(range(-1, 7)), "names": list("0123456")},
        "context-distance": {"edges": [-1, 0, 1, 2, 3], "names": ["Inf", "N", "M", "F"]},
        "agreement": {"edges": [0, 0.3, 0.6, 1], "names": ["W", "M", "H"]},
    }
    tious = [0.3, 0.5, 0.7]
    # In the order of the file, which is by video.
    ordered = [row for name in durations for row in truth if row["video"] == name]
    loops = Loops(ordered, found, tious, bins)
    arrays, lists = loops.everything()
    run = {"normalize": True, "limit_factor": None, "min_norm_precision": 0.0}
    settings = {
        "min_tiou": 0.1,
        "fp": {**run, "limit_factor": 10},
        "fn": {**run, "min_norm_precision": 0.05},
        "sensitivity": run,
    }
    config = {"subset": "validation", "labels": loops.labels, "bins": bins, "settings": settings}
    stored = {name: np.array(value, dtype=np.float64) for name, value in arrays.items()}
    return (
        {"tiou_thresholds": np.array(tious), **stored},
        {**config, **lists},
        {
            "ground_truth.json": {"database": database},
            "prediction.json": {"results": results},
        },
    )


def videomae_case() -> tuple[Arrays, dict[str, Any], Arrays]:
    """A two-block VideoMAE under the official keys, token by token in float64."""
    random = np.random.default_rng(2)
    dim, depth, heads, hidden, patch, tubelet, size, frames, classes = 24, 2, 3, 96, 8, 2, 16, 4, 5

    def draw(*shape: int, scale: float = 0.2) -> np.ndarray[Any, Any]:
        return random.normal(0, scale, shape).astype(np.float32)

    def norm(prefix: str) -> Arrays:
        return {f"{prefix}.weight": 1 + draw(dim), f"{prefix}.bias": draw(dim)}

    def linear(prefix: str, into: int, out_of: int) -> Arrays:
        return {f"{prefix}.weight": draw(into, out_of), f"{prefix}.bias": draw(into)}

    w: Arrays = {
        "patch_embed.proj.weight": draw(dim, 3, tubelet, patch, patch, scale=0.05),
        "patch_embed.proj.bias": draw(dim),
    }
    for i in range(depth):
        block = f"blocks.{i}"
        w |= norm(f"{block}.norm1") | norm(f"{block}.norm2")
        w |= {f"{block}.attn.qkv.weight": draw(3 * dim, dim)}
        w |= {f"{block}.attn.q_bias": draw(dim), f"{block}.attn.v_bias": draw(dim)}
        w |= linear(f"{block}.attn.proj", dim, dim)
        w |= linear(f"{block}.mlp.fc1", hidden, dim) | linear(f"{block}.mlp.fc2", dim, hidden)
    w |= norm("fc_norm") | linear("head", classes, dim)
    clips = random.normal(0, 1, (2, 3, frames, size, size)).astype(np.float32)
    outputs = [
        _videomae64(clip.astype(np.float64), w, depth, heads, patch, tubelet) for clip in clips
    ]
    arrays: Arrays = {"input": clips}
    for name in outputs[0]:
        arrays[name] = np.stack([output[name] for output in outputs])
    arrays["pos_embed"] = arrays["pos_embed"][:1]
    config = {
        "config": {
            "img_size": size,
            "patch_size": patch,
            "embed_dim": dim,
            "depth": depth,
            "num_heads": heads,
            "mlp_ratio": hidden / dim,
            "all_frames": frames,
            "tubelet_size": tubelet,
            "num_classes": classes,
            "init_values": 0.0,
            "qkv_bias": True,
        },
        "tolerance": {"atol": 2e-5, "rtol": 1e-4},
    }
    return arrays, config, w


def _videomae64(
    clip: np.ndarray[Any, Any], w: Arrays, depth: int, heads: int, patch: int, tubelet: int
) -> Arrays:
    dim = len(w["fc_norm.bias"])
    t, h, side = (clip.shape[1] // tubelet, clip.shape[2] // patch, clip.shape[3] // patch)
    tokens = np.empty((t * h * side, dim))
    table = np.empty_like(tokens)
    for n in range(len(tokens)):
        i, j, k = n // (h * side), n // side % h, n % side
        tube = clip[
            :,
            i * tubelet : (i + 1) * tubelet,
            j * patch : (j + 1) * patch,
            k * patch : (k + 1) * patch,
        ]
        tokens[n] = w["patch_embed.proj.weight"].reshape(dim, -1) @ tube.reshape(-1)
        tokens[n] += w["patch_embed.proj.bias"]
        for c in range(dim):
            angle = n / 10000 ** (2 * (c // 2) / dim)
            table[n, c] = math.cos(angle) if c % 2 else math.sin(angle)
    found: Arrays = {"patch_embed_out": tokens.copy(), "pos_embed": table}
    x = tokens + table
    for b in range(depth):
        x = x + _attention64(_norm64(x, w, f"blocks.{b}.norm1"), w, f"blocks.{b}.attn", heads)
        y = _linear64(_norm64(x, w, f"blocks.{b}.norm2"), w, f"blocks.{b}.mlp.fc1")
        x = x + _linear64(_gelu64(y), w, f"blocks.{b}.mlp.fc2")
        found[f"block_{b}"] = x.copy()
    found["features"] = _norm64(x.mean(axis=0), w, "fc_norm")
    found["logits"] = _linear64(found["features"], w, "head")
    return found


def adapter_case() -> tuple[Arrays, dict[str, Any], Arrays]:
    """Two blocks with TIA over a window of three clips; gradients by central differences."""
    random = np.random.default_rng(3)
    dim, heads, hidden, patch, tubelet, size, frames, chunks = 12, 2, 24, 8, 2, 16, 4, 3
    ours = _adapter_weights(random, dim, hidden, tubelet, patch)
    video = random.integers(0, 256, (1, 1, 3, frames * chunks, size, size), dtype=np.uint8)
    mask = np.arange(12) < 10
    pull = random.normal(0, 1, (1, dim, 12)).astype(np.float32)
    wide = {name: value.astype(np.float64) for name, value in ours.items()}

    def forward(weights: Arrays) -> Arrays:
        return _window64(video[0, 0], mask, pull[0], weights, heads, patch, tubelet, frames)

    norms: dict[str, float | None] = dict.fromkeys(ours)
    for name in (name for name in ours if ".adapter." in name):
        slopes = []
        for index in np.ndindex(wide[name].shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = wide[name].copy()
                moved[index] += step
                ends.append(float(forward({**wide, name: moved})["loss"]))
            slopes.append((ends[0] - ends[1]) / 2e-5)
        norms[name] = float(np.linalg.norm(slopes))
    found = forward(wide)
    arrays = {"frames_uint8": video, "masks": mask[None], "loss_weights": pull, **found}
    config = {
        "config": {
            "norm_cfg": {"type": "LN", "eps": 1e-6},
            "qkv_bias": True,
            "num_frames": frames,
            "drop_path_rate": 0.0,
            "img_size": size,
            "patch_size": patch,
            "embed_dims": dim,
            "depth": 2,
            "num_heads": heads,
            "mlp_ratio": hidden / dim,
            "adapter_index": [0, 1],
            "chunk_num": chunks,
            "window_size": 12,
        },
        "trainable_parameters": [name for name in ours if ".adapter." in name],
        "grad_norms_of_loss": norms,
        "frozen_block_grads_are_none": True,
        "patch_embed_grads_are_none": True,
        "tolerance": {"atol": 5e-5, "rtol": 1e-4, "grad_norm_rtol": 1e-3},
    }
    return arrays, config, ours


def _adapter_weights(
    random: np.random.Generator, dim: int, hidden: int, tubelet: int, patch: int
) -> Arrays:
    """Two blocks with an adapter of a quarter of the width each, float32."""
    low = dim // 4
    ours: Arrays = {}
    shapes = {
        "attn.qkv.weight": (3 * dim, dim),
        "attn.q_bias": (dim,),
        "attn.v_bias": (dim,),
        "attn.proj.weight": (dim, dim),
        "attn.proj.bias": (dim,),
        "mlp.fc1.weight": (hidden, dim),
        "mlp.fc1.bias": (hidden,),
        "mlp.fc2.weight": (dim, hidden),
        "mlp.fc2.bias": (dim,),
        "adapter.gamma": (1,),
        "adapter.down_proj.weight": (low, dim),
        "adapter.down_proj.bias": (low,),
        "adapter.dwconv.weight": (low, 1, 3),
        "adapter.dwconv.bias": (low,),
        "adapter.conv.weight": (low, low, 1),
        "adapter.conv.bias": (low,),
        "adapter.up_proj.weight": (dim, low),
        "adapter.up_proj.bias": (dim,),
    }
    ours["patch_embed.proj.weight"] = random.normal(0, 0.05, (dim, 3, tubelet, patch, patch))
    ours["patch_embed.proj.bias"] = random.normal(0, 0.2, dim)
    for i in range(2):
        ours |= {f"blocks.{i}.{k}": random.normal(0, 0.3, shape) for k, shape in shapes.items()}
        for norm in ("norm1", "norm2"):
            ours[f"blocks.{i}.{norm}.weight"] = 1 + random.normal(0, 0.2, dim)
            ours[f"blocks.{i}.{norm}.bias"] = random.normal(0, 0.2, dim)
    ours |= {"fc_norm.weight": np.ones(dim), "fc_norm.bias": np.zeros(dim)}
    return {name: value.astype(np.float32) for name, value in ours.items()}


def _window64(
    video: np.ndarray[Any, Any],
    mask: np.ndarray[Any, Any],
    pull: np.ndarray[Any, Any],
    w: Arrays,
    heads: int,
    patch: int,
    tubelet: int,
    clip_len: int,
) -> Arrays:
    """One window [3, T, H, W] from pixels to loss, clip by clip, adapters over all clips."""
    dim = len(w["fc_norm.bias"])
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    pixels = (video.transpose(1, 2, 3, 0) - mean) / std  # [T, H, W, 3]
    t, h, side = clip_len // tubelet, video.shape[2] // patch, video.shape[3] // patch
    clips = len(pixels) // clip_len
    kernel = w["patch_embed.proj.weight"].transpose(0, 2, 3, 4, 1).reshape(dim, -1)
    x = np.empty((clips, t * h * side, dim))
    for clip, n in np.ndindex(x.shape[:2]):
        i, j, k = clip * t + n // (h * side), n // side % h, n % side
        tube = pixels[i * tubelet : (i + 1) * tubelet, j * patch : (j + 1) * patch]
        x[clip, n] = kernel @ tube[:, :, k * patch : (k + 1) * patch].reshape(-1)
        angles = [n / 10000 ** (2 * (c // 2) / dim) for c in range(dim)]
        x[clip, n] += [math.cos(a) if c % 2 else math.sin(a) for c, a in enumerate(angles)]
    x += w["patch_embed.proj.bias"]
    found: Arrays = {}
    for b in range(2):
        block = f"blocks.{b}"
        for clip in range(clips):
            normed = _norm64(x[clip], w, f"{block}.norm1")
            x[clip] += _attention64(normed, w, f"{block}.attn", heads)
            y = _linear64(_norm64(x[clip], w, f"{block}.norm2"), w, f"{block}.mlp.fc1")
            x[clip] += _linear64(_gelu64(y), w, f"{block}.mlp.fc2")
        line = x.reshape(clips * t, h * side, dim)
        x = _tia64(line, w, f"{block}.adapter").reshape(x.shape)
        found[f"block_{b}"] = x.copy()
    found["feat_map"] = x.reshape(clips, t, h, side, dim).transpose(0, 4, 1, 2, 3)
    steps = x.reshape(clips * t, h * side, dim).mean(axis=1)  # [k*t, D]
    features = np.zeros((dim, len(mask)))
    for i in np.flatnonzero(mask):
        place = max((i + 0.5) * len(steps) / len(mask) - 0.5, 0.0)
        low = min(int(place), len(steps) - 1)
        high, share = min(low + 1, len(steps) - 1), place - low
        features[:, i] = (1 - share) * steps[low] + share * steps[high]
    found["features"] = features[None]
    found["loss"] = np.array((features * pull).sum())
    return found


def _tia64(x: np.ndarray[Any, Any], w: Arrays, prefix: str) -> np.ndarray[Any, Any]:
    """Eq. 2 on a line of time steps [T, P, D]: down, look left and right, up, add."""
    z = _gelu64(_linear64(x, w, f"{prefix}.down_proj"))
    taps = w[f"{prefix}.dwconv.weight"][:, 0]  # [H, 3]
    mixed = np.zeros_like(z) + w[f"{prefix}.dwconv.bias"]
    for i in range(len(z)):
        for tap in (-1, 0, 1):
            if 0 <= i + tap < len(z):
                mixed[i] += taps[:, tap + 1] * z[i + tap]
    mixed = mixed @ w[f"{prefix}.conv.weight"][:, :, 0].T + w[f"{prefix}.conv.bias"]
    raised: np.ndarray[Any, Any] = _linear64(z + mixed, w, f"{prefix}.up_proj")
    return x + w[f"{prefix}.gamma"] * raised


def _gelu64(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    curve: np.ndarray[Any, Any] = np.vectorize(
        lambda v: 0.5 * v * (1 + math.erf(v / math.sqrt(2)))
    )(x)
    return curve


def _attention64(
    x: np.ndarray[Any, Any], w: Arrays, prefix: str, heads: int
) -> np.ndarray[Any, Any]:
    dim = x.shape[1]
    bias = np.concatenate([w[f"{prefix}.q_bias"], np.zeros(dim), w[f"{prefix}.v_bias"]])
    q, k, v = np.split(x @ w[f"{prefix}.qkv.weight"].T.astype(np.float64) + bias, 3, axis=1)
    width = dim // heads
    mixed = np.empty_like(x)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        weights = np.exp(q[:, part] @ k[:, part].T / math.sqrt(width))
        mixed[:, part] = weights / weights.sum(axis=1, keepdims=True) @ v[:, part]
    return _linear64(mixed, w, f"{prefix}.proj")


def _norm64(x: np.ndarray[Any, Any], w: Arrays, prefix: str) -> np.ndarray[Any, Any]:
    centred = x - x.mean(axis=-1, keepdims=True)
    scale = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
    normed: np.ndarray[Any, Any] = centred / scale * w[f"{prefix}.weight"] + w[f"{prefix}.bias"]
    return normed


def _linear64(x: np.ndarray[Any, Any], w: Arrays, prefix: str) -> np.ndarray[Any, Any]:
    product: np.ndarray[Any, Any] = x @ w[f"{prefix}.weight"].T.astype(np.float64)
    return product + w[f"{prefix}.bias"]


if __name__ == "__main__":
    main()

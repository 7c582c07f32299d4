"""How close the gradient of a share of the snippets comes to the full one, strategy by strategy.

Windows of a project's training videos pass through backbone and detector of an end-to-end run. For
each the backbone's gradient is taken from all snippets and from the chosen ones: `cosine` is the
mean over the windows, `summed` the cosine of the gradients added up over the windows, which is what
many steps follow; each is first divided by the norm of the window's full gradient, as clipping
makes windows count alike.
Run: python benchmarks/bench_egs.py PROJECT [--run runs/e2e] [--windows N] [--ratio R] [--json PATH]
PROJECT is a folder that `tadpipe demo` made.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from tadpipe.config import write_atomically
from tadpipe.pipeline.e2e_plan import files_by_name, pixel_preset, plan_pixels, trained_videos
from tadpipe.pipeline.frame_cache import FrameCache, keep_for
from tadpipe.pipeline.pixel_windows import FailedVideos, PixelLoader, PixelWindows
from tadpipe.pipeline.presets import load_preset
from tadpipe.pipeline.run_folder import BACKBONE_FILE
from tadpipe.pipeline.train_plan import make_plan
from tadpipe.pipeline.video_features import VideoTable
from tadpipe.project import Project
from tadpipe.training.checkpoint import load_weights
from tadpipe.training.e2e import E2ELearner, PixelBatch, WindowClips
from tadpipe.training.egs import STRATEGIES, EgsConfig, egs_backward
from tadpipe.video.process import DecodeProcess

PRESET = "actionformer/demo_e2e"
MICRO_BATCH = 64


def open_run(run: Path, seed: int, stack: ExitStack) -> tuple[E2ELearner, PixelLoader]:
    """The run's backbone and detector, and windows of the project's training videos."""
    project = Project.find()
    decoder = stack.enter_context(DecodeProcess())
    preset = pixel_preset(load_preset(PRESET, (), None))
    weights = run / BACKBONE_FILE
    if not weights.exists():  # a run whose backbone stayed frozen
        weights = Path(str(project.weights))
    pixels = plan_pixels(
        preset, str(project.backbone), weights, stride=project.stride, device="cpu", seed=seed
    )
    files = files_by_name([str(project.videos)])
    table = VideoTable(
        files, pixels.backbone, pixels.spec, pixels.grid, decoder, device="cpu", batch=1
    )
    plan = make_plan(
        [table],
        PRESET,
        preset,
        annotations=str(project.annotations),
        dataset=None,
        subset=None,
        test_subset=None,
        val_subset=None,
        seed=seed,
    )
    torch.manual_seed(seed)
    learner = E2ELearner(
        pixels.backbone,
        plan.recipe.make_model(),
        preset.training,
        pixels.config,
        window_len=plan.recipe.window_len,
        seed=seed,
        device="cpu",
    )
    learner.detector.load_state_dict(load_weights(run / "model.safetensors"))
    learner.detector.eval()
    recipe = pixels.backbone.pixels
    keep = keep_for(recipe, pixels.config.augment)
    cache = FrameCache(decoder, keep, limit_bytes=1 << 31, fps=pixels.spec.fps)
    windows = PixelWindows(
        files,
        trained_videos(plan, table),
        plan.label_ids(),
        plan.recipe.windows,
        pixels.grid,
        cache,
        pixels.config.augment,
        recipe.size,
    )
    failed = FailedVideos(run, len(windows), 0.0)
    return learner, PixelLoader(windows, 1, seed=seed, failed=failed)


def backbone_gradient(
    learner: E2ELearner, batch: PixelBatch, config: EgsConfig, seed: int
) -> Tensor:
    """The gradient of all weights of the backbone as one line."""
    learner.model.zero_grad(set_to_none=True)
    egs_backward(
        learner.encoder,
        WindowClips(batch.windows, learner.backbone.pixels, learner.device),
        lambda features: learner.losses(batch, features),
        config,
        generator=torch.Generator().manual_seed(seed),
    )
    parameters = (p for p in learner.model.backbone.parameters() if p.requires_grad)
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


def measure(learner: E2ELearner, loader: PixelLoader, windows: int, ratio: float) -> dict[str, Any]:
    """Per strategy: mean cosine, relative norm, and cosine of the summed gradients."""
    every = EgsConfig(ratio=1.0, micro_batch=MICRO_BATCH)
    total = torch.zeros(())
    sums: dict[str, Tensor] = {}
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in STRATEGIES}
    for step in range(windows):
        batch = loader.batch(step)
        full = backbone_gradient(learner, batch, every, step)
        norm = full.norm()
        total = total + full / norm
        for name in STRATEGIES:
            config = EgsConfig(ratio, name, micro_batch=MICRO_BATCH)  # type: ignore[arg-type]
            part = backbone_gradient(learner, batch, config, step)
            sums[name] = sums.get(name, torch.zeros(())) + part / norm
            cosine = float(nnf.cosine_similarity(part, full, dim=0))
            rows[name].append((cosine, float(part.norm() / norm)))
    return {
        name: {
            "cosine": sum(cosine for cosine, _ in values) / len(values),
            "norm": sum(norm for _, norm in values) / len(values),
            "summed": float(nnf.cosine_similarity(sums[name], total, dim=0)),
        }
        for name, values in rows.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("project", type=Path)
    parser.add_argument("--run", type=Path, default=Path("runs/e2e"))
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    out = None if options.json is None else options.json.absolute()
    os.chdir(options.project)
    torch.set_num_threads(1)
    with ExitStack() as stack:
        learner, loader = open_run(options.run, options.seed, stack)
        found = measure(learner, loader, options.windows, options.ratio)
    print(f"{platform.machine()}, torch {torch.__version__}, {options.run}")
    print(f"gradients of {options.ratio:.0%} of the snippets, {options.windows} windows")
    print("strategy   cosine  norm  summed")
    for name, row in found.items():
        print(f"{name:10s} {row['cosine']:6.3f} {row['norm']:5.2f} {row['summed']:7.3f}")
    if out is not None:
        write_atomically(out, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

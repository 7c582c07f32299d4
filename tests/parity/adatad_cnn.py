"""Cases of the kind `adatad_cnn`: adapters on SlowFast and Video Swin, outputs and gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from tadpipe.backbones.checkpoints import load_strictly
from tadpipe.backbones.protocol import RemappedState
from tadpipe.backbones.representation import frame_features
from tadpipe.backbones.slowfast import SlowFast
from tadpipe.backbones.slowfast import remap_official_keys as remap_slowfast
from tadpipe.backbones.tia import AdapterConfig, adapter_parameters, add_adapters
from tadpipe.backbones.tuning import set_tuning
from tadpipe.backbones.videoswin import VideoSwin
from tadpipe.backbones.videoswin import remap_official_keys as remap_videoswin
from tadpipe.config import PixelRecipe
from tests.parity.case import Case
from tests.parity.recipe_cases import Tolerance, check_arrays, drawn_input
from tests.parity.slowfast import blocks_of
from tests.parity.videoswin import built


def run(case: Case) -> None:
    config = case.config["config"]
    swin = "depths" in config
    state = {f"backbone.{key}": value for key, value in case.weights().items()}
    remapped = remap_videoswin(state) if swin else remap_slowfast(state)
    model: SlowFast | VideoSwin = built(config) if swin else slowfast(case, remapped)
    found = remapped.arguments["adapters"]
    case.claim("kind and size of the adapters", found.kind == "tia" and found.kernel == 3)
    case.compare("hidden share", found.ratio, config["adapter_ratio"])
    every = tuple(range(len(model.adapter_sites())))
    case.claim("blocks with adapters", found.blocks == every)
    clips = drawn_input(case)
    model.set_clip_len(clips.shape[2])
    compare_frozen(case, model, remapped, clips)
    wanted = AdapterConfig(
        ratio=config["adapter_ratio"],
        kernel=config["kernel_size"],
        stages=() if swin else tuple(config["adapter_stages"]),
        pathways=() if swin else tuple(config["adapter_pathways"]),
    )
    add_adapters(model, wanted)
    added = sum(p.numel() for p in adapter_parameters(model).values())
    case.compare("adapter parameters", added, case.config["adapter_parameters"])
    compare_step_0(case, model, clips)
    load_strictly(model, remapped.state, str(case.path), "")
    case.claim("strict load", True)
    compare_tuned(case, model, clips)


def slowfast(case: Case, remapped: RemappedState) -> SlowFast:
    config = case.config["config"]
    arguments = {key: value for key, value in remapped.arguments.items() if key != "adapters"}
    return SlowFast(
        name="parity",
        pixels=PixelRecipe(),
        blocks=blocks_of(config),
        alpha=int(config["alpha"]),
        width=int(config["base_channels"]),
        beta_inv=int(config["beta_inv"]),
        **arguments,
    )


@torch.no_grad()
def compare_frozen(
    case: Case, model: SlowFast | VideoSwin, remapped: RemappedState, clips: Tensor
) -> None:
    """The backbone alone."""
    frozen = {key: value for key, value in remapped.state.items() if ".adapter." not in key}
    load_strictly(model, frozen, str(case.path), "")
    model.eval()
    frames = frame_features(model, clips, clips.shape[2] // 2)
    check_arrays(case, {"frames_frozen": frames}, Tolerance.of(case))


@torch.no_grad()
def compare_step_0(case: Case, model: SlowFast | VideoSwin, clips: Tensor) -> None:
    """New adapters change no bit."""
    length = clips.shape[2] // 2
    with_new = frame_features(model, clips, length)
    holders = [site.block for site in model.adapter_sites()]
    adapters = [block.adapter for block in holders]
    for block in holders:
        block.adapter = None
    without = frame_features(model, clips, length)
    for block, adapter in zip(holders, adapters, strict=True):
        block.adapter = adapter
    case.claim("step 0 equals the frozen network bit for bit", torch.equal(with_new, without))


def compare_tuned(case: Case, model: SlowFast | VideoSwin, clips: Tensor) -> None:
    """Outputs with the stored adapters, and gradients of exactly the adapters."""
    tolerance = Tolerance.of(case)
    set_tuning(model, "adapter", representation="frame")
    model.train()
    if isinstance(model, SlowFast):
        slow, fast = model.pathways(clips, fixed_step=True)
        check_arrays(case, {"trunk_slow": slow, "trunk_fast": fast}, tolerance)
    else:
        check_arrays(case, {"trunk": model.feature_map(clips)}, tolerance)
    frames = frame_features(model, clips, clips.shape[2] // 2)
    check_arrays(case, {"frames": frames}, tolerance)
    seed = int(case.config["loss"].split("manual_seed(")[1].split(")")[0])
    generator = torch.Generator().manual_seed(seed)
    loss = (frames * torch.randn(frames.shape, generator=generator)).sum()
    loss.backward()
    case.check("loss", loss, rtol=1e-3)
    norms = case.config["grad_norms_of_loss"]
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    case.claim("exactly the adapters have a gradient", gradients.keys() == norms.keys())
    rtol = float(case.config["tolerance"]["grad_norm_rtol"])
    for name, norm in norms.items():
        case.compare(f"grad {name}", gradients[name].norm(), norm, rtol=rtol)

"""Every family of backbones through torch.compile: needs a C++ compiler and 20 seconds each."""

from __future__ import annotations

import shutil

import pytest
import torch

from tadpipe.backbones.loading import load_backbone

CLIPS = {  # frames and side of a small clip
    "videomae-tiny": (16, 224),
    "i3d-rgb": (16, 64),
    "r2plus1d-34": (16, 64),
    "tsm-r50": (8, 64),
    "slowfast-r50": (32, 64),
    "slowonly-r50": (8, 64),
    "videoswin-t": (16, 112),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler itself
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("name", CLIPS)
def test_compiled_backbone_gives_the_features_of_the_eager_one(name: str) -> None:
    backbone = load_backbone(name, "random")
    frames, side = CLIPS[name]
    clip = torch.randn(1, 3, frames, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        eager = backbone(clip)
        backbone.compile_trunk()
        compiled = backbone(clip)
    tolerance = 1e-5 * eager.abs().max().item()
    torch.testing.assert_close(compiled, eager, rtol=0, atol=tolerance)

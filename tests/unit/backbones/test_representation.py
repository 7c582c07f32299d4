"""Frame and snippet representation: order of time, resizing, masks, whole clips only."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tadpipe.backbones.representation import frame_features, snippet_features
from tadpipe.backbones.videomae import VideoMAE, videomae_tiny
from tadpipe.errors import ConfigError
from tadpipe.training.egs import EgsConfig, egs_backward


@pytest.fixture(scope="module")
def model() -> VideoMAE:
    torch.manual_seed(0)
    return videomae_tiny().eval()


def frames(count: int = 48) -> Tensor:
    return torch.randn(2, 3, count, 32, 32, generator=torch.Generator().manual_seed(1))


def test_frame_features_are_the_steps_of_the_clips_in_order(model: VideoMAE) -> None:
    windows = frames()
    with torch.no_grad():
        line = frame_features(model, windows, 6)
        assert line.shape == (2, 96, 6)
        for clip in range(3):
            maps = model.feature_map(windows[:, :, 16 * clip : 16 * clip + 16])
            wanted = maps.mean(dim=(3, 4))
            assert torch.allclose(line[:, :, 2 * clip : 2 * clip + 2], wanted, atol=1e-5)


def test_frame_features_are_resized_between_centres_of_cells(model: VideoMAE) -> None:
    with torch.no_grad():
        line, double = (frame_features(model, frames(), length) for length in (6, 12))
    assert torch.allclose(double[..., 0], line[..., 0], atol=1e-6)
    assert torch.allclose(double[..., 1], 0.75 * line[..., 0] + 0.25 * line[..., 1], atol=1e-5)
    assert torch.allclose(double[..., 11], line[..., 5], atol=1e-6)


def test_snippet_features_are_the_vectors_of_single_clips(model: VideoMAE) -> None:
    clips = frames(64).unflatten(2, (4, 16)).transpose(1, 2)
    with torch.no_grad():
        features = snippet_features(model, clips)
        assert features.shape == (2, 96, 4)
        assert torch.allclose(features[1, :, 2], model(clips[1, 2:3])[0], atol=1e-5)


def test_steps_that_are_not_valid_are_zero(model: VideoMAE) -> None:
    mask = torch.arange(6) < torch.tensor([[6], [4]])
    with torch.no_grad():
        line = frame_features(model, frames(), 6, mask)
        clips = frames(96).unflatten(2, (6, 16)).transpose(1, 2)
        vectors = snippet_features(model, clips, mask)
    for features in (line, vectors):
        assert not features[1, :, 4:].any()
        assert features[1, :, 3].abs().sum() > 0
        assert features[0, :, 5].abs().sum() > 0


def test_windows_that_are_no_whole_clips_are_refused(model: VideoMAE) -> None:
    for count in (40, 8):
        with pytest.raises(ConfigError, match="whole clips"):
            frame_features(model, frames(count), 6)


def test_gradient_of_all_snippets_by_egs_is_that_of_one_pass() -> None:
    torch.manual_seed(0)
    model = videomae_tiny(drop_path=0.2).double()
    clips = torch.randn(1, 5, 3, 16, 32, 32, dtype=torch.float64)
    pull = torch.randn(96, dtype=torch.float64)

    def loss(features: Tensor) -> dict[str, Tensor]:
        return {"loss": (features.double() * pull[:, None]).tanh().sum()}

    egs_backward(model, clips, loss, EgsConfig(1.0, micro_batch=2), generator=torch.Generator())
    sampled = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.eval()
    loss(model(clips[0]).T[None])["loss"].backward()
    whole = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert sampled.keys() == whole.keys()
    for name, gradient in whole.items():
        assert torch.allclose(sampled[name], gradient, rtol=1e-9, atol=1e-12), name

"""Adapters in the blocks of SlowFast, SlowOnly and Video Swin: where, how many, what they reach."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tadpipe.backbones import BACKBONES
from tadpipe.backbones.loading import load_backbone, save_backbone
from tadpipe.backbones.representation import frame_features
from tadpipe.backbones.tia import Adaptable, AdapterConfig, adapter_parameters, add_adapters
from tadpipe.backbones.tuning import set_tuning
from tadpipe.errors import ConfigError
from tadpipe.registry import resolve
from tests.unit.backbones.narrow import NARROW, awake, clips, gradients, narrow_slowfast, staged

COUNTS = {
    ("slowfast-r50", (), ()): 11_536_592,
    ("slowfast-r50", (), ("slow",)): 11_355_024,
    ("slowfast-r50", (2, 3, 4), ()): 11_422_106,
    ("slowfast-r50", (2, 3, 4), ("slow",)): 11_242_509,
    ("videoswin-b", (), ()): 3_956_120,
    ("videoswin-b", (2, 3, 4), ()): 3_937_046,
}


@pytest.mark.parametrize(("name", "stages", "pathways"), COUNTS)
def test_adapters_have_the_expected_parameters(
    name: str, stages: tuple[int, ...], pathways: tuple[str, ...]
) -> None:
    with torch.device("meta"):
        model = resolve("backbone", BACKBONES, name)()
        add_adapters(model, AdapterConfig(stages=stages, pathways=pathways))
    added = sum(p.numel() for p in adapter_parameters(model).values())
    assert added == COUNTS[name, stages, pathways]


@pytest.mark.parametrize("kind", ["tia", "plain"])
@pytest.mark.parametrize("name", NARROW)
def test_new_adapters_change_no_bit(name: str, kind: str) -> None:
    frozen, adapted = staged(name), staged(name)
    add_adapters(adapted, AdapterConfig(kind=kind))  # type: ignore[arg-type]  # one of the kinds
    with torch.inference_mode():
        assert torch.equal(adapted(clips()), frozen(clips()))
        line = frame_features(adapted, clips(1, frames=32), 16)
        assert torch.equal(line, frame_features(frozen, clips(1, frames=32), 16))


@pytest.mark.parametrize("name", NARROW)
def test_only_adapters_get_gradients_and_all_of_them_do(name: str) -> None:
    model = staged(name)
    add_adapters(model, AdapterConfig())
    awake(model)
    set_tuning(model, "adapter", representation="frame")
    model.train()
    frame_features(model, clips(1, frames=32), 16).square().sum().backward()
    assert gradients(model).keys() == adapter_parameters(model).keys()


@pytest.mark.parametrize("name", NARROW)
def test_recomputing_gives_the_same_gradients(name: str) -> None:
    found = []
    for checkpoint in (False, True):
        model = staged(name)
        add_adapters(model, AdapterConfig(checkpoint=checkpoint))
        awake(model)
        set_tuning(model, "adapter", representation="frame")
        frame_features(model, clips(1, frames=32), 16).square().sum().backward()
        found.append(gradients(model))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


@pytest.mark.parametrize("name", NARROW)
def test_file_of_a_tuned_backbone_gives_the_same_features(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = f"tests.unit.backbones.narrow:narrow_{name}"
    monkeypatch.setitem(BACKBONES, f"narrow-{name}", target)
    model = staged(name)
    model.arguments = {}  # the narrow builder needs none
    add_adapters(model, AdapterConfig(stages=(3, 4), checkpoint=True))
    awake(model)
    if name == "videoswin":
        monkeypatch.setattr(model, "builder_arguments", dict)
    save_backbone(tmp_path / "tuned.safetensors", model)
    loaded = load_backbone(f"narrow-{name}", tmp_path / "tuned.safetensors")
    assert isinstance(loaded, Adaptable)
    assert loaded.adapter_sha256
    assert replace(loaded.adapters, checkpoint=False) == replace(model.adapters, checkpoint=False)
    with torch.inference_mode():
        assert torch.equal(loaded(clips()), model(clips()))


def test_lateral_connections_read_the_adapted_fast_pathway() -> None:
    model = staged("slowfast")
    add_adapters(model, AdapterConfig(pathways=("fast",), stages=(1,)))
    with torch.inference_mode():
        slow = narrow_slowfast().out_channels - model.fast_path.widths[-1]
        before = model(clips())[:, :slow]
        awake(model)
        assert not torch.allclose(model(clips())[:, :slow], before)


@pytest.mark.parametrize(
    ("name", "wrong", "text"),
    [
        ("slowfast", AdapterConfig(kind="ladder"), "one shape"),
        ("videoswin", AdapterConfig(pathways=("fast",)), "does not have these pathways"),
        ("slowonly", AdapterConfig(stages=(5,)), "does not have these stages"),
        ("slowfast", AdapterConfig(kind="longlora"), "tunes attention"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(name: str, wrong: AdapterConfig, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        add_adapters(staged(name), wrong)

"""Every published key layout names the same weights; what does not fit is refused with a reason."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tadpipe.backbones.videomae_keys import remap_official_keys
from tadpipe.errors import CheckpointError
from tests.unit.backbones.layouts import huggingface_state, mmaction_state, official_state


def same(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return set(ours) == set(expected) and all(torch.equal(ours[k], expected[k]) for k in expected)


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "backbone.", "module.model."])
def test_official_names_stay_and_prefixes_go(prefix: str) -> None:
    state = {prefix + key: value for key, value in official_state().items()}
    remapped = remap_official_keys(state)
    assert remapped.layout == "official"
    assert remapped.arguments == {}
    assert same(remapped.state, official_state())


@pytest.mark.parametrize("bias_names", ["hub", "v5"])
@pytest.mark.parametrize("prefix", ["videomae.", ""])
def test_huggingface_is_renamed_and_brings_its_norm_eps(bias_names: str, prefix: str) -> None:
    remapped = remap_official_keys(huggingface_state(bias_names=bias_names, prefix=prefix))
    assert remapped.layout == "huggingface"
    assert remapped.arguments == {"fc_norm_eps": 1e-5}
    assert same(remapped.state, official_state())


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.backbone.", "model.backbone."])
def test_mmaction_is_renamed_and_keeps_its_table_for_comparison(prefix: str) -> None:
    remapped = remap_official_keys(mmaction_state(prefix=prefix))
    assert remapped.layout == "mmaction"
    table = remapped.state.pop("pos_table")
    assert table.shape == (1, 8, 12)
    assert same(remapped.state, official_state())


@pytest.mark.parametrize("prefix", ["backbone.model.backbone.", "module.backbone.model.backbone."])
def test_backbone_is_taken_out_of_a_whole_detector(prefix: str) -> None:
    state = mmaction_state(prefix=prefix)
    del state["cls_head.fc_cls.weight"], state["cls_head.fc_cls.bias"]
    start = prefix.removesuffix("backbone.model.backbone.")
    state[f"{start}rpn_head.cls_head.weight"] = torch.zeros(3)
    state[f"{start}projection.embd.0.weight"] = torch.zeros(3)
    remapped = remap_official_keys(state)
    expected = {k: v for k, v in official_state().items() if not k.startswith("head.")}
    assert same({k: v for k, v in remapped.state.items() if k != "pos_table"}, expected)


@pytest.mark.parametrize("layout", ["official", "mmaction"])
def test_branch_scales_in_the_file_switch_them_on(layout: str) -> None:
    official = official_state(init_values=0.1)
    state = official if layout == "official" else mmaction_state(init_values=0.1)
    remapped = remap_official_keys(state)
    assert remapped.arguments["init_values"] > 0
    assert torch.equal(remapped.state["blocks.1.gamma_2"], official["blocks.1.gamma_2"])


@pytest.mark.parametrize(
    "key",
    [
        "encoder.patch_embed.proj.weight",
        "module.encoder.blocks.0.norm1.weight",
        "decoder.blocks.0.attn.qkv.weight",
        "encoder_to_decoder.weight",
        "mask_token",
    ],
)
def test_pretraining_weights_are_refused(key: str) -> None:
    state = {**official_state(), key: torch.zeros(2)}
    with pytest.raises(CheckpointError, match="pretraining weights") as caught:
        remap_official_keys(state)
    assert key in str(caught.value)
    assert "fine-tuned" in str(caught.value)


@pytest.mark.parametrize("prefix", ["videomae.", ""])
def test_model_without_fc_norm_is_refused(prefix: str) -> None:
    state = huggingface_state(prefix=prefix)
    del state["fc_norm.weight"], state["fc_norm.bias"]
    with pytest.raises(CheckpointError, match="no fc_norm") as caught:
        remap_official_keys(state)
    assert "VideoMAEForVideoClassification" in str(caught.value)


def test_foreign_weights_are_refused_with_their_first_keys() -> None:
    with pytest.raises(CheckpointError, match="not a VideoMAE") as caught:
        remap_official_keys({"conv1.weight": torch.zeros(1), "layer1.0.bn1.weight": torch.zeros(1)})
    assert "conv1.weight" in str(caught.value)


def test_unknown_keys_are_kept_so_that_a_strict_load_can_name_them() -> None:
    state = {**mmaction_state(), "backbone.blocks.0.adapter.gamma": torch.ones(1)}
    assert "blocks.0.adapter.gamma" in remap_official_keys(state).state
    half = huggingface_state()
    del half["videomae.encoder.layer.1.attention.attention.key.weight"]
    remapped = remap_official_keys(half).state
    assert "blocks.1.attn.qkv.weight" not in remapped
    assert "blocks.1.attention.attention.query.weight" in remapped

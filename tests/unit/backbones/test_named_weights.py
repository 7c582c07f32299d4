"""Weights by name: found by hand, pinned, never downloaded unpinned, always explained."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

import pytest

from tadpipe.backbones import BACKBONES
from tadpipe.backbones.named_weights import NAMED_WEIGHTS, NamedWeights, default_weights
from tadpipe.errors import CheckpointError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TADPIPE_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def test_every_name_is_a_backbone_and_every_pin_is_complete() -> None:
    assert set(NAMED_WEIGHTS) <= set(BACKBONES)
    for weights in NAMED_WEIGHTS.values():
        assert weights.source.startswith("https://")
        if weights.sha256:
            assert re.fullmatch("[0-9a-f]{64}", weights.sha256)
            assert weights.repo
            assert re.fullmatch("[0-9a-f]{40}", weights.revision)


@pytest.mark.parametrize("name", ["videomae-l", "videomae-h", "videomae-g"])
def test_unpinned_weights_are_asked_for_by_hand(name: str, folder: Path) -> None:
    with pytest.raises(CheckpointError, match="are not here") as caught:
        default_weights(name)
    message = str(caught.value)
    assert NAMED_WEIGHTS[name].file in message
    assert NAMED_WEIGHTS[name].source in message
    assert str(folder / f"{name}.pth") in message
    assert "--weights FILE" in message


def test_missing_download_extra_is_explained(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError) as caught:
        default_weights("videomae-s")
    assert "tadpipe[hub]" in str(caught.value)
    assert str(folder / "videomae-s.pth") in str(caught.value)


def test_failed_download_names_the_file_and_its_place(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def offline(*_arguments: object, **_options: object) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr(hub, "hf_hub_download", offline)
    with pytest.raises(CheckpointError) as caught:
        default_weights("videomae-b")
    message = str(caught.value)
    assert "no network" in message
    assert "distill/vit_b_k710_dl_from_giant.pth" in message
    assert str(folder / "videomae-b.pth") in message


def test_file_put_there_by_hand_is_found(folder: Path) -> None:
    path = folder / "videomae-g.safetensors"
    path.write_bytes(b"weights")
    assert default_weights("videomae-g") == path


def test_pinned_file_must_have_its_hash(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "videomae-s.pth"
    path.write_bytes(b"weights")
    with pytest.raises(CheckpointError, match="not the published weights") as caught:
        default_weights("videomae-s")
    assert NAMED_WEIGHTS["videomae-s"].sha256 in str(caught.value)
    pinned = NamedWeights("f", "https://x", "r", "0" * 40, hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setitem(NAMED_WEIGHTS, "videomae-s", pinned)
    assert default_weights("videomae-s") == path


def test_backbone_without_published_weights_says_what_to_give() -> None:
    with pytest.raises(CheckpointError, match="No weights are published") as caught:
        default_weights("videomae-tiny")
    assert "--weights random" in str(caught.value)

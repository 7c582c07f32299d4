"""What a checkpoint is said to be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tadpipe.backbones.loading import load_backbone, save_backbone
from tadpipe.cli.main import run
from tadpipe.detectors import DETECTORS
from tadpipe.detectors.parts.decode import DecodeConfig
from tadpipe.detectors.tridet import wide_kernel
from tadpipe.pipeline.checkpoint_import import import_detector
from tadpipe.pipeline.checkpoint_inspect import inspect_checkpoint, presets_like
from tadpipe.pipeline.checkpoint_shapes import detectors_like, told_by_shapes
from tadpipe.pipeline.presets import load_preset
from tadpipe.registry import resolve
from tests.unit.pipeline.small_checkpoint import official_state, training_state, write_files


def test_training_state_of_a_release_is_described(tmp_path: Path) -> None:
    path = tmp_path / "epoch_007.pth.tar"
    torch.save(training_state(), path)
    found = inspect_checkpoint(path)
    assert (found.kind, found.families, found.layout) == ("detector", ("tridet",), "official")
    assert found.weights == {"ema": "state_dict_ema", "plain": "state_dict"}
    assert found.epoch == 7
    assert found.beside == ("epoch", "optimizer")
    assert found.levels == 3
    told = {name: found.shapes[name] for name in ("num_classes", "in_channels", "embed_dim")}
    assert told == {"num_classes": 2, "in_channels": 4, "embed_dim": 16}
    assert found.dtypes == {"float32": found.entries}
    assert found.parameters == sum(value.numel() for value in official_state().values())


def test_command_prints_one_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(official_state(), tmp_path / "bare.pth")
    assert run(["checkpoint", "inspect", str(tmp_path / "bare.pth"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["families"], document["weights"]) == (["tridet"], {"plain": ""})


def test_imported_run_is_said_to_be_ours(tmp_path: Path) -> None:
    write_files(tmp_path)
    import_detector(
        tmp_path / "epoch_007.pth.tar",
        config=tmp_path / "official.yaml",
        features=[tmp_path / "store.zarr"],
        labels=tmp_path / "labels.txt",
        out=tmp_path / "run",
        device="cpu",
    )
    found = inspect_checkpoint(tmp_path / "run" / "model.safetensors")
    assert (found.kind, found.families, found.layout) == ("detector", ("tridet",), "tadpipe")


def test_backbone_is_told_with_its_layout(tmp_path: Path) -> None:
    backbone = load_backbone("videomae-tiny", "random")
    torch.save({"model": backbone.state_dict()}, tmp_path / "a.pth")  # type: ignore[attr-defined]
    found = inspect_checkpoint(tmp_path / "a.pth")
    assert (found.kind, found.families) == ("backbone", ("videomae-tiny",))
    assert found.layout == "official"
    save_backbone(tmp_path / "b.safetensors", backbone)
    own = inspect_checkpoint(tmp_path / "b.safetensors")
    assert (own.kind, own.families, own.layout) == ("backbone", ("videomae-tiny",), "tadpipe")


def test_unknown_weights_are_said_to_be_unknown(tmp_path: Path) -> None:
    save_file({"fc.weight": torch.zeros(2, 3, dtype=torch.float16)}, tmp_path / "x.safetensors")
    found = inspect_checkpoint(tmp_path / "x.safetensors")
    assert (found.kind, found.families, found.parameters) == ("unknown", (), 6)
    assert "fc.weight" in found.text()


def test_plain_heads_on_tridets_encoder_may_be_of_two_detectors() -> None:
    state = official_state()
    plain = {k: v for k, v in state.items() if not k.startswith(("start_head", "end_head"))}
    assert detectors_like(plain) == ["tridet", "dyfadet"]


@pytest.mark.parametrize(
    "name",
    [
        "actionformer/thumos14_i3d",
        "actionformer/ego4d_slowfast_omnivore_egovlp",
        "asl/thumos14_i3d",
        "etad/activitynet_tsp",
        "dyfadet/hacs_slowfast",
        "tridet/activitynet_tsp",
    ],
)
def test_published_recipe_is_recognised_by_its_shapes(name: str) -> None:
    """Detectors whose names are the official ones, but for what a block calls its mixer."""
    preset = load_preset(name)
    width = preset.features.channels
    inputs = (2304, 1536, 256) if preset.features.separate else width or 2048
    classes = 1 if preset.windows.class_agnostic else 20
    config = preset.model_config(inputs, classes, name)
    with torch.device("meta"):
        model = resolve("detector", DETECTORS, preset.detector)(config, DecodeConfig())
    state = {k.replace(".mixer.", "."): v for k, v in model.state_dict().items()}
    state = {k.replace("_trunk.", "_head.head."): v for k, v in state.items()}
    assert detectors_like(state) == [preset.detector]
    assert told_by_shapes(preset.detector, state, preset.model)["num_classes"] == classes
    assert name in presets_like(preset.detector, state)


@pytest.mark.parametrize(("stated", "windows"), [(None, (1, 3, 3)), (3, 3), ((9, 3, 3), (9, 3, 3))])
def test_stated_windows_are_kept_where_the_shapes_agree(
    stated: int | tuple[int, ...] | None, windows: object
) -> None:
    told = told_by_shapes("tridet", official_state(), {"sgp_windows": stated})
    assert told["sgp_windows"] == windows


def test_factor_of_the_wide_kernel_is_one_that_gives_the_shapes() -> None:
    state = official_state()
    assert told_by_shapes("tridet", state, {"sgp_factor": 1.5})["sgp_factor"] == 1.5
    other = told_by_shapes("tridet", state, {"sgp_factor": 9.0})["sgp_factor"]
    sizes = {wide_kernel(window, other) for window in (1, 3)}
    assert sizes == {v.shape[2] for k, v in state.items() if k.endswith("convkw.weight")}

"""Official checkpoints into run folders: who says what, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tadpipe.backbones.loading import load_backbone
from tadpipe.detectors.asl import Asl, AslConfig
from tadpipe.detectors.parts.decode import DecodeConfig
from tadpipe.errors import CheckpointError, ConfigError
from tadpipe.pipeline.backbone_import import import_backbone
from tadpipe.pipeline.checkpoint_fit import load_official
from tadpipe.pipeline.checkpoint_import import import_detector
from tadpipe.pipeline.checkpoint_report import ImportResult
from tadpipe.pipeline.evaluate import evaluate
from tadpipe.pipeline.recipe import load_detector, load_recipe
from tests.unit.pipeline.small_checkpoint import (
    TABLES,
    official_state,
    small_tridet,
    training_state,
    write_files,
)

Import = Callable[..., ImportResult]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_files(tmp_path)
    return tmp_path


@pytest.fixture
def imported(folder: Path) -> Import:
    """Import the small checkpoint with everything stated; arguments replace."""

    def run(**other: Any) -> ImportResult:
        arguments: dict[str, Any] = {
            "path": folder / "epoch_007.pth.tar",
            "detector": "tridet",
            "config": folder / "official.yaml",
            "features": [folder / "store.zarr"],
            "labels": folder / "labels.txt",
            "out": folder / "run",
            "device": "cpu",
        }
        return import_detector(**{**arguments, **other})

    return run


def changed_tables(folder: Path, table: str, **values: Any) -> Path:
    path = folder / "changed.yaml"
    tables = {**TABLES, table: {**TABLES[table], **values}}
    path.write_text(yaml.safe_dump(tables), encoding="utf-8")
    return path


def without_store(folder: Path) -> dict[str, Any]:
    """Arguments for a checkpoint of released features that are not at hand."""
    state = training_state()
    for kind in ("state_dict", "state_dict_ema"):
        state[kind]["module.backbone.embd.0.conv.weight"] = torch.zeros(16, 2048, 3)
    torch.save(state, folder / "wide.pth")
    config = changed_tables(folder, "dataset", input_dim=2048)
    return {
        "path": folder / "wide.pth",
        "config": config,
        "features": [],
        "conventions": ["thumos14-i3d"],
    }


def test_imported_run_loads_as_a_trained_detector_with_averaged_weights(
    folder: Path, imported: Import
) -> None:
    imported()
    trained = load_detector(folder / "run")
    for name, value in small_tridet(0).state_dict().items():
        assert torch.equal(trained.model.state_dict()[name], value), name
    assert trained.recipe.labels == ("jump", "run")
    assert trained.recipe.nms.max_segments == 20
    assert trained.recipe.nms.vote_weight == "score"


def test_plain_weights_are_kept_beside_the_averaged_ones(folder: Path, imported: Import) -> None:
    imported()
    plain = load_file(folder / "run" / "model_plain.safetensors")
    assert torch.equal(
        plain["reg_head.offset_head.conv.weight"],
        official_state(1)["reg_head.offset_head.conv.weight"],
    )


def test_plain_weights_are_used_where_asked_for(folder: Path, imported: Import) -> None:
    assert imported(weights="plain").weights == "plain"
    assert torch.equal(
        load_file(folder / "run" / "model.safetensors")["cls_head.cls_head.conv.bias"],
        official_state(1)["cls_head.cls_head.conv.bias"],
    )


def test_averaged_weights_that_are_not_there_are_not_replaced(
    folder: Path, imported: Import
) -> None:
    state = training_state()
    del state["state_dict_ema"]
    torch.save(state, folder / "plain.pth")
    with pytest.raises(CheckpointError, match="no averaged weights"):
        imported(path=folder / "plain.pth", weights="ema")
    assert imported(path=folder / "plain.pth").weights == "plain"


def test_detector_is_told_by_the_keys(imported: Import) -> None:
    assert imported(detector=None, dry_run=True).detector == "tridet"


def test_dry_run_writes_nothing(folder: Path, imported: Import) -> None:
    imported(dry_run=True)
    assert not (folder / "run").exists()


def test_run_that_is_there_is_not_overwritten(folder: Path, imported: Import) -> None:
    imported()
    before = (folder / "run" / "recipe.json").read_bytes()
    with pytest.raises(ConfigError, match="holds a run already"):
        imported(labels=None, annotations=folder / "annotations.json")
    assert (folder / "run" / "recipe.json").read_bytes() == before


def test_score_writes_detections_that_evaluate_scores_again(folder: Path, imported: Import) -> None:
    done = imported(labels=None, annotations=folder / "annotations.json", score=True)
    assert done.evaluation is not None
    assert (folder / "run" / "detections.json").is_file()
    assert evaluate(folder / "run").to_mapping()["average_map"] == pytest.approx(
        done.evaluation.average_map
    )


def test_classes_are_named_by_their_number_in_the_annotations(
    folder: Path, imported: Import
) -> None:
    imported(labels=None, annotations=folder / "annotations.json")
    assert load_recipe(folder / "run").labels == ("run", "walk")


def test_annotations_without_class_numbers_are_not_enough(folder: Path, imported: Import) -> None:
    with pytest.raises(ConfigError, match="order of the classes is not stated") as caught:
        imported(labels=None)  # the store's own copy has no label_id
    assert "--labels" in str(caught.value)


def test_labels_of_another_number_of_classes_are_refused(folder: Path, imported: Import) -> None:
    (folder / "labels.txt").write_text("a\nb\nc\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"2 classes;.*3 lines"):
        imported()


def test_number_without_a_label_keeps_its_place(
    folder: Path, imported: Import, caplog: pytest.LogCaptureFixture
) -> None:
    document = json.loads((folder / "annotations.json").read_text())
    for video in document["database"].values():
        video["annotations"] = [a for a in video["annotations"] if a["label"] == "walk"]
    (folder / "annotations.json").write_text(json.dumps(document))
    imported(labels=None, annotations=folder / "annotations.json")
    assert load_recipe(folder / "run").labels == ("class 0", "walk")
    assert "1 of 2 classes" in caplog.text


def test_features_are_asked_for(imported: Import) -> None:
    with pytest.raises(ConfigError, match="which features") as caught:
        imported(features=[])
    assert "--convention" in str(caught.value)


def test_features_of_another_width_are_refused(imported: Import) -> None:
    with pytest.raises(ConfigError, match=r"2048 channels;.*: 4"):
        imported(features=[], conventions=["thumos14-i3d"])


def test_features_other_than_the_configuration_states_are_refused(
    folder: Path, imported: Import
) -> None:
    with pytest.raises(ConfigError, match=r"stride 8, .*: 4"):
        imported(config=changed_tables(folder, "dataset", feat_stride=8))


def test_convention_serves_where_no_store_is(folder: Path, imported: Import) -> None:
    imported(**without_store(folder))
    (spec,) = load_recipe(folder / "run").features
    assert (spec.backbone, spec.channels, spec.stride) == ("i3d-rgb+flow", 2048, 4)


def test_configuration_that_contradicts_the_shapes_names_both(
    folder: Path, imported: Import
) -> None:
    with pytest.raises(CheckpointError, match="do not belong together") as caught:
        imported(config=changed_tables(folder, "model", embd_dim=32, fpn_dim=32))
    assert "embed_dim: 16 by its shapes, 32 by model.embd_dim" in str(caught.value)
    assert "misshapen" in str(caught.value)


def test_shapes_overrule_a_preset_and_the_difference_is_said(imported: Import) -> None:
    done = imported(preset="tridet/default", dry_run=True)
    assert any(
        line.startswith("model.embed_dim = 16") and "preset" in line for line in done.fit.overruled
    )


def test_set_wins_over_the_configuration(folder: Path, imported: Import) -> None:
    imported(sets=["nms.sigma=0.25", "decode.pre_nms_topk=7"])
    recipe = load_recipe(folder / "run")
    assert (recipe.nms.sigma, recipe.decode.pre_nms_topk) == (0.25, 7)


def test_what_nobody_says_is_asked_for(folder: Path, imported: Import) -> None:
    path = folder / "short.yaml"
    tables = json.loads(json.dumps(TABLES))
    del tables["test_cfg"]["max_seg_num"], tables["dataset"]["max_seq_len"]
    path.write_text(yaml.safe_dump(tables), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"model\.window_len, nms\.max_segments"):
        imported(config=path)


def test_preset_without_configuration_gives_a_run(folder: Path, imported: Import) -> None:
    ranges = "model.regression_ranges=[[0, 4], [4, 8], [8, 10000]]"
    imported(config=None, preset="tridet/default", sets=["model.window_len=32", ranges])
    assert load_recipe(folder / "run").model["branch_layers"] == 2


def test_dead_values_of_a_configuration_are_listed(folder: Path, imported: Import) -> None:
    done = imported(config=changed_tables(folder, "model", init_gate=1.0), dry_run=True)
    assert done.unread == ("model.init_gate",)


def test_incomplete_checkpoint_names_its_keys(folder: Path, imported: Import) -> None:
    state = training_state()
    weights = state["state_dict_ema"]
    del weights["module.start_head.cls_head.conv.bias"]
    weights["module.extra.weight"] = torch.zeros(1)
    weights["module.cls_head.head.0.conv.weight"] = torch.zeros(8, 3, 3)
    torch.save(state, folder / "partial.pth")
    with pytest.raises(CheckpointError) as caught:
        imported(path=folder / "partial.pth")
    text = str(caught.value)
    assert "missing (1): start_head.cls_head.conv.bias" in text
    assert "unexpected (1): extra.weight" in text
    assert "misshapen (1): cls_head.head.0.conv.weight" in text
    assert not (folder / "run").exists()


def test_checkpoint_without_a_level_names_its_keys(folder: Path, imported: Import) -> None:
    state = training_state()
    for kind in ("state_dict", "state_dict_ema"):
        state[kind] = {k: v for k, v in state[kind].items() if "branch.1." not in k}
    torch.save(state, folder / "partial.pth")
    with pytest.raises(CheckpointError, match=r"missing \(\d+\): backbone\.branch\.1\."):
        imported(path=folder / "partial.pth")


@pytest.mark.parametrize("detector", ["actionformer", "etad", "cltdr_gmg", "dyfadet"])
def test_checkpoint_of_another_detector_says_what_it_looks_like(
    imported: Import, detector: str
) -> None:
    with pytest.raises(
        CheckpointError, match=rf"not one of {detector.replace('_', '-')}"
    ) as caught:
        imported(detector=detector, config=None)
    assert "missing (" in str(caught.value)
    assert "unexpected (" in str(caught.value)
    assert "looks like tridet: use --from tridet" in str(caught.value)


def test_weights_of_something_else_look_like_nothing(folder: Path, imported: Import) -> None:
    torch.save({"state_dict": {"fc.weight": torch.zeros(2, 2)}}, folder / "other.pth")
    with pytest.raises(CheckpointError, match="no detector known here"):
        imported(path=folder / "other.pth")
    with pytest.raises(CheckpointError, match="--from"):
        imported(path=folder / "other.pth", detector=None)


def test_unknown_release_is_answered_with_the_nearest(imported: Import) -> None:
    with pytest.raises(ConfigError, match="tridet"):
        imported(detector="tridett")


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.py", "model = dict()", "not run"),
        ("a.yaml", "!!python/object/apply:os.system ['true']", "plain values"),
        ("a.yaml", "model: &a {x: 1}\ndataset: *a", "aliases"),
        ("a.yaml", "- 1", "Not a configuration"),
        ("a.yaml", "lr: 1", "Not a configuration of tridet"),
        ("a.yaml", "model: {backbone_arch: 3}", "model.backbone_arch = 3"),
        ("a.yaml", "model: [1", "plain values"),
    ],
)
def test_wrong_configuration_is_refused(
    folder: Path, imported: Import, name: str, content: str, text: str
) -> None:
    (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        imported(config=folder / name)
    assert text in str(caught.value)


def test_backbone_of_our_own_format_is_loaded_back(tmp_path: Path) -> None:
    backbone = load_backbone("videomae-tiny", "random")
    torch.save({"module": backbone.state_dict()}, tmp_path / "a.pth")  # type: ignore[attr-defined]
    done = import_backbone(tmp_path / "a.pth", "videomae", out=tmp_path / "b.safetensors")
    assert done.backbone == "videomae-tiny"
    loaded = load_backbone("videomae-tiny", tmp_path / "b.safetensors")
    for name, value in backbone.state_dict().items():  # type: ignore[attr-defined]
        assert torch.equal(loaded.state_dict()[name], value)  # type: ignore[attr-defined]


def test_backbone_of_no_known_size_is_refused(tmp_path: Path) -> None:
    backbone = load_backbone("videomae-tiny", "random")
    state = {k: v.clone() for k, v in backbone.state_dict().items()}  # type: ignore[attr-defined]
    state["fc_norm.weight"] = torch.zeros(7)
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(CheckpointError, match="Known sizes"):
        import_backbone(tmp_path / "odd.safetensors", "videomae", out=tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match=r"misshapen.*fc_norm\.weight"):
        import_backbone(
            tmp_path / "odd.safetensors", "videomae-tiny", out=tmp_path / "b.safetensors"
        )


def small_asl() -> Asl:
    config = AslConfig(
        in_channels=4,
        num_classes=2,
        window_len=32,
        embed_dim=8,
        neck_dim=8,
        head_dim=8,
        num_heads=2,
    )
    return Asl(config, DecodeConfig())


def test_asl_without_its_evaluators_keeps_fresh_ones() -> None:
    whole = small_asl().state_dict()
    state = {name: value + 1 for name, value in whole.items() if not name.startswith("ase.")}
    model = small_asl()
    fresh = load_official(model, "asl", state, "file")
    assert fresh == sorted(name for name in whole if name.startswith("ase."))
    assert torch.equal(model.state_dict()["ase.sigma_cls"], torch.ones(2))
    assert torch.equal(
        model.state_dict()["cls_head.cls_head.conv.bias"], state["cls_head.cls_head.conv.bias"]
    )


def test_asl_with_half_of_its_evaluators_is_incomplete() -> None:
    state = small_asl().state_dict()
    del state["ase.mu_cls"]
    with pytest.raises(CheckpointError, match=r"missing \(1\): ase\.mu_cls"):
        load_official(small_asl(), "asl", state, "file")


def test_run_imported_without_annotations_asks_for_them_to_be_scored(
    folder: Path, imported: Import
) -> None:
    imported(**without_store(folder))
    with pytest.raises(ConfigError, match="No annotations to score against"):
        evaluate(folder / "run")

"""Class scores in training, evaluation and comparison: labels, what is told, what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tadpipe.annotations import Annotations, Detection, load_detections, save_detections
from tadpipe.class_scores import ClassFusionConfig
from tadpipe.datasets.activitynet import ACTIVITYNET
from tadpipe.errors import AnnotationError, ConfigError
from tadpipe.pipeline import compare as compare_module
from tadpipe.pipeline.class_fusion import changed_rule, load_class_scores
from tadpipe.pipeline.compare import compare
from tadpipe.pipeline.evaluate import evaluate
from tadpipe.pipeline.names import names_of
from tadpipe.pipeline.presets import load_preset, preset_path
from tadpipe.pipeline.recipe import load_recipe
from tadpipe.pipeline.train_detector import TrainResult, train_detector
from tadpipe.training.metrics import read_metrics
from tests.unit.pipeline.test_compare import preset_file
from tests.unit.pipeline.tiny_store import SMALL, make_store

AGNOSTIC = (
    *SMALL,
    "windows.class_agnostic=true",
    "nms.multiclass=false",
    "training.learning_rate=0.01",
    "training.ema_decay=0.5",
    "training.epochs=6",
)


ACTIONFORMER = ClassFusionConfig("sqrt", 2, "none", 200)
DYFADET = ClassFusionConfig("sqrt", 2, "softmax-if-raw", 200)
ETAD_100, ETAD_200 = (ClassFusionConfig("product", 2, "none", most) for most in (100, 200))
PUBLISHED = {
    **dict.fromkeys(["actionformer/activitynet_i3d", "actionformer/activitynet_tsp"], ACTIONFORMER),
    **dict.fromkeys(["asl/activitynet_i3d", "cltdr-gmg/activitynet_tsp"], ACTIONFORMER),
    "tridet/activitynet_tsp": ACTIONFORMER,
    **dict.fromkeys(["dyfadet/activitynet_tsp", "dyfadet/fineaction_videomaev2"], DYFADET),
    "dyfadet/hacs_slowfast": DYFADET,
    **dict.fromkeys(["etad/activitynet_tsn", "etad/activitynet_tsp"], ETAD_100),
    "etad-opentad/activitynet_tsp": ETAD_100,
    **dict.fromkeys(["etad/thumos14_i3d", "etad-opentad/thumos14_i3d"], ETAD_200),
    "etad/hacs_slowfast": ClassFusionConfig("product", 3, "2*softmax", 100),
}


def write_scores(folder: Path, videos: range = range(10), name: str = "scores.json") -> Path:
    """A classifier that is right about every video, and surer the lower its number."""
    results = {f"video {i}": [0.9 - 0.01 * i, 0.2][:: 1 if i % 2 == 0 else -1] for i in videos}
    path = folder / name
    path.write_text(json.dumps({"results": results, "class": ["class 0", "class 1"]}))
    return path


def train(store: Path, out: Path, *, sets: tuple[str, ...] = AGNOSTIC, **given: Any) -> TrainResult:
    return train_detector(store, sets=sets, out=out, device="cpu", **given)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("store") / "tiny.zarr")


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scores(tmp_path_factory.mktemp("scores"))


@pytest.fixture(scope="module")
def labelled(store: Path, scores: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A class-agnostic run with class scores, validated twice."""
    sets = (*AGNOSTIC, "training.validate_every=3")
    return train(store, tmp_path_factory.mktemp("with") / "run", sets=sets, class_scores=scores)


@pytest.fixture(scope="module")
def plain(store: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """The same run without class scores."""
    return train(store, tmp_path_factory.mktemp("without") / "run")


@pytest.mark.parametrize("name", names_of("presets"))
def test_presets_fuse_as_their_authors_do(name: str) -> None:
    preset = load_preset(name)
    states_it = "[class_scores]" in preset_path(name).read_text(encoding="utf-8")
    assert states_it == (preset.windows.class_agnostic or name in PUBLISHED)
    if name in PUBLISHED:
        assert preset.class_scores == PUBLISHED[name]
        assert preset.windows.class_agnostic or not preset.nms.multiclass


def test_a_class_agnostic_run_is_scored_by_the_real_labels(labelled: TrainResult) -> None:
    assert labelled.evaluation is not None
    assert labelled.evaluation.score.labels == ("class 0", "class 1")
    assert labelled.evaluation.average_map > 0
    found = load_detections(labelled.run / "detections.json")["video 8"]
    assert {row.label for row in found} == {"class 0", "class 1"}
    assert [row.score for row in found] == sorted((row.score for row in found), reverse=True)


def test_run_folder_and_summary_say_where_labels_come_from(
    labelled: TrainResult, scores: Path
) -> None:
    recipe = json.loads((labelled.run / "recipe.json").read_text())
    rule = {"rule": "sqrt", "top_k": 2, "scale": "none", "max_segments": 200}
    assert recipe["class_scores"] == rule
    for name in ("config.json", "eval.json"):
        stated = json.loads((labelled.run / name).read_text())["class_scores"]
        assert stated.items() >= {**rule, "file": str(scores), "skip_unscored": False}.items()
        assert len(stated["sha256"]) == 64
    said = f"labels by class scores {scores}: sqrt(score x class score), top 2 classes"
    assert said in labelled.text()


def test_validation_uses_the_class_scores(labelled: TrainResult) -> None:
    reports = [line for line in read_metrics(labelled.run) if "validation_map" in line]
    assert len(reports) == 2
    assert reports[-1]["validation_map"] > 0


def test_without_class_scores_the_summary_says_so(plain: TrainResult) -> None:
    assert plain.evaluation is not None
    assert plain.evaluation.score.labels == ("action",)
    assert "no class scores given: all actions under the one label 'action'" in plain.text()
    assert "class_scores" not in json.loads((plain.run / "config.json").read_text())


def test_evaluating_a_class_agnostic_run_repeats_its_score(plain: TrainResult) -> None:
    stored = json.loads((plain.run / "eval.json").read_text())
    again = evaluate(plain.run)
    assert again.average_map == stored["average_map"] > 0
    assert again.has_one_label
    assert stored["class_agnostic"] is True


def test_labelled_afterwards_a_run_scores_as_if_trained_with_them(
    labelled: TrainResult, plain: TrainResult, scores: Path, tmp_path: Path
) -> None:
    assert labelled.evaluation is not None
    afterwards = evaluate(plain.run, class_scores=scores, out=tmp_path / "e.json")
    assert afterwards.score.map_at.tolist() == labelled.evaluation.score.map_at.tolist()
    assert afterwards.class_scores == labelled.evaluation.class_scores
    assert json.loads((tmp_path / "e.json").read_text()) == afterwards.to_mapping()
    assert evaluate(labelled.run).class_scores == afterwards.class_scores


def test_detections_are_labelled_once_only(labelled: TrainResult, scores: Path) -> None:
    with pytest.raises(ConfigError, match="have labels already") as caught:
        evaluate(labelled.run, class_scores=scores)
    assert str(scores) in caught.value.where


def truth_of(folder: Path) -> Path:
    """Two videos of one subset, one action each."""
    database = {
        f"video {i}": {
            "subset": "test",
            "duration": 9,
            "annotations": [{"segment": [1, 3], "label": f"class {i % 2}"}],
        }
        for i in (0, 1)
    }
    path = folder / "truth.json"
    path.write_text(json.dumps({"database": database}))
    return path


def found_in(folder: Path, label: str = "action") -> Path:
    """Both actions found, the first one with another beside it."""
    path = folder / "found.json"
    rows = {"video 0": [Detection(1, 3, label, 0.5), Detection(5, 6, "action", 0.25)]}
    save_detections(path, {**rows, "video 1": [Detection(1, 3, "action", 0.5)]})
    return path


def test_a_file_of_one_label_is_labelled_by_the_rule_asked_for(
    scores: Path, tmp_path: Path
) -> None:
    given = {"annotations": truth_of(tmp_path), "class_scores": scores}
    result = evaluate(found_in(tmp_path), **given)
    assert result.average_map == 1.0
    assert int(result.score.num_detections.sum()) == 6
    changed = ["class_scores.rule=product", "class_scores.top_k=1", "class_scores.scale=softmax"]
    result = evaluate(found_in(tmp_path), **given, sets=changed)
    assert int(result.score.num_detections.sum()) == 3
    said = f"{scores}: score x class score, class scores by softmax, top 1 class"
    assert said in result.text()


def test_a_file_of_several_labels_is_refused(scores: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"have labels already(.|\n)*2 labels"):
        evaluate(found_in(tmp_path, "class 0"), annotations=truth_of(tmp_path), class_scores=scores)


def test_a_file_of_one_label_alone_is_scored_under_it(tmp_path: Path) -> None:
    result = evaluate(found_in(tmp_path), annotations=truth_of(tmp_path))
    assert (result.has_one_label, result.score.labels) == (True, ("action",))
    assert result.average_map == 1.0


def test_videos_without_class_scores_are_named_or_skipped(tmp_path: Path) -> None:
    few = write_scores(tmp_path, range(1))
    given = {"annotations": truth_of(tmp_path), "class_scores": few}
    with pytest.raises(ConfigError, match=r"1 video without class scores(.|\n)*: video 1\n"):
        evaluate(found_in(tmp_path), **given)
    result = evaluate(found_in(tmp_path), **given, skip_unscored=True)
    assert result.unscored == ("video 1",)
    assert "1 video skipped without class scores: video 1" in result.text()
    assert result.average_map == 0.5


def test_training_does_not_begin_without_scores_of_every_test_video(
    store: Path, tmp_path: Path
) -> None:
    few = write_scores(tmp_path, range(9))
    with pytest.raises(ConfigError, match=r"video 9\n"):
        train(store, tmp_path / "run", class_scores=few)
    assert not (tmp_path / "run").exists()
    sets = (*AGNOSTIC, "training.epochs=1")
    result = train(store, tmp_path / "run", sets=sets, class_scores=few, skip_unscored=True)
    found = load_detections(tmp_path / "run" / "detections.json")
    assert found["video 9"] == []
    assert "1 video skipped without class scores: video 9" in result.text()


def test_a_validation_subset_needs_scores_when_it_is_looked_at(store: Path, tmp_path: Path) -> None:
    few = write_scores(tmp_path, range(8, 10))
    train(store, tmp_path / "run", class_scores=few, dry_run=True)
    with pytest.raises(ConfigError, match="video 6, video 7"):
        train(
            store,
            tmp_path / "run",
            sets=(*AGNOSTIC, "training.validate_every=1"),
            class_scores=few,
        )


def test_nms_by_class_and_class_scores_exclude_each_other(
    store: Path, scores: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"nms\.multiclass = true(.|\n)*multiclass=false"):
        train(store, tmp_path / "run", sets=SMALL, class_scores=scores)


def test_a_detector_of_classes_gets_its_labels_from_class_scores_too(
    store: Path, scores: Path, tmp_path: Path
) -> None:
    sets = (*SMALL, "nms.multiclass=false", "class_scores.top_k=1", "training.epochs=1")
    result = train(store, tmp_path / "run", sets=sets, class_scores=scores)
    found = load_detections(result.run / "detections.json")
    assert {row.label for row in found["video 8"]} == {"class 0"}
    assert {row.label for row in found["video 9"]} == {"class 1"}
    assert load_recipe(result.run).class_scores == ClassFusionConfig(top_k=1)


def test_a_recipe_without_the_table_still_loads(plain: TrainResult, tmp_path: Path) -> None:
    recipe = json.loads((plain.run / "recipe.json").read_text())
    del recipe["class_scores"]
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    assert load_recipe(tmp_path).class_scores == ClassFusionConfig()


def test_resuming_with_other_class_scores_names_them(
    labelled: TrainResult, store: Path, tmp_path: Path
) -> None:
    other = write_scores(tmp_path)
    sets = (*AGNOSTIC, "training.validate_every=3")
    with pytest.raises(ConfigError, match=r"class_scores\.file was"):
        train(store, labelled.run, sets=sets, class_scores=other, resume=True)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"skip_unscored": True}, "--skip-unscored"),
        ({"sets": ["class_scores.rule=product"]}, "--set class_scores.rule=product"),
    ],
)
def test_settings_of_class_scores_alone_are_refused(
    given: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="no class scores to apply this to") as caught:
        evaluate(found_in(tmp_path), annotations=truth_of(tmp_path), **given)
    assert words in caught.value.where


@pytest.mark.parametrize("setting", ["nms.sigma=0.3", "class_scores.rul=product", "rule=product"])
def test_only_the_rule_can_be_changed(setting: str) -> None:
    with pytest.raises(ConfigError):
        changed_rule(ClassFusionConfig(), [setting])


def test_prefixes_of_a_data_set_are_on_either_side(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    document = {"results": {"a": [0.25, 0.0], "v_b": [0.5, 0.0]}, "class": ["run", "jump"]}
    path.write_text(json.dumps(document))
    annotations = Annotations({}, ("run", "jump"))
    scores = load_class_scores(path, annotations, ACTIVITYNET, skip_unscored=False)
    found = {name: [Detection(0, 1, "action", 0.25)] for name in ("v_a", "b")}
    labelled = scores.label(found, ClassFusionConfig(top_k=1))
    assert labelled["v_a"] == [Detection(0, 1, "run", 0.25)]
    assert labelled["b"] == [Detection(0, 1, "run", math.sqrt(0.125))]


def test_epic_submissions_take_no_class_scores(scores: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="EPIC-Kitchens-100"):
        evaluate(tmp_path / "s.json", annotations=tmp_path / "a.csv", class_scores=scores)


def test_a_comparison_labels_finished_runs_and_does_not_train_them_again(
    store: Path, scores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {
        "detectors": ["actionformer"],
        "presets": [preset_file(tmp_path, "actionformer", AGNOSTIC)],
        "seeds": 1,
        "out": tmp_path / "out",
        "device": "cpu",
        "resamples": 20,
    }
    before = compare(store, **given)
    assert "class-agnostic, no class scores given" in before.text()
    monkeypatch.setattr(compare_module, "finish_runs", lambda *_: None)  # nothing is left to run
    after = compare(store, **given, class_scores=scores)
    (result,) = after.detectors
    assert (result.class_agnostic, result.labels) == (False, 2)
    assert f"actionformer: labels by class scores {scores}" in after.text()
    own = evaluate(result.seeds[0].run, class_scores=scores)
    assert result.seeds[0].average_map == own.average_map > 0


def test_in_a_comparison_detectors_with_nms_by_class_keep_their_labels(
    store: Path, scores: Path, tmp_path: Path
) -> None:
    presets = [
        preset_file(tmp_path, "actionformer", AGNOSTIC),
        preset_file(tmp_path, "asl", SMALL),
    ]
    given: dict[str, Any] = {"seeds": 1, "out": tmp_path / "out", "device": "cpu", "dry_run": True}
    both = compare(
        store, detectors=["actionformer", "asl"], presets=presets, class_scores=scores, **given
    )
    assert both.recipes["class_scores.rule"] == {"actionformer": "sqrt"}
    with pytest.raises(ConfigError, match="need class-agnostic NMS"):
        compare(store, detectors=["asl"], presets=presets[1:], class_scores=scores, **given)


def test_a_score_file_for_other_labels_is_refused_before_training(
    store: Path, tmp_path: Path
) -> None:
    path = tmp_path / "scores.json"
    path.write_text('{"results": {"video 8": [1.0, 0.0]}, "class": ["Class 0", "Class 1"]}')
    with pytest.raises(AnnotationError, match='without scores: "class 0", "class 1"'):
        train(store, tmp_path / "run", class_scores=path)

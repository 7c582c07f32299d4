"""Every preset loads, builds its detector, and is headed by its command and score."""

from __future__ import annotations

import shlex

import pytest
import torch

from tadpipe.datasets import DATASETS
from tadpipe.detectors import DETECTORS
from tadpipe.errors import ConfigError
from tadpipe.pipeline.names import names_of
from tadpipe.pipeline.presets import choose_preset, fitting_presets, load_preset, preset_path
from tadpipe.registry import resolve

NAMES = list(names_of("presets"))


@pytest.mark.parametrize("name", NAMES)
def test_preset_builds_its_detector(name: str) -> None:
    preset = load_preset(name)
    detector = resolve("detector", DETECTORS, preset.detector)
    assert name.startswith(f"{preset.detector}/")
    assert preset.dataset is None or preset.dataset in DATASETS
    widths = preset.model.get("embed_dim")
    several = preset.features.separate and isinstance(widths, list)
    in_channels = (8,) * len(widths) if several else preset.features.channels or 8
    num_classes = 1 if preset.windows.class_agnostic else 3
    with torch.device("meta"):  # no memory, no random numbers
        model = detector(preset.model_config(in_channels, num_classes, name), preset.decode)
    assert model.config.num_classes == num_classes


@pytest.mark.parametrize("name", NAMES)
def test_preset_opens_with_its_command_and_its_score(name: str) -> None:
    command, score = preset_path(name).read_text(encoding="utf-8").splitlines()[:2]
    words = shlex.split(command.removeprefix("# "))
    assert words[0] == "tadpipe"
    assert words[1] in ("demo", "e2e", "train-detector")
    if score.startswith("# Published: average mAP"):
        assert words[words.index("--preset") + 1] == name
        assert load_preset(name).dataset is not None
    else:  # nobody published a recipe: it says what it is for
        assert score.startswith("# ")
        assert preset_path(name).stem in ("default", "demo", "demo_e2e")


@pytest.mark.parametrize("detector", sorted({name.split("/")[0] for name in NAMES}))
def test_a_detector_with_presets_has_a_default_one_for_any_features(detector: str) -> None:
    name = choose_preset(detector, None)
    assert load_preset(name, detector=detector).detector == detector
    assert name in fitting_presets(detector, stride=7, clip_len=9, channels=11, backbone="x")


def test_fitting_presets_are_those_that_expect_such_features() -> None:
    fitting = fitting_presets(
        "actionformer", stride=4, clip_len=16, channels=2048, backbone="i3d-rgb"
    )
    assert fitting == ["actionformer/default", "actionformer/thumos14_i3d"]


def test_unknown_presets_and_keys_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match="actionformer/thumos14_i3d"):
        load_preset("actionformer/thumos14")
    with pytest.raises(ConfigError, match="learning_rate"):
        load_preset("actionformer/default", ["training.learning_rat=1"])
    with pytest.raises(ConfigError, match="training"):
        load_preset("actionformer/default", ["trainin.epochs=1"])


def test_values_can_be_set_and_are_checked() -> None:
    assert load_preset("actionformer/default", ["training.epochs=7"]).training.epochs == 7
    with pytest.raises(ConfigError, match="Expected int"):
        load_preset("actionformer/default", ["training.epochs=many"])
    with pytest.raises(ConfigError, match="follows from the features"):
        load_preset("actionformer/default", ["model.num_classes=7"])
    with pytest.raises(ConfigError, match="embed_dim"):
        load_preset("actionformer/default", ["model.embed_dims=7"]).model_config(8, 3, "x")


def test_a_preset_for_another_detector_is_refused() -> None:
    with pytest.raises(ConfigError, match="another detector"):
        load_preset("actionformer/default", detector="tridet")

"""The training loop: what a step does, what is logged, and that a resumed run is the same run."""

from __future__ import annotations

import itertools
import math
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tadpipe.datasets.loader import Batch
from tadpipe.errors import CheckpointError, ConfigError, TadpipeError
from tadpipe.training import loop
from tadpipe.training.checkpoint import load_state
from tadpipe.training.loop import DetectorLearner, Trainer, TrainingConfig, train
from tadpipe.training.metrics import read_metrics
from tadpipe.training.optim import learning_rate_at
from tests.unit.training.toy import toy_loader, toy_model

SHORT = TrainingConfig(
    learning_rate=0.01, warmup_epochs=1, epochs=4, checkpoint_every=4, tensorboard=False
)  # 15 steps


def toy_learner() -> DetectorLearner:
    return DetectorLearner(toy_model(), SHORT, "cpu")


class StopError(Exception):
    """Stands for a crash."""


def run(
    folder: Path,
    config: TrainingConfig = SHORT,
    *,
    resume: bool = False,
    stop_at: int | None = None,
) -> Trainer[Batch]:
    def on_step(step: int, loss: float) -> None:
        assert math.isfinite(loss)
        if step == stop_at:
            raise StopError

    return train(
        DetectorLearner(toy_model(), config, "cpu"),
        toy_loader(),
        config,
        folder,
        resume=resume,
        on_step=on_step,
    )


def test_every_loss_term_is_logged_by_name(tmp_path: Path) -> None:
    run(tmp_path)
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == list(range(15))
    assert set(lines[0]) == {"step", "cls", "size", "loss", "grad_norm", "learning_rate"}
    for line in lines:
        assert line["loss"] == pytest.approx(line["cls"] + line["size"], rel=1e-6)
        assert line["learning_rate"] == learning_rate_at(line["step"], 3, SHORT)


@pytest.mark.parametrize("stop_at", [1, 6, 13])
def test_a_run_that_broke_off_continues_bit_for_bit(tmp_path: Path, stop_at: int) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    expected = run(whole)
    with pytest.raises(StopError):
        run(broken, stop_at=stop_at)
    resumed = run(broken, resume=True)
    assert (broken / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    for name, value in expected.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value)
        assert torch.equal(resumed.ema.state[name], expected.ema.state[name])


def test_slow_steps_are_saved_by_the_minute_without_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    expected = run(whole)
    clock = itertools.count(step=40)  # two looks at it are more than a minute apart
    monkeypatch.setattr(loop, "monotonic", lambda: float(next(clock)))
    with pytest.raises(StopError):
        run(broken, stop_at=3)
    monkeypatch.undo()
    assert 1 < load_state(broken / loop.STATE_FILE).step < SHORT.checkpoint_every
    resumed = run(broken, resume=True)
    assert read_metrics(broken) == read_metrics(whole)
    for name, value in expected.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_a_state_that_takes_long_to_write_is_written_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(step=40)  # and a write takes 40 s, of which 800 s may pass
    monkeypatch.setattr(loop, "monotonic", lambda: float(next(clock)))
    steps: list[int] = []
    monkeypatch.setattr(loop, "save_state", lambda _path, state: steps.append(state.step))
    run(tmp_path, replace(SHORT, checkpoint_every=100))
    assert steps == [2, 15]


def test_a_half_written_last_line_is_replaced(tmp_path: Path) -> None:
    with pytest.raises(StopError):
        run(tmp_path, stop_at=9)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "lo')
    run(tmp_path, resume=True)
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(15))


def test_a_finished_run_is_not_trained_on(tmp_path: Path) -> None:
    run(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    assert run(tmp_path, resume=True).step == 15
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_another_seed_is_refused_on_resume(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(CheckpointError, match="seed 0, now 9"):
        train(toy_learner(), toy_loader(seed=9), SHORT, tmp_path, resume=True)


def test_the_gradient_norm_is_clipped_but_logged_before() -> None:
    def weights_after_one_step(limit: float) -> tuple[float, torch.Tensor]:
        config = TrainingConfig(
            optimizer="sgd", learning_rate=1.0, warmup_epochs=0, clip_grad_norm=limit, momentum=0.0
        )
        model = toy_model()
        before = model.head.weight.detach().clone()
        trainer = Trainer(DetectorLearner(model, config, "cpu"), config, steps_per_epoch=3)
        torch.manual_seed(1)
        norm = trainer.train_step(toy_loader().batch(0))["grad_norm"]
        return norm, model.head.weight.detach() - before

    norm, free = weights_after_one_step(0.0)
    clipped_norm, clipped = weights_after_one_step(norm / 10)
    assert clipped_norm == norm
    decay = 0.05 * toy_model().head.weight.detach()  # is not clipped
    assert torch.allclose((clipped + decay) * 10, free + decay, rtol=1e-3, atol=1e-6)


def test_the_average_is_updated_after_the_optimiser() -> None:
    config = TrainingConfig(learning_rate=0.1, warmup_epochs=0, ema_decay=0.5)
    model = toy_model()
    before = model.head.weight.detach().clone()
    trainer = Trainer(DetectorLearner(model, config, "cpu"), config, steps_per_epoch=3)
    trainer.train_step(toy_loader().batch(0))
    expected = 0.5 * before + 0.5 * model.head.weight.detach()
    assert torch.allclose(trainer.ema.state["head.weight"], expected)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_reduced_precision_trains_close_to_full_precision(amp: str) -> None:
    def first_loss(mode: str) -> float:
        config = TrainingConfig(warmup_epochs=0, amp=mode)  # type: ignore[arg-type]
        trainer = Trainer(DetectorLearner(toy_model(), config, "cpu"), config, steps_per_epoch=3)
        torch.manual_seed(1)
        return trainer.train_step(toy_loader().batch(0))["loss"]

    reduced, full = first_loss(amp), first_loss("off")
    assert reduced != full
    assert reduced == pytest.approx(full, rel=0.05)


def test_validation_sees_the_averaged_weights_and_is_only_reported(tmp_path: Path) -> None:
    model = toy_model()
    seen = []

    def validate(epoch: int) -> Mapping[str, float]:
        seen.append((epoch, model.head.weight.detach().clone()))
        return {"val_map": float(epoch)}

    config = TrainingConfig(
        learning_rate=0.01, warmup_epochs=1, epochs=3, validate_every=2, tensorboard=False
    )
    trainer = train(
        DetectorLearner(model, config, "cpu"),
        toy_loader(),
        config,
        tmp_path,
        resume=False,
        validate=validate,
    )
    assert [epoch for epoch, _ in seen] == [2, 4]
    assert torch.equal(seen[-1][1], trainer.ema.state["head.weight"])
    lines = [line for line in read_metrics(tmp_path) if "val_map" in line]
    assert lines == [{"step": 5, "val_map": 2.0}, {"step": 11, "val_map": 4.0}]


def test_few_videos_are_gone_over_often_enough(tmp_path: Path) -> None:
    config = TrainingConfig(
        learning_rate=0.01, warmup_epochs=1, epochs=4, min_steps=31, tensorboard=False
    )
    assert config.steps_per_epoch(3) == 9  # three passes of three steps, 45 steps in all
    assert TrainingConfig(min_steps=31).steps_per_epoch(100) == 100
    assert run(tmp_path, config).step == 45
    assert read_metrics(tmp_path)[9]["learning_rate"] == 0.01  # the warm-up lasts one epoch


def test_stopping_after_some_epochs_keeps_the_schedule(tmp_path: Path) -> None:
    config = TrainingConfig(
        learning_rate=0.01, warmup_epochs=1, epochs=4, stop_after_epochs=2, tensorboard=False
    )
    trainer = run(tmp_path, config)
    assert trainer.step == 6
    assert read_metrics(tmp_path)[-1]["learning_rate"] == learning_rate_at(5, 3, SHORT)


def test_ctrl_c_saves_the_step_under_way(tmp_path: Path) -> None:
    def press(step: int, _loss: float) -> None:
        if step == 5:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(toy_learner(), toy_loader(), SHORT, tmp_path, resume=False, on_step=press)
    assert run(tmp_path, resume=True, stop_at=None).step == 15
    whole = tmp_path / "whole"
    whole.mkdir()
    run(whole)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_a_loss_that_is_not_finite_stops_with_advice() -> None:
    trainer = Trainer(toy_learner(), SHORT, steps_per_epoch=3)
    batch = toy_loader().batch(0)
    with pytest.raises(TadpipeError, match=r"Lower training\.learning_rate"):
        trainer.train_step(batch._replace(feats=batch.feats * math.nan))


def test_tensorboard_gets_the_same_figures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run(tmp_path, TrainingConfig(warmup_epochs=0, epochs=1, tensorboard=True))
    assert list((tmp_path / "tensorboard").glob("events.*"))


@pytest.mark.parametrize("values", [{"batch_size": 0}, {"clip_grad_norm": -1.0}])
def test_impossible_values_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        TrainingConfig(**values)  # type: ignore[arg-type]

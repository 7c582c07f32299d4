"""The training loop: one order of operations per step, resumable after a kill at any moment.

Per step, as the official trainers do: gradients to None, forward, backward, clipping of the total
norm, optimiser, schedule, model EMA. On the CPU a resumed run repeats the loss curve of an
uninterrupted one bit for bit.
Shapes: B batch, C channels, T window length.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from tadpipe.datasets.loader import Batch
from tadpipe.detectors.protocol import Targets
from tadpipe.errors import CheckpointError, ConfigError, TadpipeError
from tadpipe.training.checkpoint import (
    TrainState,
    load_state,
    load_strictly,
    random_state,
    restore_random_state,
    save_state,
)
from tadpipe.training.distributed import ALONE, Ranks
from tadpipe.training.ema import ModelEma
from tadpipe.training.metrics import MetricsLog
from tadpipe.training.optim import (
    OptimConfig,
    learning_rate_at,
    make_optimizer,
    set_learning_rate,
)

logger = logging.getLogger(__name__)

STATE_FILE = "state.pt"
SAVE_SEC = 60.0  # a kill costs about this much work at most,
SAVE_SHARE = 0.05  # or as much as keeps the share of time spent writing below this
AnyBatch = TypeVar("AnyBatch")
Given = TypeVar("Given", covariant=True)
Taken = TypeVar("Taken", contravariant=True)


@dataclass(frozen=True)
class TrainingConfig(OptimConfig):
    """The `[training]` table of a preset: optimiser and schedule, and how the loop runs."""

    batch_size: int = 2  # windows per step
    clip_grad_norm: float = 1.0  # L2 norm over all parameters; 0 = no clipping
    ema_decay: float = 0.999
    amp: Literal["off", "bf16", "fp16"] = "off"  # autocast of the forward pass
    min_steps: int = 0  # few videos: an epoch goes over them as often as this many steps need
    stop_after_epochs: int = 0  # end early on the same schedule; 0 = run it to its end
    validate_every: int = 0  # epochs between reports on the validation subset; 0 = none
    checkpoint_every: int = 500  # steps between writes of state.pt; slow steps: about a minute
    tensorboard: bool = True  # when it is installed

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 1 or self.checkpoint_every < 1:
            raise ConfigError(
                "batch_size and checkpoint_every are at least 1.",
                f"batch_size = {self.batch_size}, checkpoint_every = {self.checkpoint_every}",
            )
        for name in ("clip_grad_norm", "min_steps", "stop_after_epochs", "validate_every"):
            if getattr(self, name) < 0:
                raise ConfigError(
                    "Negative values are not allowed; 0 switches off.",
                    f"{name} = {getattr(self, name)}",
                )

    @property
    def epochs_to_run(self) -> int:
        """Epochs in all, with the warm-up."""
        return min(self.stop_after_epochs or self.total_epochs, self.total_epochs)

    def steps_per_epoch(self, steps_per_pass: int) -> int:
        """Steps of an epoch of whole passes over the videos."""
        passes = -(-self.min_steps // (self.total_epochs * steps_per_pass))
        return max(passes, 1) * steps_per_pass


class Loader(Protocol[Given]):
    """Batches that follow from the seed and the step alone."""

    seed: int

    @property
    def steps_per_pass(self) -> int:
        """Batches in one pass over the videos."""

    def batches(self, first: int, last: int) -> Iterator[Given]:
        """The batches of steps `first` to `last - 1`."""


class Learner(Protocol[Taken]):
    """What is trained, and how a batch becomes losses and gradients.

    Attributes:
        model: everything that is averaged and saved; on its device.
        detector: the detector in it, whose loss may keep a state.
        frozen: entries of the model's state dict that never change.
    """

    model: nn.Module
    detector: nn.Module
    frozen: frozenset[str]

    def optimizer(self) -> torch.optim.Optimizer:
        """Over all parameters that train."""

    def backward(
        self, batch: Taken, scale: Callable[[Tensor], Tensor], step: int
    ) -> Mapping[str, Tensor]:
        """Gradients of the scaled sum of the losses; returns the losses by name."""

    def bank(self) -> dict[str, Tensor]:
        """What a feature bank holds that is not in a store."""

    def load_bank(self, bank: Mapping[str, Tensor]) -> None:
        """Take back what `bank` gave."""


class DetectorLearner:
    """A detector on stored features."""

    def __init__(self, model: nn.Module, config: TrainingConfig, device: str) -> None:
        self.model = self.detector = model.to(device)
        self.frozen: frozenset[str] = frozenset()
        self.config = config
        self.device = torch.device(device)

    def optimizer(self) -> torch.optim.Optimizer:
        return make_optimizer(self.model, self.config)

    def backward(
        self, batch: Batch, scale: Callable[[Tensor], Tensor], step: int
    ) -> Mapping[str, Tensor]:
        del step
        feats, mask = batch.feats.to(self.device), batch.mask.to(self.device)  # [B, C, T], [B, T]
        targets = Targets(batch.segments, batch.labels)
        terms = detector_losses(self.model, feats, mask, targets, self.config)
        scale(torch.stack(list(terms.values())).sum()).backward()
        return terms

    def bank(self) -> dict[str, Tensor]:
        return {}

    def load_bank(self, bank: Mapping[str, Tensor]) -> None:
        del bank


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """The precision of a forward pass; "off" changes nothing."""
    dtype = torch.bfloat16 if amp == "bf16" else torch.float16
    return torch.autocast(device.type, dtype=dtype, enabled=amp != "off")


def detector_losses(
    detector: nn.Module, feats: Tensor, mask: Tensor, targets: Targets, config: TrainingConfig
) -> dict[str, Tensor]:
    """Loss terms by name of feats [B, C, T] and mask [B, T], in the precision of the training."""
    there = Targets(
        [segments.to(feats.device) for segments in targets.segments],
        [labels.to(feats.device) for labels in targets.labels],
    )
    with autocast(feats.device, config.amp):
        outputs = detector(feats, mask)
        terms: dict[str, Tensor] = detector.loss(outputs, there)  # type: ignore[operator]  # a Detector
    return terms


Validate = Callable[[int], Mapping[str, float]]  # epoch -> figures; the model holds the EMA weights
OnStep = Callable[[int, float], None]  # step, total loss


class Trainer(Generic[AnyBatch]):
    """A learner with its optimiser and average; `step` is the next optimiser step."""

    def __init__(
        self,
        learner: Learner[AnyBatch],
        config: TrainingConfig,
        *,
        steps_per_epoch: int,
        ranks: Ranks = ALONE,
    ) -> None:
        self.learner = learner
        self.model = learner.model
        self.config = config
        self.steps_per_epoch = steps_per_epoch
        self.ranks = ranks
        self.step = 0
        self.optimizer = learner.optimizer()
        self.ema = ModelEma(self.model, config.ema_decay, frozen=learner.frozen)
        # Scaling keeps fp16 gradients from vanishing; bf16 has the range of float32.
        device = next(self.model.parameters()).device
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "fp16")

    def train_step(self, batch: AnyBatch) -> dict[str, float]:
        """One optimiser step; returns the loss terms by name, their sum, rate and norm."""
        rate = learning_rate_at(self.step, self.steps_per_epoch, self.config)
        set_learning_rate(self.optimizer, rate)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        terms = self.learner.backward(batch, self.scaler.scale, self.ranks.draws(self.step))
        self.ranks.average_gradients(self.model)
        total = torch.stack(list(terms.values())).sum()
        self.scaler.unscale_(self.optimizer)
        norm = _total_norm(self.model, self.config.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.ema.update(self.model)
        logged = {**terms, "loss": total, "grad_norm": norm}
        numbers = torch.stack([value.detach().float() for value in logged.values()])
        values = dict(zip(logged, self.ranks.average(numbers).tolist(), strict=True))
        if not math.isfinite(values["loss"]):
            raise TadpipeError(
                "The loss is not finite any more.",
                f"step {self.step}, " + ", ".join(f"{k} {v:g}" for k, v in values.items()),
                "Lower training.learning_rate, or look at the features: tadpipe store verify.",
            )
        self.step += 1
        return {**values, "learning_rate": rate}

    def state(self, seed: int) -> TrainState:
        """What `restore` needs to go on with the next step."""
        state, frozen = self.model.state_dict(), self.learner.frozen
        return TrainState(
            step=self.step,
            seed=seed,
            model={name: value for name, value in state.items() if name not in frozen},
            ema=self.ema.state,
            optimizer=self.optimizer.state_dict(),
            scaler=self.scaler.state_dict(),
            loss_state=self.learner.detector.loss_state(),  # type: ignore[operator]  # a Detector
            rng=random_state(),
            bank=self.learner.bank(),
        )

    def restore(self, state: TrainState, source: str) -> None:
        """Take back what `state` gave, torch's random state included."""
        own = self.model.state_dict()
        unchanged = {name: own[name] for name in self.learner.frozen}
        load_strictly(self.model, {**unchanged, **state.model}, source)
        self.ema.load_state(state.ema)
        self.optimizer.load_state_dict(state.optimizer)
        if state.scaler:
            self.scaler.load_state_dict(state.scaler)
        self.learner.detector.load_loss_state(state.loss_state)  # type: ignore[operator]  # a Detector
        self.learner.load_bank(state.bank)
        self.step = state.step
        restore_random_state(state.rng)


def train(
    learner: Learner[AnyBatch],
    loader: Loader[AnyBatch],
    config: TrainingConfig,
    folder: Path,
    *,
    resume: bool,
    validate: Validate | None = None,
    on_step: OnStep | None = None,
    ranks: Ranks = ALONE,
) -> Trainer[AnyBatch]:
    """Train to the last epoch; the run folder gets metrics and `state.pt` on the way.

    Args:
        resume: go on from `state.pt` if there is one.
        validate: called with the EMA weights in the model every `config.validate_every` epochs;
            what it returns is logged and nothing is chosen by it.
        ranks: of several processes the first one writes; `loader` gives each its share.
    Raises:
        CheckpointError: `state.pt` belongs to another seed or model.
        KeyboardInterrupt: Ctrl-C; the state was saved after the step under way.
    """
    steps_per_epoch = config.steps_per_epoch(loader.steps_per_pass)
    trainer = Trainer(learner, config, steps_per_epoch=steps_per_epoch, ranks=ranks)
    state_path = folder / STATE_FILE
    if resume and state_path.exists():
        state = load_state(state_path)
        if state.seed != loader.seed:
            raise CheckpointError(
                "The run was trained with another seed.",
                f"{state_path}: seed {state.seed}, now {loader.seed}",
                f"Use --seed {state.seed}, or another --out.",
            )
        trainer.restore(state, str(state_path))
        logger.info("resuming %s after step %d", folder, trainer.step)
    last = config.epochs_to_run * steps_per_epoch
    saved = _SaveClock()
    board = config.tensorboard and ranks.is_first
    with (
        ranks.folder(folder) as own,
        MetricsLog(own, first_step=trainer.step, tensorboard=board) as log,
        _deferred_interrupt() as asked,
    ):
        for batch in loader.batches(trainer.step, last):
            ranks.seed_step(loader.seed, trainer.step)
            values = trainer.train_step(batch)
            interrupted = ranks.any(bool(asked))
            log.write(trainer.step - 1, values)
            if on_step is not None:
                on_step(trainer.step - 1, values["loss"])
            if validate is not None and _validation_due(trainer, config):
                with trainer.ema.applied_to(trainer.model):
                    figures = validate(trainer.step // steps_per_epoch)
                log.write(trainer.step - 1, figures)
            due = trainer.step % config.checkpoint_every == 0 or saved.is_long_ago()
            if ranks.is_first and (due or trainer.step == last or interrupted):
                with saved.now():
                    log.sync()  # before the state that counts on these lines
                    save_state(state_path, trainer.state(loader.seed))
            if interrupted:
                raise KeyboardInterrupt
    return trainer


class _SaveClock:
    """Whether enough time has gone by since the last write, given how long that took."""

    def __init__(self) -> None:
        self._ended_sec = monotonic()
        self._took_sec = 0.0

    def is_long_ago(self) -> bool:
        return monotonic() - self._ended_sec >= max(SAVE_SEC, self._took_sec / SAVE_SHARE)

    @contextmanager
    def now(self) -> Iterator[None]:
        """Around a write."""
        started_sec = monotonic()
        yield
        self._ended_sec = monotonic()
        self._took_sec = self._ended_sec - started_sec


def _validation_due(trainer: Trainer[AnyBatch], config: TrainingConfig) -> bool:
    epochs, position = divmod(trainer.step, trainer.steps_per_epoch)
    return position == 0 and config.validate_every > 0 and epochs % config.validate_every == 0


def _total_norm(model: nn.Module, limit: float) -> Tensor:
    """Total L2 norm of the gradients before clipping them to `limit` (0 = none)."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    return nn.utils.clip_grad_norm_(parameters, limit if limit > 0 else math.inf)


@contextmanager
def _deferred_interrupt() -> Iterator[list[bool]]:
    """Collect the first Ctrl-C, to be looked at between two steps; a second one ends at once."""
    asked: list[bool] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(_number: int, _frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(True)

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, previous)

"""One run of a comparison, in a process of its own, and what it cost.

A process of its own because the peak of resident memory never falls: a second training would hide
in the first one's. The child ends with its parent, holds a lease on its run folder, and passes on
how far it is; Ctrl-C lets it save its state. `cost.json` is written last: a run that has one is
finished.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tadpipe.config import build, to_mapping
from tadpipe.errors import CheckpointError, ConfigError, TadpipeError
from tadpipe.pipeline.progress import Progress
from tadpipe.pipeline.recipe import Recipe, load_detector
from tadpipe.pipeline.run_folder import write_json
from tadpipe.pipeline.train_detector import train_detector
from tadpipe.store.durable import Lease

COST_FILE = "cost.json"
PROC_STATUS = Path("/proc/self/status")

# The child looks for modules where the parent does, and ends quietly until it can do better.
BOOT = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
sys.path[:] = sys.argv[1:]
from tadpipe.pipeline.compare_run import main
sys.exit(main())
"""


@dataclass(frozen=True)
class RunRequest:
    """The arguments of `train_detector`, as they travel to the child."""

    features: tuple[str, ...]
    detector: str
    preset: str
    sets: tuple[str, ...]
    out: str
    annotations: str | None
    dataset: str | None
    subset: str | None
    test_subset: str | None
    backbone: str | None
    stride: int | None
    device: str
    seed: int
    threads: int  # of torch, as in the parent


@dataclass(frozen=True)
class RunCost:
    """What a run took; seconds are of one process on a machine that may have had other work."""

    parameters: int
    flops: int  # one window forward, batch 1; multiply and add are two
    window_len: int  # grid steps of that window
    device: str
    steps: int
    steps_timed: int  # fewer than `steps` when the run was resumed
    timed_sec: float  # of these steps
    timed_cpu_sec: float
    peak_bytes: int | None  # of training, above what was held before; None: no step was timed
    peak_of: str  # how it was measured
    detect_sec: float  # features to detections over the test subset, NMS included
    detect_cpu_sec: float

    @property
    def train_sec(self) -> float | None:
        """Wall time of all steps, scaled up from those timed; None when none was."""
        return self.timed_sec * self.steps / self.steps_timed if self.steps_timed else None

    @property
    def train_cpu_sec(self) -> float | None:
        """CPU time of all steps, likewise."""
        return self.timed_cpu_sec * self.steps / self.steps_timed if self.steps_timed else None


def read_cost(run: Path) -> RunCost | None:
    """The cost of a finished run; None for one that is not finished.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = run / COST_FILE
    if not path.exists():
        return None
    try:
        return build(RunCost, json.loads(path.read_text(encoding="utf-8")), str(path))
    except ConfigError as error:
        raise CheckpointError(error.what, error.where, "Remove it and run again.") from None
    except ValueError as error:
        raise CheckpointError("The cost of a run cannot be read.", f"{path}: {error}") from None


def lease_path(run: Path) -> Path:
    """Held while somebody works on the run."""
    return run.with_name(f"{run.name}.lock")


def run_in_child(
    request: RunRequest, progress: Progress, label: str, stop: threading.Event | None = None
) -> bool:
    """Train, detect and measure; False when another process holds the run.

    Args:
        label: put before the names of the stages.
        stop: once set, the run is interrupted at its next step.
    Raises:
        TadpipeError: the run failed.
        KeyboardInterrupt: Ctrl-C, or `stop`; the child has saved its state.
    """
    child = subprocess.Popen(
        [sys.executable, "-c", BOOT, *sys.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,  # Ctrl-C in the terminal reaches it through the parent, once
    )
    assert child.stdin
    assert child.stdout
    try:
        child.stdin.write(json.dumps(to_mapping(request)) + "\n")
        child.stdin.flush()
        try:
            outcome = _follow(child.stdout, progress, label, stop)
        except KeyboardInterrupt:
            child.send_signal(signal.SIGINT)
            for _ in child.stdout:  # until it has saved its state and ended
                pass
            raise
        status = child.wait()
    finally:
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()
    if outcome is not None and "error" in outcome:
        error = outcome["error"]
        where = "\n".join(line for line in (f"run {request.out}", error["where"]) if line)
        raise TadpipeError(error["what"], where, error["todo"])
    if outcome is None:
        raise TadpipeError(
            "A run ended before its results were there.",
            f"run {request.out}: "
            + (f"signal {-status}" if status < 0 else f"exit status {status}"),
            "Repeat the command: it goes on where the run stopped.",
        )
    return not outcome.get("busy", False)


def _follow(
    events: IO[str], progress: Progress, label: str, stop: threading.Event | None
) -> dict[str, Any] | None:
    """Show the child's stages; its last event, or None if it ended without one."""
    for line in events:
        if stop is not None and stop.is_set():
            raise KeyboardInterrupt
        event: dict[str, Any] = json.loads(line)
        if "begin" in event:
            progress.begin(f"{label}: {event['begin']}", event["total"], event["unit"])
        elif "advance" in event:
            progress.advance(event["advance"], event["note"])
        elif "end" in event:
            progress.end()
        else:
            return event
    return None


class Stage(NamedTuple):
    """What a stage of the work took."""

    wall_sec: float
    cpu_sec: float
    advances: int
    peak_bytes: int


class StageClock:
    """A Progress that times every stage and passes everything on."""

    def __init__(self, memory: Memory, send: Callable[[dict[str, Any]], None]) -> None:
        self.stages: dict[str, Stage] = {}
        self._memory = memory
        self._send = send
        self._label = ""
        self._advances = 0
        self._start = (0.0, 0.0)

    def begin(self, label: str, total: int | None, unit: str) -> None:
        self._send({"begin": label, "total": total, "unit": unit})
        self._label, self._advances = label, 0
        self._start = (time.monotonic(), time.process_time())

    def advance(self, units: int = 1, note: str = "") -> None:
        self._advances += 1  # one call per step done now; the first may count earlier ones, too
        self._send({"advance": units, "note": note})

    def end(self, summary: str = "") -> None:
        wall, cpu = self._start
        self.stages[self._label] = Stage(
            time.monotonic() - wall,
            time.process_time() - cpu,
            self._advances,
            self._memory.peak_bytes(),
        )
        self._send({"end": summary})


class Memory:
    """Peak memory since it was made, above what was held then.

    On the CPU the kernel's high-water mark of this process (VmHWM): `ru_maxrss` would begin with
    the peak of the parent, which a child inherits; it is used where there is no /proc.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._cuda = device.startswith("cuda")
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(device)
        self.source = (
            "GPU memory allocated by torch"
            if self._cuda
            else "resident memory of the process (VmHWM)"
            if PROC_STATUS.exists()
            else "resident memory of the process (ru_maxrss)"
        )
        self._before = torch.cuda.memory_allocated(device) if self._cuda else _resident("VmRSS")

    def peak_bytes(self) -> int:
        if self._cuda:
            return torch.cuda.max_memory_allocated(self._device) - self._before
        return max(_resident("VmHWM") - self._before, 0)


def _resident(key: str) -> int:
    """Bytes from the kernel's status of this process, VmRSS now or VmHWM at most."""
    if not PROC_STATUS.exists():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    text = PROC_STATUS.read_text(encoding="ascii", errors="replace")
    return int(text.split(f"{key}:")[1].split()[0]) * 1024


def window_flops(model: nn.Module, recipe: Recipe) -> tuple[int, int]:
    """FLOPs of one window forward at batch 1, and its length as padded.

    torch's counter knows matrix products, convolutions and attention; it leaves out what is done
    element by element, and recurrent layers that run as one fused kernel.
    """
    length = model.padded_len(recipe.window_len)  # type: ignore[operator]  # a Detector
    device = next(model.parameters()).device
    feats = torch.zeros(1, sum(spec.channels for spec in recipe.features), length, device=device)
    mask = torch.ones(1, length, dtype=torch.bool, device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(feats, mask)
    return int(counter.get_total_flops()), length


def measured_run(request: RunRequest, send: Callable[[dict[str, Any]], None]) -> None:
    """Train (or go on), detect, score; then write what it cost."""
    # With its first optimiser torch loads its compiler: seconds and some 100 MiB that are no cost
    # of this training.
    torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    clock = StageClock(memory := Memory(request.device), send)
    run = Path(request.out)
    trained = train_detector(
        request.features,
        detector=request.detector,
        preset=request.preset,
        sets=request.sets,
        out=run,
        resume=True,
        annotations=request.annotations,
        dataset=request.dataset,
        subset=request.subset,
        test_subset=request.test_subset,
        backbone=request.backbone,
        stride=request.stride,
        device=request.device,
        seed=request.seed,
        progress=clock,
    )
    training = clock.stages["train"]
    detection = clock.stages[f"detect on '{trained.subsets.test}'"]
    model, recipe, _ = load_detector(run, device=request.device)
    flops, window_len = window_flops(model, recipe)
    cost = RunCost(
        parameters=trained.parameters,
        flops=flops,
        window_len=window_len,
        device=request.device,
        steps=trained.steps,
        steps_timed=training.advances,
        timed_sec=training.wall_sec,
        timed_cpu_sec=training.cpu_sec,
        peak_bytes=training.peak_bytes if training.advances else None,
        peak_of=memory.source,
        detect_sec=detection.wall_sec,
        detect_cpu_sec=detection.cpu_sec,
    )
    write_json(run / COST_FILE, to_mapping(cost))


def main() -> int:
    """The child: one request on stdin, events on stdout, the end of stdin is the parent's."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Whatever else is printed here goes to stderr.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    request = build(RunRequest, json.loads(sys.stdin.readline()), "request")
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(request.threads)
    run = Path(request.out)
    run.parent.mkdir(parents=True, exist_ok=True)
    lease = Lease.take(lease_path(run))
    if lease is None:
        send({"busy": True})
        return 0
    try:
        if read_cost(run) is None:
            measured_run(request, send)
        send({"done": True})
    except KeyboardInterrupt:
        return 1
    except TadpipeError as error:
        send({"error": {"what": error.what, "where": error.where, "todo": error.todo}})
        return 1
    finally:
        lease.release()
    return 0


def _end_with_parent() -> None:
    # Not through sys.stdin, whose lock a thread must not hold when the interpreter ends.
    while os.read(0, 4096):
        pass
    os._exit(1)

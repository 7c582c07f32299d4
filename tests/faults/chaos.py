"""Extraction on a cluster whose workers are killed all the time, and what must hold afterwards.

    python -m tests.faults.chaos --workers 8 --kills 10 --videos 200 --seed 0

Every worker is killed `--kills` times with SIGKILL, at random moments spread over the run, and the
scheduler is restarted once on the way; the same command is given again until it ends with 0.
Prints what was found as JSON; exits 1 if anything was lost, torn or begun again after its commit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tadpipe.errors import StoreError
from tadpipe.location import Address
from tadpipe.store.feature_store import FeatureStore
from tadpipe.store.verify import verify
from tests.corpus import make_video
from tests.faults.worker_pool import ROOT, WorkerPool

SETTINGS = ("--backbone", "videomae-tiny", "--weights", "random", "--device", "cpu")
IMPATIENT_SEC = 4.0  # a kill comes after so long even if nothing was finished since the last


@dataclass
class Findings:
    """What is wrong with a store after all that; everything but the first four must be nought.

    A video may be decoded or stored by two workers that had it at the same time, before either
    committed: one of a run whose scheduler was lost, and one of the next run.
    """

    videos: int
    finished: int  # ledger rows `done`, also of work that a kill took away before its commit
    decoded_in_vain: int  # another worker that was given the video had committed it by the end
    stored_twice: int  # contents in more than one part; the older one is read
    missing: int
    damaged: int
    done_after_commit: int  # extractions begun when the video was committed already
    half_parts: int
    left_in_spool: int

    @property
    def clean(self) -> bool:
        return not any(list(asdict(self).values())[4:])


def make_videos(folder: Path, count: int) -> None:
    """Short videos, no two with the same bytes."""
    folder.mkdir()
    bases = [make_video(folder / f"base{n}.mp4", frames=40 + 12 * n).read_bytes() for n in range(4)]
    for path in folder.iterdir():
        path.unlink()
    for number in range(count):
        mark = f"video {number:09d}".encode()
        box = (8 + len(mark)).to_bytes(4, "big") + b"free" + mark  # players skip it
        (folder / f"v{number:03d}.mp4").write_bytes(bases[number % len(bases)] + box)


def find_faults(path: str | Path, videos: int) -> Findings:
    """Look at everything a store says about itself."""
    store = FeatureStore.open(path, "a")
    (fid,) = store.specs()
    catalogue = store.videos(fid)
    missing = {f"v{number:03d}" for number in range(videos)} - set(catalogue)
    committed = visible_sec(store, fid)
    rows = [row for _, row in store.backend.attempts() if row.status == "done"]
    vain = [row for _, row in store.backend.attempts() if row.status == "reused" and row.seconds]
    late = [
        row
        for row in (*rows, *vain)
        if row.at_unix_sec - row.seconds > min(committed.get(row.content_sha256, [float("inf")]))
    ]
    store.gc()
    return Findings(
        videos=len(catalogue),
        finished=len(rows),
        decoded_in_vain=len(vain),
        stored_twice=sum(len(times) > 1 for times in committed.values()),
        missing=len(missing),
        damaged=len([finding for finding in verify(store, deep=True) if finding.damaged]),
        done_after_commit=len(late),
        half_parts=len(store.gc().half_parts),
        left_in_spool=store.status().waiting_in_spool,
    )


def visible_sec(store: FeatureStore, fid: str) -> dict[str, list[float]]:
    """Content -> when each commit that has it could be seen, unix seconds of this machine.

    Object storage dates by whole seconds: a commit counts from the latest moment it may mean.
    """
    commits = store.videos(fid).commits
    ages = store.backend.ages_sec(fid, [commit.id for commit in commits], [])
    latest_sec = time.time() + (1.0 if isinstance(store.path, Address) else 0.0)
    found: dict[str, list[float]] = {}
    for commit in commits:
        for content in commit.contents:
            found.setdefault(content, []).append(latest_sec - ages[commit.id])
    return found


def done_rows(path: str | Path) -> Callable[[], int]:
    """Counts the videos finished so far, for whoever waits for some."""

    def count() -> int:
        try:
            attempts = FeatureStore.open(path).backend.attempts()
        except StoreError:  # not made yet
            return 0
        return sum(row.status == "done" for _, row in attempts)

    return count


class Killer(threading.Thread):
    """Kills workers at random moments, evenly spread over the videos that get finished."""

    def __init__(
        self,
        pool: WorkerPool,
        store: str | Path,
        *,
        workers: int,
        kills: int,
        videos: int,
        seed: int,
    ) -> None:
        super().__init__(daemon=True)
        self.pool = pool
        self.count = done_rows(store)
        self.videos = videos
        self.draw = random.Random(seed)
        self.victims = [number for number in range(workers) for _ in range(kills)]
        self.draw.shuffle(self.victims)
        self.killed = 0
        self.restarted = 0
        self.stop = threading.Event()

    def run(self) -> None:
        for number, victim in enumerate(self.victims):
            self._wait_for(int(0.9 * self.videos * number / len(self.victims)))
            if self.stop.is_set():
                return
            self.pool.kill(victim)
            self.killed += 1
            if number == len(self.victims) // 2:
                self.pool.restart_scheduler()
                self.restarted += 1

    def _wait_for(self, finished: int) -> None:
        self.stop.wait(self.draw.uniform(0.0, 0.5))
        give_up = time.monotonic() + IMPATIENT_SEC
        while self.count() < finished and time.monotonic() < give_up and not self.stop.is_set():
            self.stop.wait(0.1)


def commands(folder: Path, store: str | Path, address: str) -> Iterator[int]:
    """Exit codes of the same command, given until it is done."""
    words = ["-m", "tadpipe", "extract", folder, "--store", store, "--scheduler", address]
    while True:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, *map(str, words), *SETTINGS]
        code = subprocess.run(command, env=environment, stdout=sys.stderr).returncode
        yield code
        if code == 0:
            return


def main() -> int:
    parser = argparse.ArgumentParser()
    for name, default in (("workers", 8), ("kills", 10), ("videos", 200), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--store", default=None, help="a new one, by default in a scratch folder")
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "videos")
        store = options.store or str(Path(scratch, "s.zarr"))
        make_videos(folder, options.videos)
        with WorkerPool(options.workers) as pool:
            killer = Killer(
                pool,
                store,
                workers=options.workers,
                kills=options.kills,
                videos=options.videos,
                seed=options.seed,
            )
            killer.start()
            codes = list(commands(folder, store, pool.address))
            killer.join()
            codes += list(commands(folder, store, pool.address))  # whatever the last kills hit
        found = find_faults(store, options.videos)
    told = {
        "options": vars(options),
        "killed": killer.killed,
        "scheduler_restarts": killer.restarted,
        "exit_codes": codes,
        "seconds": round(time.monotonic() - started),
        **asdict(found),
    }
    print(json.dumps(told, indent=1))
    return 0 if found.clean else 1


if __name__ == "__main__":
    sys.exit(main())

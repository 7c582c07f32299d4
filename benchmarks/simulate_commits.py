"""A thousand workers against the real commit protocol: what saturates first.

    python benchmarks/simulate_commits.py [--workers 1000] [--videos 20] [--processes 2]
        [--s3-workers 50] [--s3-videos 5]

Every simulated worker is a real `StoreWriter` with a store of its own in memory, as in a process of
its own: spool, part, commit, ledger, catalogue. The backbone is left out (rows are a few numbers),
so that the figures are what the protocol costs, in a few processes that share this machine.
Measured: commits/s and videos/s by all of them together, the time a single worker takes to start
and to commit, opening the store while nothing of it is in the catalogue and afterwards, `store
status`, files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tadpipe.config import PixelRecipe
from tadpipe.store.feature_store import FeatureStore
from tadpipe.store.ledger import LedgerRow
from tadpipe.store.metadata import FeatureSpec
from tadpipe.store.verify import verify

SPEC = FeatureSpec("tiny", "0" * 64, 8, clip_len=16, stride=4, pixels=PixelRecipe(size=8))
ROWS = 16


class Worked(NamedTuple):
    """Seconds of one worker."""

    start_sec: float  # entering the writer: spool, adoption, what others committed
    add_sec: float  # per video, synced to the spool, ledger line included
    commit_sec: float  # packing and committing its part
    close_sec: float


def work(task: tuple[str, int, int]) -> Worked:
    """One worker: `videos` videos, one part."""
    place, number, videos = task
    store = FeatureStore.open(place, "a")
    features = np.random.default_rng(number).normal(size=(ROWS, 8)).astype("float16")
    times = np.arange(ROWS) / 7.5
    began = time.perf_counter()
    writer = store.writer(SPEC, f"worker-{number:05d}")
    writer.__enter__()
    started = time.perf_counter()
    for video in range(videos):
        name = f"video_{number:05d}_{video:04d}"
        content = hashlib.sha256(name.encode()).hexdigest()
        writer.add(
            name,
            content,
            features,
            times,
            t0=0.0,
            dt=Fraction(4, 30),
            fps=Fraction(30),
            frames=76,
            duration_sec=2.5,
        )
        writer.record(LedgerRow(name, "done", "", "", content, 1.0, 76, features.nbytes))
    added = time.perf_counter()
    writer.flush()
    committed = time.perf_counter()
    writer.__exit__(None, None, None)
    return Worked(
        started - began,
        (added - started) / videos,
        committed - added,
        time.perf_counter() - committed,
    )


def timed(call: Any, repeats: int = 3) -> float:
    """Median seconds."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def looks(place: str, repeats: int = 5) -> dict[str, float]:
    """What a worker spends, before and after each video, to see what others committed meanwhile."""
    store = FeatureStore.open(place)

    def look() -> None:
        store.backend.commit_ids(SPEC.fid)

    def look_at_news() -> None:
        look()
        store.note_committed(SPEC.fid)
        store.has_content(SPEC.fid, "")

    look_at_news()
    return {
        "look_ms": 1e3 * timed(look, repeats),
        "look_at_news_ms": 1e3 * timed(look_at_news, repeats),
    }


def simulate(place: str, workers: int, videos: int, processes: int) -> dict[str, Any]:
    """Figures of one store."""
    FeatureStore.create(place)
    began = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        tasks = [(place, number, videos) for number in range(workers)]
        worked = list(pool.map(work, tasks, chunksize=max(1, min(20, workers // processes))))
    wall = time.perf_counter() - began
    store = FeatureStore.open(place)
    found = store.videos(SPEC.fid)
    assert len(found) == workers * videos
    status = store.status()
    assert status.done == workers * videos
    figures = {
        "workers": workers,
        "videos": workers * videos,
        "processes": processes,
        "wall_sec": wall,
        "commits_per_sec": workers / wall,
        "videos_per_sec": workers * videos / wall,
        "start_first_ms": 1e3 * statistics.median(w.start_sec for w in worked[: workers // 10]),
        "start_last_ms": 1e3 * statistics.median(w.start_sec for w in worked[-workers // 10 :]),
        "add_ms": 1e3 * statistics.median(w.add_sec for w in worked),
        "commit_ms": 1e3 * statistics.median(w.commit_sec for w in worked),
        "close_ms": 1e3 * statistics.median(w.close_sec for w in worked),
        "open_sec": timed(lambda: FeatureStore.open(place).videos(SPEC.fid)),
        "status_sec": timed(lambda: FeatureStore.open(place).status()),
        "verify_sec": timed(lambda: verify(FeatureStore.open(place)), 1),
        **looks(place),
    }
    if "://" not in place:
        catalogue = Path(place, "features", SPEC.fid, "catalogue.jsonl")
        catalogue.unlink()
        figures["open_without_catalogue_sec"] = timed(
            lambda: FeatureStore.open(place).videos(SPEC.fid)
        )
        figures["files"] = sum(len(names) for _, _, names in os.walk(place))
        figures["files_and_folders"] = figures["files"] + sum(
            len(folders) for _, folders, _ in os.walk(place)
        )
        writable = FeatureStore.open(place, "a")
        began = time.perf_counter()
        figures["compact_parts"] = writable.compact().parts_after
        writable.gc(grace_sec=0)
        figures["compact_and_gc_sec"] = time.perf_counter() - began
        figures["files_after"] = sum(len(names) for _, _, names in os.walk(place))
    return figures


@contextmanager
def s3_server() -> Iterator[str]:
    """Address of a bucket on an S3 server of our own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "5599"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.environ.update(
        AWS_ENDPOINT_URL="http://127.0.0.1:5599",
        AWS_ACCESS_KEY_ID="bench",
        AWS_SECRET_ACCESS_KEY="bench",
        AWS_DEFAULT_REGION="us-east-1",
    )
    try:
        time.sleep(5)
        import s3fs

        s3fs.S3FileSystem().mkdir("bench")
        with tempfile.TemporaryDirectory() as folder:
            os.environ["TADPIPE_WORK"] = folder
            yield "s3://bench/x.zarr"
    finally:
        process.kill()
        process.wait()


def table(rows: list[tuple[str, dict[str, Any]]]) -> str:
    keys = list(dict.fromkeys(key for _, figures in rows for key in figures))
    lines = ["| | " + " | ".join(name for name, _ in rows) + " |", "|---" * (len(rows) + 1) + "|"]
    for key in keys:
        cells = [figures.get(key, "") for _, figures in rows]
        shown = (f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells)
        lines.append(f"| {key} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--videos", type=int, default=20, help="per worker")
    parser.add_argument("--s3-workers", type=int, default=50, help="0 leaves the S3 server out")
    parser.add_argument("--s3-videos", type=int, default=5, help="per worker")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        place = str(Path(folder, "x.zarr"))
        figures = simulate(place, options.workers, options.videos, options.processes)
        rows.append(("folder", figures))
    if options.s3_workers:
        with s3_server() as place:
            figures = simulate(place, options.s3_workers, options.s3_videos, options.processes)
            rows.append(("S3 (moto on the loopback)", figures))
    print(f"{platform.machine()}, {os.cpu_count()} CPU cores, Python {platform.python_version()}")
    print(table(rows))
    print(json.dumps(dict(rows), indent=1))


if __name__ == "__main__":
    main()

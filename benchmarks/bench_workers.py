"""Two worker processes against one on decode-bound extraction, and what this machine allows at all.

Films of 340x256 pixels through the smallest backbone at a stride so wide that decoding is the work.
The ceiling is measured in the same run: the same films decoded by two plain processes against one,
no tadpipe around them. Rounds alternate, so that other load on the machine meets all alike; rates
of extraction are taken from the ledger, between the start of the first video and the end of the
last, so that starting Python counts for nobody; `command_sec` has it all. One worker is also run
with two decoders.
Run: python benchmarks/bench_workers.py [--films 24] [--frames 3600] [--stride 1200] [--rounds 2]
[--json PATH]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from bench_decode import make_film

from tadpipe.config import write_atomically
from tadpipe.store.feature_store import FeatureStore

DECODE = """
import sys, time
from tadpipe.video.reader import open_frames
print(flush=True)
sys.stdin.readline()
count, started = 0, time.monotonic()
for path in sys.argv[1:]:
    count += sum(1 for _ in open_frames(path))
print(count, started, time.monotonic())
"""
SETTINGS = ["--backbone", "videomae-tiny", "--weights", "random", "--device", "cpu"]
WAYS = (("extract_1", 1, 1), ("extract_2", 2, 1), ("extract_1_decoders_2", 1, 2))


def decode(films: list[Path], processes: int) -> float:
    """Frames per second of plain decoding, the films divided among processes."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", DECODE, *map(str, films[number::processes])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    for process in running:  # all are ready before any begins
        assert process.stdout
        process.stdout.readline()
    told = []
    for process in running:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in running:
        out, _ = process.communicate()
        told.append([float(word) for word in out.split()])
    return sum(t[0] for t in told) / (max(t[2] for t in told) - min(t[1] for t in told))


def extract(folder: Path, stride: int, workers: int, decoders: int) -> tuple[float, float]:
    """Frames per second of an extraction, and seconds of the whole command."""
    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch, "s.zarr")
        words = ["extract", folder, "--store", store, "--stride", stride]
        words += ["--workers", workers, "--decoders", decoders]
        started = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "tadpipe", *map(str, words), *SETTINGS],
            check=True,
            capture_output=True,
        )
        seconds = time.monotonic() - started
        rows = [row for _, row in FeatureStore.open(store).backend.attempts()]
    frames = sum(row.frames_decoded for row in rows)
    first = min(row.at_unix_sec - row.seconds for row in rows)
    return frames / (max(row.at_unix_sec for row in rows) - first), seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--films", type=int, default=24)
    parser.add_argument("--frames", type=int, default=3600)
    parser.add_argument("--stride", type=int, default=1200, help="frames; wider is less pixels")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rates: dict[str, list[float]] = {}
    commands: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        film = make_film(folder / "film.mp4", options.frames).read_bytes()
        (folder / "film.mp4").unlink()
        films = [folder / f"film{number:02d}.mp4" for number in range(options.films)]
        for number, path in enumerate(films):  # a box that players skip makes each another file
            path.write_bytes(film + (12).to_bytes(4, "big") + b"free" + number.to_bytes(4, "big"))
        load = os.getloadavg()[0]
        for _ in range(options.rounds):
            for count in (1, 2):
                rates.setdefault(f"decode_{count}", []).append(decode(films, count))
            for name, workers, decoders in WAYS:
                rate, seconds = extract(folder, options.stride, workers, decoders)
                rates.setdefault(name, []).append(rate)
                commands.setdefault(name, []).append(seconds)
    middle = {name: statistics.median(values) for name, values in rates.items()}
    ceiling = middle["decode_2"] / middle["decode_1"]
    ratio = middle["extract_2"] / middle["extract_1"]
    told = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs",
        "load_before": round(load, 1),
        "python": platform.python_version(),
        "distributed": version("distributed"),
        "films": options.films,
        "frames_each": options.frames,
        "stride": options.stride,
        "rounds": options.rounds,
        "frames_per_sec": {name: [round(value) for value in rates[name]] for name in rates},
        "command_sec": {name: [round(v, 1) for v in commands[name]] for name in commands},
        "two_processes_against_one": {
            "plain_decoding": round(ceiling, 2),
            "extraction": round(ratio, 2),
            "share_of_ceiling": round(ratio / ceiling, 2),
        },
        "two_decoders_against_one": round(middle["extract_1_decoders_2"] / middle["extract_1"], 2),
    }
    print(json.dumps(told, indent=1))
    if options.json:
        write_atomically(options.json, json.dumps(told, indent=1))


if __name__ == "__main__":
    main()

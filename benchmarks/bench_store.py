"""Feature store against a folder of .npy files: windows, full reads, opening, files per video.

    python benchmarks/bench_store.py [--videos 2000] [--json PATH]

CPU seconds of this process (user + system), files in the page cache, everything in one run. The
baseline is what people do without a store: one .npy per video, `np.load`, for windows with
`mmap_mode="r"`. 100,000 videos are made as commits without arrays: opening reads nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr

from tadpipe.config import PixelRecipe
from tadpipe.store.commits import Commit, columns, encode
from tadpipe.store.feature_store import FeatureStore
from tadpipe.store.metadata import FeatureSpec

WINDOW_ROWS = 256
MANY = 100_000
PART_VIDEOS = 80  # videos in a part of 32,768 rows, at 410 rows each


def cpu(act: Callable[[], object], repeats: int, calls: int = 1) -> dict[str, float]:
    """CPU seconds per call: median and minimum over `repeats`."""
    spent = []
    for _ in range(repeats):
        start = time.process_time()
        for _ in range(calls):
            act()
        spent.append((time.process_time() - start) / calls)
    return {"median": statistics.median(spent), "minimum": min(spent), "repeats": repeats}


def count_files(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))


def write(
    folder: Path, kinds: dict[str, FeatureStore], spec: FeatureSpec, videos: int, rows: int
) -> list[str]:
    """The same random videos into every store and as .npy files."""
    draw = np.random.default_rng(0)
    names = [f"video_{number:05d}" for number in range(videos)]
    writers = {kind: store.writer(spec) for kind, store in kinds.items()}
    for writer in writers.values():
        writer.__enter__()
    (folder / "npy").mkdir()
    for name in names:
        count = int(draw.integers(rows // 2, rows * 3 // 2))
        features = draw.standard_normal((count, spec.channels), dtype=np.float32).astype("f2")
        np.save(folder / "npy" / f"{name}.npy", features)
        for writer in writers.values():
            writer.add(
                name,
                hashlib.sha256(name.encode()).hexdigest(),
                features,
                (np.arange(count) * 4 + 8) / 30,
                t0=8 / 30,
                dt=Fraction(4, 30),
                fps=Fraction(30),
                frames=4 * count + 12,
                duration_sec=(4 * count + 12) / 30,
            )
    for writer in writers.values():
        writer.__exit__(None, None, None)
    return names


def bench_windows(
    folder: Path, kinds: dict[str, FeatureStore], names: list[str]
) -> dict[str, dict[str, float]]:
    """One window of 256 rows, at random places of random videos, views and maps kept open."""
    draw = np.random.default_rng(1)
    maps = [np.load(folder / "npy" / f"{name}.npy", mmap_mode="r") for name in names]
    places = [
        (int(video), int(draw.integers(0, len(maps[video]) - WINDOW_ROWS)))
        for video in draw.integers(0, len(names), 400)
    ]
    found: dict[str, dict[str, float]] = {}

    def all_windows(sources: list[Any]) -> None:
        for video, start in places:
            window = sources[video][start : start + WINDOW_ROWS]
            if isinstance(window, np.memmap):  # .npy: nothing is read before it is copied
                np.array(window)

    def one_table(store: FeatureStore) -> list[Any]:
        table = store.table()
        return [table.open(name) for name in names]

    for kind, sources in (
        ("npy", maps),
        *((kind, one_table(store)) for kind, store in kinds.items()),
    ):
        all_windows(sources)  # warm
        spent = cpu(lambda sources=sources: all_windows(sources), repeats=7)  # type: ignore[misc]
        found[kind] = {
            key: value / len(places) if key != "repeats" else value for key, value in spent.items()
        }
    return found


def bench_full_read(
    folder: Path, paths: dict[str, Path], names: list[str]
) -> dict[str, dict[str, float]]:
    """Every row of every video, from opening on."""

    def npy() -> None:
        for name in names:
            np.load(folder / "npy" / f"{name}.npy")

    def store(path: Path) -> None:
        table = FeatureStore.open(path).table()
        for name in table.names():
            np.asarray(table.open(name))

    def zarr_library(path: Path) -> None:
        opened = FeatureStore.open(path)
        for fid in opened.specs():
            arrays = {}
            for row in opened.videos(fid).values():
                place = f"features/{fid}/parts/{row.part}/features"
                if place not in arrays:
                    arrays[place] = zarr.open_array(str(path / place), mode="r")
                np.asarray(arrays[place][row.first_row : row.first_row + row.rows])

    acts: dict[str, Callable[[], None]] = {"npy": npy}
    acts |= {kind: lambda path=path: store(path) for kind, path in paths.items()}  # type: ignore[misc]
    acts["zarr, through the zarr library"] = lambda: zarr_library(paths["zarr"])
    for act in acts.values():
        act()
    return {kind: cpu(act, repeats=3) for kind, act in acts.items()}


def bench_opening(folder: Path, spec: FeatureSpec) -> dict[str, dict[str, float]]:
    """100,000 videos: from a path to a lookup of any name, with and without the catalogue."""
    path = folder / "many.zarr"
    store = FeatureStore.create(path)
    home = path / "features" / spec.fid
    (home / "commits").mkdir(parents=True)
    document = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {"tadpipe_feature_spec": spec.to_mapping()},
    }
    (home / "zarr.json").write_text(json.dumps(document))
    for first in range(0, MANY, PART_VIDEOS):
        lines = [_line(number, number - first) for number in range(first, first + PART_VIDEOS)]
        name = f"20261121T000000-bench-00000000.{first:08x}"
        commit = Commit(name, first + 1, "float16", 410 * PART_VIDEOS, columns(lines))
        (home / "commits" / f"{name}.json").write_bytes(encode(commit))

    def open_and_index() -> None:
        opened = FeatureStore.open(path)
        videos = opened.videos(opened.select())
        assert len(videos) == MANY
        assert videos["video_099999"].rows == 410
        assert opened.has_content(spec.fid, videos["video_000000"].content_sha256)

    found = {"commits only": cpu(open_and_index, repeats=5)}
    store.backend.remember_catalogue(spec.fid)
    found["with the catalogue"] = cpu(open_and_index, repeats=5)
    return found


def _line(number: int, place: int) -> dict[str, Any]:
    name = f"video_{number:06d}"
    sha256 = hashlib.sha256(name.encode()).hexdigest()
    return {
        "name": name,
        "content_sha256": sha256,
        "first_row": 410 * place,
        "rows": 410,
        "t0": 0.26693333333333336,
        "dt": "1001/7500",
        "clip_len": 16,
        "fps": "30000/1001",
        "frames": 1652,
        "duration_sec": 55.12173333333333,
        "offset_frames": 8.0,
        "truncated": False,
        "checksum": sha256[:16],
        "times_checksum": sha256[16:32],
        "nan_count": 0,
    }


def run(videos: int, rows: int, channels: int) -> dict[str, Any]:
    spec = FeatureSpec("bench", "0" * 64, channels, clip_len=16, stride=4, pixels=PixelRecipe())
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as name:
        folder = Path(name)
        paths = {"zarr": folder / "x.zarr", "hdf5": folder / "x.h5"}
        kinds = {kind: FeatureStore.create(path) for kind, path in paths.items()}
        names = write(folder, kinds, spec, videos, rows)
        files = {"npy": count_files(folder / "npy") / videos}
        files["zarr"] = count_files(paths["zarr"]) / videos
        files["hdf5"] = (1 + count_files(paths["hdf5"].with_name("x.h5.work"))) / videos
        return {
            "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}",
            "versions": {
                "python": platform.python_version(),
                "numpy": np.__version__,
                "zarr": zarr.__version__,
                "h5py": h5py.__version__,
            },
            "sizes": {"videos": videos, "rows_per_video": rows, "channels": channels},
            "files_per_video": files,
            "window_256_rows_cpu_sec": bench_windows(folder, kinds, names),
            "full_read_cpu_sec": bench_full_read(folder, paths, names),
            "open_100000_videos_cpu_sec": bench_opening(folder, spec),
        }


def show(report: dict[str, Any]) -> None:
    sizes = report["sizes"]
    print(f"{report['machine']}; {report['versions']}")
    print(f"{sizes['videos']} videos, {sizes['rows_per_video']} rows of {sizes['channels']} each")
    print("\n| files per video | |\n|---|---|")
    for kind, value in report["files_per_video"].items():
        print(f"| {kind} | {value:.4f} |")
    for key, unit, factor in (
        ("window_256_rows_cpu_sec", "ms", 1e3),
        ("full_read_cpu_sec", "s", 1.0),
        ("open_100000_videos_cpu_sec", "s", 1.0),
    ):
        table = report[key]
        base = table.get("npy")
        print(f"\n| {key.removesuffix('_cpu_sec').replace('_', ' ')}, CPU {unit} ", end="")
        print("| median | minimum | speed against .npy |\n|---|---|---|---|")
        for kind, spent in table.items():
            ratio = f"{base['minimum'] / spent['minimum']:.2f}x" if base else ""
            print(
                f"| {kind} | {spent['median'] * factor:.4f} | {spent['minimum'] * factor:.4f} "
                f"| {ratio} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=600, help="mean rows per video, at least 514")
    parser.add_argument("--channels", type=int, default=768)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    report = run(arguments.videos, arguments.rows, arguments.channels)
    show(report)
    text = json.dumps(report, indent=2)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    else:
        print("\n" + text, file=sys.stdout)


if __name__ == "__main__":
    main()

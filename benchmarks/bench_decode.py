"""Decoding for overlapping snippets: one pass over the frames against one decoder call per clip.

Both give the same clips of 16 frames every 4 (compared bit for bit, once per video). The baselines
are the public way in a few lines: decord's `get_batch` for each clip, and for PyAV a seek and a
decode for each clip. CPU seconds are user + system of the process, for the decoder's own process
those of owner and child. Run: python benchmarks/bench_decode.py [VIDEO...] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import numpy as np

from tadpipe.config import write_atomically
from tadpipe.video.packets import scan_packets
from tadpipe.video.process import DecodeProcess
from tadpipe.video.reader import FrameStream, open_frames, probe
from tadpipe.video.snippets import SnippetPlan, iter_clips

PLAN = SnippetPlan("start", clip_len=16, stride=4)
SHARED = Path(__file__).parents[2] / "shared" / "data" / "videos"
TICKS_PER_SEC = os.sysconf("SC_CLK_TCK")

Clips = Iterator[list[np.ndarray]]


def make_film(path: Path, frames: int) -> Path:
    """340x256 H.264 with a key frame every 250: smooth textures that drift, and a little noise."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (40, 52, 3)).astype(np.uint8)
    texture = np.kron(coarse, np.ones((16, 16, 1), np.uint8))  # [640, 832, 3]
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 340, 256, "yuv420p"
        stream.codec_context.gop_size = 250
        stream.codec_context.options = {"crf": "23", "x264-params": "scenecut=0"}
        for index in range(frames):
            top = int(190 + 180 * np.sin(index / 40))
            left = int(240 + 230 * np.cos(index / 55))
            picture = texture[top : top + 256, left : left + 340].astype(np.int16)
            picture = picture + generator.integers(-6, 7, picture.shape, dtype=np.int16)
            frame = av.VideoFrame.from_ndarray(
                np.clip(picture, 0, 255).astype(np.uint8), format="rgb24"
            )
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


class OnePass:
    """Ours in this process: packets first, then every frame once, through the ring."""

    def __init__(self) -> None:
        self.frames_decoded = 0

    def __call__(self, path: Path) -> Clips:
        stream: FrameStream = open_frames(path)
        for _, clip in iter_clips(stream, PLAN):
            yield clip
        self.frames_decoded = stream.delivered + 1  # the packet pass decodes the first picture


class OnePassElsewhere:
    """Ours as extraction runs it: the decoder in a process of its own."""

    def __init__(self, decoder: DecodeProcess) -> None:
        self.decoder = decoder

    def __call__(self, path: Path) -> Clips:
        self.decoder.probe(path)
        for _, clip in iter_clips(self.decoder.frames(path), PLAN):
            yield clip


def decord_loop(path: Path) -> Clips:
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    for start in range(0, len(reader) - PLAN.clip_len + 1, PLAN.stride):
        yield list(reader.get_batch(range(start, start + PLAN.clip_len)).asnumpy())


class PyavLoop:
    """A seek to the key frame before each clip, then decoding up to its last frame."""

    def __init__(self) -> None:
        self.frames_decoded = 0

    def __call__(self, path: Path) -> Clips:
        self.frames_decoded = 0
        ticks = scan_packets(path).ticks
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for start in range(0, len(ticks) - PLAN.clip_len + 1, PLAN.stride):
                first, last = ticks[start], ticks[start + PLAN.clip_len - 1]
                container.seek(first, stream=stream)
                clip = []
                for frame in container.decode(stream):
                    self.frames_decoded += 1
                    if frame.pts is not None and frame.pts >= first:
                        clip.append(frame.to_ndarray(format="rgb24"))
                    if frame.pts == last:
                        break
                yield clip


def cpu_sec(pid: int | None) -> float:
    """CPU seconds used so far by this process, and by another one."""
    spent = time.process_time()
    if pid is not None:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        spent += (int(fields[11]) + int(fields[12])) / TICKS_PER_SEC
    return spent


def timed(
    clips: Callable[[Path], Clips], path: Path, repeats: int, pid: int | None = None
) -> dict[str, float]:
    spent = []
    for _ in range(repeats):
        start = cpu_sec(pid)
        for _ in clips(path):
            pass
        spent.append(cpu_sec(pid) - start)
    return {"cpu_sec_median": statistics.median(spent), "cpu_sec_min": min(spent)}


def same_clips(ours: Clips, theirs: Clips) -> bool:
    return all(
        len(a) == len(b) and all(map(np.array_equal, a, b))
        for a, b in zip(ours, theirs, strict=True)
    )


def measure(path: Path, repeats: int, decoder: DecodeProcess) -> dict[str, Any]:
    information = probe(path)
    one_pass, pyav_loop = OnePass(), PyavLoop()
    elsewhere = OnePassElsewhere(decoder)
    decoder.probe(path)  # the child has started
    runs = {
        "one pass": timed(one_pass, path, repeats),
        "one pass, own process": timed(elsewhere, path, repeats, decoder.pid),
    }
    same = {"own process": same_clips(one_pass(path), elsewhere(path))}
    scan = scan_packets(path)
    # Frames of avi carry time stamps out of order: no seek finds them.
    if scan.in_order and not scan.container.startswith("avi"):
        runs["PyAV loop"] = timed(pyav_loop, path, repeats)
        same["PyAV loop"] = same_clips(one_pass(path), pyav_loop(path))
    if information.decord_safe and find_spec("decord"):
        runs["decord loop"] = timed(decord_loop, path, repeats)
        same["decord loop"] = same_clips(one_pass(path), decord_loop(path))
    ours = runs["one pass, own process"]["cpu_sec_min"]
    return {
        "video": path.name,
        "size": f"{information.width}x{information.height}",
        "frames": information.frames,
        "clips": PLAN.rows(information.frames),
        "key_frames": len(scan.key_ticks),
        "decoded_per_frame": one_pass.frames_decoded / information.frames,
        "decoded_per_frame_pyav_loop": pyav_loop.frames_decoded / information.frames,
        "runs": runs,
        "ratios": {
            name: run["cpu_sec_min"] / ours for name, run in runs.items() if name.endswith("loop")
        },
        "same_clips": same,
    }


def show(rows: list[dict[str, Any]]) -> None:
    print(
        "| video | frames | clips | key frames | decoded/frame | way | CPU s median (min) | ratio |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        for name, run in row["runs"].items():
            ratio = f"{row['ratios'][name]:.1f}x" if name in row["ratios"] else "-"
            decoded = {
                "one pass": f"{row['decoded_per_frame']:.3f}",
                "PyAV loop": f"{row['decoded_per_frame_pyav_loop']:.1f}",
            }.get(name, "-")
            print(
                f"| {row['video']} {row['size']} | {row['frames']} | {row['clips']} "
                f"| {row['key_frames']} | {decoded} | {name} "
                f"| {run['cpu_sec_median']:.2f} ({run['cpu_sec_min']:.2f}) | {ratio} |"
            )
        print(f"|   clips equal bit for bit: {row['same_clips']} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("videos", nargs="*", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--frames", type=int, default=900, help="of the generated film")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, DecodeProcess() as decoder:
        videos = options.videos or [
            make_film(Path(folder, "generated.mp4"), options.frames),
            *(sorted(SHARED.iterdir()) if SHARED.is_dir() else ()),
        ]
        rows = [measure(path, options.repeats, decoder) for path in videos]
    show(rows)
    document = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.platform()}",
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("av", "decord", "numpy") if find_spec(name)},
        },
        "clip_len": PLAN.clip_len,
        "stride": PLAN.stride,
        "repeats": options.repeats,
        "videos": rows,
    }
    text = json.dumps(document, indent=1)
    print(text)
    if options.json:
        write_atomically(options.json, text + "\n")


if __name__ == "__main__":
    main()

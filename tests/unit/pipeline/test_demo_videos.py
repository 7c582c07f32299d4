"""The demo's data: decodable, repeatable, resumable, and without a hint in any single frame."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tadpipe.annotations import load_annotations
from tadpipe.errors import ConfigError
from tadpipe.pipeline.demo_scene import CLASSES, FPS, HEIGHT, WIDTH, Scene, VideoPlan
from tadpipe.pipeline.demo_videos import DemoVideoSettings, make_demo_videos, plan_videos
from tadpipe.video.reader import open_frames, probe

SUBSETS = ["training", "validation", "test"]


def digests(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "videos").iterdir())}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest demo: one video per subset, three classes."""
    folder = tmp_path_factory.mktemp("demo")
    assert make_demo_videos(folder, seed=3, minutes=1, classes=3) == folder / "annotations.json"
    return folder


def test_annotations_are_sound_and_describe_the_videos(made: Path) -> None:
    annotations = load_annotations(made / "annotations.json")
    assert annotations.defects == ()
    assert annotations.subset_names() == SUBSETS
    assert annotations.labels == tuple(sorted(CLASSES[:3]))
    for name, video in annotations.videos.items():
        found = probe(made / "videos" / f"{name}.mp4")
        assert (found.width, found.height, found.fps) == (WIDTH, HEIGHT, FPS)
        assert found.duration_sec == pytest.approx(video.duration_sec)
        assert found.frames == round(video.duration_sec * FPS)


def test_videos_are_h264_and_look_as_drawn(made: Path) -> None:
    plan = plan_videos(DemoVideoSettings(seed=3, minutes=1, classes=3))[0]
    path = made / "videos" / f"{plan.name}.mp4"
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
    scene = Scene(plan)
    for index, frame in zip(range(40), open_frames(path), strict=False):
        difference = frame.astype(int) - scene.frame(index).astype(int)
        assert np.abs(difference).mean() < 6  # lossy coding, half the resolution for colour


def test_repeated_call_reuses_files_and_mends_missing_ones(made: Path) -> None:
    before, times = digests(made), {}
    names = sorted(before)
    (made / "videos" / names[0]).unlink()
    (made / "videos" / names[1]).write_bytes(b"cut off")
    times = (made / "videos" / names[2]).stat().st_mtime_ns
    make_demo_videos(made, seed=3, minutes=1, classes=3)
    assert digests(made) == before
    assert (made / "videos" / names[2]).stat().st_mtime_ns == times


def test_other_seed_makes_other_videos(made: Path, tmp_path: Path) -> None:
    make_demo_videos(tmp_path, seed=4, minutes=1, classes=3)
    here, there = digests(made), digests(tmp_path)
    assert here.keys() == there.keys()
    assert all(here[name] != there[name] for name in here)


def test_interrupted_encoding_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = Scene.frame

    def interrupted(self: Scene, index: int) -> Any:
        if index == 20:
            raise KeyboardInterrupt
        return frame(self, index)

    monkeypatch.setattr(Scene, "frame", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_demo_videos(tmp_path, seed=3, minutes=1, classes=3)
    assert list((tmp_path / "videos").iterdir()) == []


def default_plans(seed: int) -> list[VideoPlan]:
    return plan_videos(DemoVideoSettings(seed=seed))


def test_no_two_videos_share_an_actor_or_a_background() -> None:
    plans = default_plans(0)
    assert len({plan.actor for plan in plans}) == len(plans)
    assert len({Scene(plan).background.tobytes() for plan in plans}) == len(plans)


def test_every_class_is_equally_frequent_in_every_split() -> None:
    plans = default_plans(0)
    for subset in SUBSETS:
        counts = Counter(
            event.label for plan in plans if plan.subset == subset for event in plan.events
        )
        del counts[None]
        assert set(counts) == set(CLASSES)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_actions_vary_in_length_and_do_not_overlap() -> None:
    plans = default_plans(0)
    for plan in plans:
        ends = [0, *(event.end for event in plan.events)]
        assert [event.start for event in plan.events] == ends[:-1]
        assert ends[-1] == plan.frames
    lengths = [(e.end - e.start) / FPS for p in plans for e in p.events if e.label is not None]
    assert min(lengths) >= 0.95
    assert max(lengths) <= 6.05
    assert np.quantile(lengths, 0.9) > 2.5 * np.quantile(lengths, 0.1)
    assert sum(len(p.events) for p in plans) > len(lengths)


def nearest_neighbour_accuracy(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray
) -> float:
    """Share of rows whose nearest row of another group has the same label."""
    features = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-6)
    distance = ((features[:, None] - features[None]) ** 2).sum(axis=2)
    distance[groups[:, None] == groups[None]] = np.inf
    return float((labels[distance.argmin(axis=1)] == labels).mean())


def test_single_frame_does_not_tell_the_class_but_the_motion_does() -> None:
    frames, motions, labels, groups = [], [], [], []
    for group, plan in enumerate(default_plans(0)):
        scene = Scene(plan)
        for event in plan.events:
            if event.label is None:
                continue
            labels.append(CLASSES.index(event.label))
            groups.append(group)
            picture = scene.frame((event.start + event.end) // 2).astype(float)
            frames.append(picture.reshape(HEIGHT // 8, 8, WIDTH // 8, 8, 3).mean((1, 3)).ravel())
            track = np.stack(scene.track)[:, event.start : event.end]  # [4, T]
            steps = np.diff(track * np.array([[1.0], [1.0], [20.0], [20.0]]), axis=1)
            motions.append(np.log(np.abs(steps).mean(axis=1) + 0.1))
    args = np.array(labels), np.array(groups)
    count, chance = len(labels), 1 / len(CLASSES)
    spread = (chance * (1 - chance) / count) ** 0.5
    assert nearest_neighbour_accuracy(np.array(frames), *args) < chance + 3 * spread
    assert nearest_neighbour_accuracy(np.array(motions), *args) > 0.7


def test_actor_is_brighter_than_everything_else() -> None:
    for plan in default_plans(0)[::4]:
        scene = Scene(plan)
        clutter = [blob.colour.max() for blob in scene.clutter]
        others = max(*clutter, scene.background.max())
        assert min(plan.colour) > others + 40


def test_actor_stays_in_the_picture() -> None:
    for plan in default_plans(0):
        track = Scene(plan).track
        assert track.x.min() > 8
        assert track.x.max() < WIDTH - 8
        assert track.y.min() > 8
        assert track.y.max() < HEIGHT - 8


@pytest.mark.parametrize(
    "settings", [{"classes": 1}, {"classes": 7}, {"minutes": 0.0}, {"seed": -1}], ids=str
)
def test_impossible_settings_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        make_demo_videos(tmp_path, **settings)
    assert list(tmp_path.iterdir()) == []

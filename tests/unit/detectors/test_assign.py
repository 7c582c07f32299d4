"""Label assignment against a loop over every point and ground truth."""

from __future__ import annotations

import pytest
import torch

from tadpipe.detectors.parts.assign import assign, offsets_at, positive_mask, positives
from tadpipe.detectors.parts.pyramid import make_points
from tadpipe.detectors.protocol import Targets

RANGES = [(0.0, 4.0), (4.0, 8.0), (8.0, 10000.0)]
POINTS = torch.cat(make_points([32, 16, 8], [1, 2, 4], RANGES))
CLASSES = 5


def random_targets(seed: int) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(-2, 28, (9,), generator=generator).float()
    length = torch.randint(1, 20, (9,), generator=generator).float()
    labels = torch.randint(0, CLASSES, (9,), generator=generator)
    return Targets([torch.stack((start, start + length), 1)], [labels])


def brute_force(targets: Targets, radius: float) -> list[tuple[set[int], tuple[float, float], int]]:
    """Per point: classes, offsets and the row of the ground truth that gives them."""
    found = []
    for t, low, high, stride in POINTS.tolist():
        best = None
        rows = []
        for row, (a, b) in enumerate(targets.segments[0].tolist()):
            centre = (a + b) / 2
            left = max(centre - radius * stride, a) if radius else a
            right = min(centre + radius * stride, b) if radius else b
            farther = max(t - a, b - t)
            if left < t < right and low <= farther <= high:
                rows.append(row)
                if best is None or b - a < best[0]:
                    best = (b - a, row)
        if best is None:
            found.append((set(), (0.0, 0.0), -1))
            continue
        a, b = targets.segments[0][best[1]].tolist()
        same = [r for r in rows if length(targets, r) <= best[0] + 1e-3]
        labels = {int(targets.labels[0][r]) for r in same}
        found.append((labels, ((t - a) / stride, (b - t) / stride), best[1]))
    return found


def length(targets: Targets, row: int) -> float:
    a, b = targets.segments[0][row].tolist()
    return b - a


@pytest.mark.parametrize("radius", [0.0, 1.5, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_assignment_equals_brute_force(seed: int, radius: float) -> None:
    targets = random_targets(seed)
    assigned = assign(POINTS, targets, CLASSES, centre_radius=radius)
    wanted = brute_force(targets, radius)
    for point, (labels, offsets, row) in enumerate(wanted):
        assert set(assigned.classes[0, point].nonzero().flatten().tolist()) == labels
        assert int(assigned.instances[0, point]) == row
        if labels:
            assert assigned.offsets[0, point].tolist() == pytest.approx(offsets)
    assert any(row >= 0 for _, _, row in wanted)


def test_actions_of_nearly_equal_length_share_a_point() -> None:
    # The second is shorter by 5e-4, the third longer by 2e-3.
    segments = torch.tensor([[1.0, 9.0], [1.0, 8.9995], [1.0, 9.0015]])
    targets = Targets([segments], [torch.tensor([0, 1, 2])])
    assigned = assign(POINTS, targets, CLASSES, centre_radius=0.0)
    point = 32 + 2  # position 4 on the level of stride 2, range 4 to 8
    assert assigned.classes[0, point].tolist() == [1, 1, 0, 0, 0]
    assert int(assigned.instances[0, point]) == 1
    assert assigned.offsets[0, point].tolist() == pytest.approx([1.5, 2.49975])


def test_a_video_without_actions_is_background() -> None:
    targets = Targets([torch.zeros(0, 2)], [torch.zeros(0, dtype=torch.int64)])
    assigned = assign(POINTS, targets, CLASSES, centre_radius=1.5)
    assert not assigned.classes.any()
    assert (assigned.instances == -1).all()


def test_padded_points_are_no_positives() -> None:
    assigned = assign(POINTS, random_targets(0), CLASSES, centre_radius=0.0)
    mask = torch.zeros(1, len(POINTS), dtype=torch.bool)
    assert not positive_mask(assigned, mask).any()
    assert len(positives(assigned, mask, per_class=True).point) == 0


def test_a_point_with_two_classes_counts_once_or_per_class() -> None:
    targets = Targets([torch.tensor([[1.0, 7.0], [1.0, 7.0]])], [torch.tensor([4, 1])])
    assigned = assign(POINTS, targets, CLASSES, centre_radius=0.0)
    mask = torch.ones(1, len(POINTS), dtype=torch.bool)
    once = positives(assigned, mask, per_class=False)
    pairs = positives(assigned, mask, per_class=True)
    assert len(pairs.point) == 2 * len(once.point) > 0
    assert pairs.label[:4].tolist() == [1, 4, 1, 4]
    assert pairs.point[:4].tolist() == [p for p in once.point[:2].tolist() for _ in range(2)]


def test_offsets_are_picked_per_class_or_from_the_one_column() -> None:
    targets = Targets([torch.tensor([[1.0, 7.0]])], [torch.tensor([3])])
    assigned = assign(POINTS, targets, CLASSES, centre_radius=0.0)
    mask = torch.ones(1, len(POINTS), dtype=torch.bool)
    pairs = positives(assigned, mask, per_class=True)
    per_class = torch.randn(1, len(POINTS), CLASSES, 2)
    assert torch.equal(offsets_at(per_class, pairs), per_class[0, pairs.point, 3])
    single = torch.randn(1, len(POINTS), 1, 2)
    assert torch.equal(offsets_at(single, pairs), single[0, pairs.point, 0])

"""Choosing snippets for encoder gradients (EGS) and proposals for the detector (DPS).

Source: ETAD (Liu et al., 2022), Sec. 3.2-3.3 and App. H; k-DPP by Kulesza and Taskar (ICML 2011).
Order: strategies on any set (random, FPS, k-DPP, balanced bins) -> select_snippets -> the
start x duration map and select_proposals.
Shapes: N candidates, C channels, k chosen, T grid length, D longest duration, G ground truths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from tadpipe.errors import ConfigError
from tadpipe.registry import nearest

SNIPPET_STRATEGIES = ("random", "grid", "block", "fps", "dpp")
PROPOSAL_STRATEGIES = (*SNIPPET_STRATEGIES, "iou-balanced", "scale-balanced")
FEATURE_GUIDED = ("fps", "dpp")

DIAGONAL = 1e-2  # added to the cosine kernel, so that more points than its rank can be drawn
BIN_EDGES = (0.3, 0.7)
SCALE_SLACK = 1e-9  # lengths are sums of cells, so their rounding must not decide the bin


# --- strategies on any set of candidates -------------------------------------------------------


@torch.no_grad()
def farthest_points(features: Tensor, k: int, start: int) -> Tensor:
    """Farthest point sampling: each next point is the one farthest from those chosen.

    Args:
        features: [N, C], Euclidean distance; ties go to the lowest index.
    Returns:
        int64 [k] in the order of choice, `start` first.
    """
    features = features if features.is_floating_point() else features.double()
    chosen = torch.empty(k, dtype=torch.int64)
    nearest_sq = features.new_full((len(features),), torch.inf)  # to the nearest chosen point
    apart = torch.empty_like(features)  # one buffer for all rounds
    index = start
    for i in range(k):
        chosen[i] = index
        torch.sub(features, features[index], out=apart)
        nearest_sq = torch.minimum(nearest_sq, apart.square_().sum(1))
        nearest_sq[index] = -1.0  # equal points: never the same one twice
        index = int(nearest_sq.argmax())
    return chosen


class KDpp:
    """Exact k-DPP over the cosine similarity of features: P(S) ~ det(L_S), |S| = k.

    L = X X^T + 0.01 I with rows of unit length has rank(X X^T) <= C eigenvalues of its own; all
    others equal 0.01 and their space is described by its complement alone, so that N x N matrices
    are never built. Elementary symmetric polynomials stay in log space.
    """

    def __init__(self, features: Tensor, k: int) -> None:
        """`features`: [N, C] with N >= k."""
        x = torch.nn.functional.normalize(features.detach().double(), dim=1)
        self.k, self.n = k, len(x)
        q, r = torch.linalg.qr(x)  # [N, p], [p, C], p = min(N, C)
        u, singular, _ = torch.linalg.svd(r, full_matrices=False)
        self.vectors = (q @ u).flip(1)  # [N, p] orthonormal, also where X has no full rank
        own = singular.square().flip(0) + DIAGONAL  # [p] ascending
        self.flat = self.n - len(own)  # eigenvalues that equal the diagonal, without vectors
        self.eigenvalues = torch.cat((own.new_full((self.flat,), DIAGONAL), own))  # [N] ascending
        self.log_esp = self._log_esp()

    def _log_esp(self) -> Tensor:
        """log E[n, l], the l-th elementary symmetric polynomial of the first n eigenvalues."""
        table = self.eigenvalues.new_full((self.n + 1, self.k + 1), -torch.inf)
        table[:, 0] = 0.0
        logs = self.eigenvalues.log().tolist()
        for n, log_value in enumerate(logs, start=1):
            torch.logaddexp(table[n - 1, 1:], table[n - 1, :-1] + log_value, out=table[n, 1:])
        return table

    def take_probability(self, n: int) -> Tensor:
        """Probability to take eigenvector n (from 1) when l are still missing, [k + 1] over l."""
        esp = self.log_esp
        ratio = self.eigenvalues[n - 1].log() + esp[n - 1, :-1] - esp[n, 1:]
        ratio = torch.where(esp[n, 1:] == -torch.inf, 0.0, ratio.exp())
        ratio[n - 1 :] = 1.0  # as many missing as left: take all of them
        return torch.cat((ratio.new_zeros(1), ratio))

    def sample(self, generator: Generator, draws: int = 1) -> Tensor:
        """Independent samples, int64 [draws, k], in the order of choice."""
        basis = self._chosen_vectors(generator, draws)  # [S, N, k] orthonormal
        weights = basis.square().sum(2)  # [S, N], their sum is what is left to choose
        columns = torch.zeros_like(basis)
        rows = torch.arange(draws)
        chosen = torch.empty(draws, self.k, dtype=torch.int64)
        for t in range(self.k):
            i = torch.multinomial(weights, 1, generator=generator)[:, 0]
            chosen[:, t] = i
            # One column of the Cholesky factor of the projection kernel V V^T.
            column = (basis @ basis[rows, i, :, None])[..., 0]
            column -= (columns[:, :, :t] @ columns[rows, i, :t, None])[..., 0]
            column /= weights[rows, i, None].sqrt()
            columns[:, :, t] = column
            weights = (weights - column.square()).clamp(min=0)
            weights.scatter_(1, chosen[:, : t + 1], 0.0)
        return chosen

    def _chosen_vectors(self, generator: Generator, draws: int) -> Tensor:
        """Phase 1: which k eigenvectors span the projection, [S, N, k]."""
        uniform = torch.rand(draws, self.n, dtype=torch.float64, generator=generator)
        missing = torch.full((draws,), self.k)
        taken = torch.zeros(draws, self.n, dtype=torch.bool)
        for n in range(self.n, 0, -1):
            take = uniform[:, n - 1] < self.take_probability(n)[missing]
            taken[:, n - 1] = take
            missing -= take.long()
        index = taken.nonzero()[:, 1].view(draws, self.k)  # ascending: flat ones come first
        own = self.vectors.T[(index - self.flat).clamp(min=0)].transpose(1, 2)  # [S, N, k]
        is_flat = index < self.flat
        count = int(is_flat.sum(1).max())
        if count:
            # Any orthonormal vectors of the flat space will do; random ones need no N x N basis.
            noise = torch.randn(draws, self.n, count, dtype=torch.float64, generator=generator)
            for _ in range(2):  # once more, against rounding
                noise -= self.vectors @ (self.vectors.T @ noise)
            flat = torch.linalg.qr(noise)[0]
            own[:, :, :count] = torch.where(is_flat[:, None, :count], flat, own[:, :, :count])
        return own


def balanced_shares(capacity: Sequence[int], k: int) -> list[int]:
    """How many of k to take from each bin: equal shares, the remainder to the lowest bins.

    A bin that is too small passes its unused share on to those that still have candidates.
    """
    take = [0] * len(capacity)
    left = min(k, sum(capacity))
    while left:
        room = [b for b in range(len(capacity)) if capacity[b] > take[b]]
        share, extra = divmod(left, len(room))
        for rank, b in enumerate(room):
            more = min(share + (rank < extra), capacity[b] - take[b])
            take[b] += more
            left -= more
    return take


def _balanced(bins: Tensor, k: int, generator: Generator) -> Tensor:
    """k rows, equally many of each of the three bins [N], uniform inside a bin."""
    members = [(bins == b).nonzero()[:, 0] for b in range(len(BIN_EDGES) + 1)]
    shares = balanced_shares([len(rows) for rows in members], k)
    picks = [
        rows[_random(len(rows), share, generator)]
        for rows, share in zip(members, shares, strict=True)
    ]
    return torch.cat(picks)


def _random(count: int, k: int, generator: Generator) -> Tensor:
    return torch.randperm(count, generator=generator)[:k]


def _integer(low: int, high: int, generator: Generator) -> int:
    """Uniform whole number, both ends included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _feature_guided(features: Tensor, k: int, strategy: str, generator: Generator) -> Tensor:
    if strategy == "fps":
        start = _integer(0, len(features) - 1, generator)
        return farthest_points(features.detach(), k, start)
    return KDpp(features.detach().cpu(), k).sample(generator)[0]


def check_sampling(ratio: float, strategy: str, strategies: Sequence[str], where: str = "") -> None:
    """Raise a ConfigError for a ratio outside (0, 1] or an unknown strategy."""
    if not 0 < ratio <= 1:
        raise ConfigError("A sampling ratio lies in (0, 1].", f"{where}ratio = {ratio}")
    if strategy not in strategies:
        guesses = nearest(strategy, strategies) or strategies
        raise ConfigError(
            f"Unknown sampling strategy '{strategy}'.", where, f"Nearest: {', '.join(guesses)}."
        )


# --- snippets (EGS) ----------------------------------------------------------------------------


def snippet_count(count: int, ratio: float) -> int:
    """M = max(1, round(ratio * count))."""
    return max(1, round(ratio * count))


def grid_snippets(count: int, kept: int, offset: float) -> Tensor:
    """Every count / kept-th snippet from `offset` in [0, count / kept), sorted int64 [kept]."""
    steps = offset + torch.arange(kept, dtype=torch.float64) * count / kept
    return (steps.floor().long() % count).sort().values


def block_snippets(count: int, kept: int, start: int) -> Tensor:
    """`kept` consecutive snippets; a start past the last possible one begins anew."""
    return start % (count - kept + 1) + torch.arange(kept)


def select_snippets(
    count: int,
    ratio: float,
    strategy: str,
    *,
    features: Tensor | None = None,
    generator: Generator,
) -> Tensor:
    """Choose which of `count` snippets get gradients in this step (EGS; ETAD, Sec. 3.2-3.3).

    Args:
        ratio: share to keep, in (0, 1]; ETAD keeps 0.3 of the snippets.
        strategy: "random", "grid", "block", "fps" or "dpp".
        features: [N, C]; read by "fps" and "dpp" only.
        generator: on the CPU.
    Returns:
        Sorted indices, int64 [M], M = max(1, round(ratio * count)); the same generator state gives
        the same choice.
    Raises:
        ConfigError: ratio out of range, unknown strategy, or a feature-guided strategy without
            features.
    """
    check_sampling(ratio, strategy, SNIPPET_STRATEGIES)
    kept = snippet_count(count, ratio)
    if strategy in FEATURE_GUIDED:
        rows = _feature_guided(_required(features, strategy, count), kept, strategy, generator)
    elif strategy == "grid":
        offset = float(torch.rand((), dtype=torch.float64, generator=generator)) * count / kept
        rows = grid_snippets(count, kept, offset)
    elif strategy == "block":
        rows = block_snippets(count, kept, _integer(0, count - kept, generator))
    else:
        rows = _random(count, kept, generator)
    return rows.cpu().sort().values


# --- proposals (DPS) ---------------------------------------------------------------------------


def proposal_cells(length: int, max_duration: int) -> Tensor:
    """Valid cells (d, s) of the start x duration map, int64 [N, 2], row-major.

    Cell (d, s) is the proposal of snippets s to s + d: d < D, s + d < T.
    """
    d, s = torch.meshgrid(torch.arange(max_duration), torch.arange(length), indexing="ij")
    valid = s + d < length
    return torch.stack((d[valid], s[valid]), dim=1)


def cell_segments(cells: Tensor) -> Tensor:
    """Cells [N, 2] -> (start, end) in snippets, float64 [N, 2]: from s to s + d + 1."""
    d, s = cells.double().unbind(1)
    return torch.stack((s, s + d + 1), dim=1)


def grid_cells(length: int, max_duration: int, ratio: float) -> Tensor:
    """Cells at whole multiples of sqrt(1 / ratio) from 1 on in both directions, int64 [M, 2].

    Positions are rounded half to even; the first duration and the first start never appear.
    """
    step = math.sqrt(1 / ratio)
    durations = _grid_positions(max_duration, step)
    starts = _grid_positions(length, step)
    cells = torch.cartesian_prod(durations, starts).view(-1, 2)
    return cells[(cells[:, 0] < max_duration) & (cells.sum(1) < length)]


def _grid_positions(stop: int, step: float) -> Tensor:
    count = max(math.ceil((stop - 1) / step), 0)
    return (1 + torch.arange(count, dtype=torch.float64) * step).round().long()


def block_cells(width: int, duration: int, start: int) -> Tensor:
    """All cells of the square from (duration, start) on, int64 [width^2, 2], duration-major."""
    side = torch.arange(width)
    return torch.cartesian_prod(duration + side, start + side).view(-1, 2)


def block_width(length: int, max_duration: int, count: int) -> int:
    """Side of the largest square of at most `count` cells.

    Raises:
        ConfigError: the map is too small to place it anywhere.
    """
    width = math.isqrt(count)
    if max_duration - 2 * width < 0:
        raise ConfigError(
            "The block of proposals does not fit into the map.",
            f"{length} snippets, durations up to {max_duration}: block of {width} x {width}",
            "Lower dps_ratio, or use another dps_strategy.",
        )
    return width


def cell_rows(cells: Tensor, length: int) -> Tensor:
    """Position of cells (d, s) in the row-major list of valid cells."""
    d, s = cells.unbind(1)
    return d * length - d * (d - 1) // 2 + s


def best_tiou(segments: Tensor, truths: Tensor) -> Tensor:
    """tIoU of each of N segments with its best ground truth, [N]; 0 without ground truths."""
    if len(truths) == 0:
        return segments.new_zeros(len(segments))
    left = torch.maximum(segments[:, None, 0], truths[None, :, 0])
    right = torch.minimum(segments[:, None, 1], truths[None, :, 1])
    shared = (right - left).clamp(min=0)
    lengths = (segments[:, 1] - segments[:, 0])[:, None] + (truths[:, 1] - truths[:, 0])
    return (shared / (lengths - shared)).max(1).values


def tiou_bins(tiou: Tensor) -> Tensor:
    """Bins [0, 0.3], (0.3, 0.7], (0.7, 1] of [N] overlaps, edges compared exactly."""
    low, high = BIN_EDGES
    return (tiou > low).long() + (tiou > high).long()


def scale_bins(scale: Tensor) -> Tensor:
    """Bins < 0.3, [0.3, 0.7], > 0.7 of [N] lengths as shares of the sequence."""
    low, high = BIN_EDGES
    return (scale >= low - SCALE_SLACK).long() + (scale > high + SCALE_SLACK).long()


@torch.no_grad()
def select_proposals(
    length: int,
    max_duration: int,
    ratio: float,
    strategy: str,
    *,
    features: Tensor | None = None,
    truths: Tensor | None = None,
    generator: Generator,
) -> Tensor:
    """Choose proposals of the start x duration map for one sequence (DPS; ETAD, Sec. 3.3).

    Args:
        length: T; max_duration: D <= T. Together they give N valid cells (`proposal_cells`).
        ratio: share to keep, in (0, 1]; ETAD keeps 0.06, 1 keeps all by any strategy.
        strategy: "random", "grid", "block", "fps", "dpp", "iou-balanced" or "scale-balanced".
        features: [N, C], one per valid cell; read by "fps" and "dpp" only.
        truths: [G, 2] ground truth in snippets; read by "iou-balanced" only.
        generator: on the CPU.
    Returns:
        Rows of the list of valid cells, int64 [K], shuffled. K depends on T, D, ratio and strategy
        alone: floor(N * ratio), for "grid" and "block" what the pattern holds.
    Raises:
        ConfigError: ratio out of range, unknown strategy, missing features or ground truth, or a
            block that does not fit.
    """
    check_sampling(ratio, strategy, PROPOSAL_STRATEGIES)
    cells = proposal_cells(length, max_duration)
    k = max(1, int(len(cells) * ratio))
    if k == len(cells):
        rows = torch.arange(k)
    elif strategy in FEATURE_GUIDED:
        guide = _required(features, strategy, len(cells))
        rows = _feature_guided(guide, k, strategy, generator).cpu()
    elif strategy == "grid":
        rows = cell_rows(grid_cells(length, max_duration, ratio), length)
    elif strategy == "block":
        width = block_width(length, max_duration, k)
        duration = _integer(0, max_duration - 2 * width, generator)
        start = _integer(0, length - 2 * width - duration, generator)
        rows = cell_rows(block_cells(width, duration, start), length)
    elif strategy == "iou-balanced":
        if truths is None:
            raise ConfigError("Sampling balanced by tIoU needs the ground truth.", strategy)
        tiou = best_tiou(cell_segments(cells), truths.detach().double().cpu())
        rows = _balanced(tiou_bins(tiou), k, generator)
    elif strategy == "scale-balanced":
        rows = _balanced(scale_bins((cells[:, 0] + 1).double() / length), k, generator)
    else:
        rows = _random(len(cells), k, generator)
    return rows[_random(len(rows), len(rows), generator)]


def _required(features: Tensor | None, strategy: str, count: int) -> Tensor:
    if features is None or len(features) != count:
        found = "none" if features is None else str(len(features))
        raise ConfigError(
            f"The strategy '{strategy}' needs one feature per candidate.",
            f"{count} candidates, features: {found}",
            "Use a strategy that reads no features: random, grid or block.",
        )
    return features

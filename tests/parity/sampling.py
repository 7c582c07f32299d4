"""Parity of snippet and proposal sampling, told apart by the arrays of a case.

The k-DPP cases with all subsets are statistical: the law of our sampler's draws against the
enumerated one.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from tadpipe.sampling import (
    DIAGONAL,
    KDpp,
    balanced_shares,
    best_tiou,
    block_cells,
    block_snippets,
    block_width,
    cell_segments,
    farthest_points,
    grid_cells,
    grid_snippets,
    proposal_cells,
    scale_bins,
    select_proposals,
    snippet_count,
    tiou_bins,
)
from tests.parity.case import Case

EXACT = {"atol": 1e-9, "rtol": 1e-9}
DRAWS = 40_000
STANDARD_ERRORS = 4.5  # of a frequency; a dozen or so are tested per case
LEAST_EXPECTED = 5.0  # merged into one cell of the chi-square test below this


def run(case: Case) -> None:
    if "starts" in case:
        run_fps(case)
    elif "subsets" in case:
        run_law(case)
    elif "log_elementary_symmetric" in case:
        run_marginals(case)
    elif "bin_capacity_iou" in case:
        run_label_guided(case)
    elif "T" in case.config["cases"][0]:
        run_proposal_map(case)
    else:
        run_snippet_sets(case)


def run_fps(case: Case) -> None:
    features, starts = case.tensor("data"), case.read("starts")
    k = case.config["k"]
    ours = [farthest_points(features, k, int(start)).numpy() for start in starts]
    case.check("selected", np.array(ours))


def kernel(features: torch.Tensor) -> np.ndarray:
    """The kernel written out, independent of the sampler's factors."""
    x = features.numpy() / np.linalg.norm(features.numpy(), axis=1, keepdims=True)
    return x @ x.T + DIAGONAL * np.eye(len(x))


def eigenvector_weights(dpp: KDpp) -> np.ndarray:
    """Probability that phase 1 takes each eigenvector, from the sampler's own probabilities."""
    missing = torch.zeros(dpp.k + 1, dtype=torch.float64)
    missing[dpp.k] = 1.0  # law of how many are still missing
    weights = np.zeros(dpp.n)
    for n in range(dpp.n, 0, -1):
        take = dpp.take_probability(n) * missing
        weights[n - 1] = float(take.sum())
        missing = missing - take
        missing[:-1] += take[1:]
    return weights


def inclusion(dpp: KDpp, weights: np.ndarray) -> np.ndarray:
    """Probability of each candidate; the flat space shares one weight."""
    squares = dpp.vectors.numpy() ** 2
    own = squares @ weights[dpp.flat :]
    return own + (1 - squares.sum(1)) * (weights[0] if dpp.flat else 0.0)


def run_marginals(case: Case) -> None:
    dpp = KDpp(case.tensor("data"), case.config["k"])
    weights = eigenvector_weights(dpp)
    case.check("eigenvalues", dpp.eigenvalues, **EXACT)
    case.check("log_elementary_symmetric", dpp.log_esp[dpp.n], **EXACT)
    case.check("eigenvector_weight", weights, **EXACT)
    case.check("inclusion_prob", inclusion(dpp, weights), **EXACT)


def run_law(case: Case) -> None:
    features, k = case.tensor("data"), case.config["k"]
    dpp = KDpp(features, k)
    case.check("kernel", kernel(features), **EXACT)
    case.check("eigenvalues", dpp.eigenvalues, **EXACT)
    case.check("elementary_symmetric", dpp.log_esp[dpp.n].exp(), **EXACT)
    law = case.read("subset_prob")
    wanted = case.read("inclusion_prob")
    case.compare("inclusion_prob (law)", inclusion(dpp, eigenvector_weights(dpp)), wanted, **EXACT)
    drawn = dpp.sample(torch.Generator().manual_seed(0), DRAWS).sort(1).values.numpy()
    base = dpp.n ** np.arange(k)
    codes, counts = np.unique(drawn @ base, return_counts=True)
    found = dict(zip(codes.tolist(), counts.tolist(), strict=True))
    stored = (np.sort(case.read("subsets"), axis=1) @ base).tolist()
    case.claim("only known subsets", set(found) <= set(stored))
    seen = np.array([found.get(code, 0) for code in stored])
    case.claim("subset_prob (chi-square)", *chi_square(seen, law * DRAWS))
    check_frequencies(case, "inclusion_prob", np.eye(dpp.n)[drawn].sum(1).mean(0))
    pairs = np.eye(dpp.n)[drawn].sum(1)
    together = pairs.T @ pairs / DRAWS
    np.fill_diagonal(together, 0.0)
    check_frequencies(case, "pair_inclusion_prob", together)


def chi_square(seen: np.ndarray, expected: np.ndarray) -> tuple[bool, str]:
    """Seen counts against expected ones; holds within about four standard deviations."""
    rare = expected < LEAST_EXPECTED
    if rare.any():
        seen = np.append(seen[~rare], seen[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    statistic = float(((seen - expected) ** 2 / expected.clip(1e-12)).sum())
    freedom = len(seen) - 1
    limit = freedom + 4 * math.sqrt(2 * freedom) + 8
    return statistic <= limit, f"chi2 {statistic:.1f} at {freedom} degrees, limit {limit:.1f}"


def check_frequencies(case: Case, name: str, ours: np.ndarray) -> None:
    stored = case.arrays[name]
    error = np.sqrt(stored * (1 - stored) / DRAWS).max()
    case.check(name, ours, atol=STANDARD_ERRORS * float(error) + 1e-9)


def run_label_guided(case: Case) -> None:
    anchors, truths = case.tensor("anchors"), case.tensor("gt")
    tiou, scale = best_tiou(anchors, truths), anchors[:, 1] - anchors[:, 0]
    case.check("iou", tiou, **EXACT)
    case.check("scale", scale, **EXACT)
    bins = {"iou": tiou_bins(case.tensor("iou")), "scale": scale_bins(case.tensor("scale"))}
    for kind, rows in bins.items():
        capacity = torch.bincount(rows, minlength=3)
        case.check(f"bin_capacity_{kind}", capacity)
        shares = [balanced_shares(capacity.tolist(), int(k)) for k in case.read("k")]
        case.check(f"take_{kind}", np.array(shares))


def run_proposal_map(case: Case) -> None:
    for i, entry in enumerate(case.config["cases"]):
        length, durations, ratio = entry["T"], entry["D"], entry["ratio"]
        cells = proposal_cells(length, durations)
        generator = torch.Generator().manual_seed(i)
        rows = select_proposals(length, durations, ratio, "random", generator=generator)
        grid = grid_cells(length, durations, ratio)
        case.claim(f"c{i} valid", len(cells) == entry["valid"])
        case.claim(f"c{i} random_count", len(rows) == entry["random_count"])
        case.claim(f"c{i} distinct", len(rows.unique()) == len(rows))
        case.claim(f"c{i} grid_count", len(grid) == entry["grid_count"])
        case.check(f"c{i}_grid_cells", in_order(grid.numpy(), case.read(f"c{i}_grid_cells")))
        width = block_width(length, durations, len(rows))
        case.claim(f"c{i} block_width", width == entry["block_width"])
        offsets = entry["block_duration_offset"], entry["block_start_offset"]
        block = block_cells(width, *offsets)
        stored = case.read(f"c{i}_block_cells")
        case.check(f"c{i}_block_cells", in_order(block.numpy(), stored))
        anchors = cell_segments(torch.from_numpy(np.array(stored))) / length
        case.check(f"c{i}_block_anchors", anchors, atol=1e-7)


def in_order(ours: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """Our cells in the order of the stored ones: cells are compared as sets."""
    wanted = np.lexsort(stored.T)
    arranged = np.empty_like(ours)
    if ours.shape != stored.shape:
        return ours
    arranged[wanted] = ours[np.lexsort(ours.T)]
    return arranged


def run_snippet_sets(case: Case) -> None:
    for i, entry in enumerate(case.config["cases"]):
        count, offset = entry["M"], entry["offset"]
        kept = snippet_count(count, entry["gamma"])
        case.claim(f"c{i} count", kept == entry["count"])
        case.check(f"c{i}_grid", grid_snippets(count, kept, offset))
        case.check(f"c{i}_block", block_snippets(count, kept, int(offset)))

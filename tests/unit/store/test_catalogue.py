"""What a set of commits means does not depend on the order in which they are found."""

from __future__ import annotations

import itertools
import json

import pytest

from tadpipe.errors import StoreError
from tadpipe.store.catalogue import Catalogue
from tadpipe.store.commits import COLUMNS, Commit, columns, decode, encode

LINE = {
    "rows": 3,
    "t0": 0.5,
    "dt": "2/15",
    "clip_len": 16,
    "fps": "30",
    "frames": 24,
    "duration_sec": 0.8,
    "offset_frames": 8.0,
    "truncated": False,
    "checksum": "c",
    "times_checksum": "t",
    "nan_count": 0,
}


def commit(
    number: int, *videos: tuple[str, str], when: int | None = None, **more: object
) -> Commit:
    lines = [
        {**LINE, "name": name, "content_sha256": content, "first_row": 3 * i}
        for i, (name, content) in enumerate(videos)
    ]
    when = number if when is None else when
    return Commit(f"p{number}", when, rows=3 * len(lines), videos=columns(lines))


COMMITS = [
    commit(1, ("a", "A"), ("b", "B")),
    commit(2, ("a", "A2"), ("c", "A"), when=2),
    commit(3, ("d", "D"), when=2),
    Commit("p4", 4, deleted=["b"], dropped=[("p1", "B")]),
    Commit("p5", 5, aliases=[("e", "D"), ("nothing", "unknown")]),
]


def described(catalogue: Catalogue) -> list[tuple[str, str, str, int]]:
    return [(name, r.content_sha256, r.part, r.first_row) for name, r in catalogue.items()]


def test_any_order_gives_the_same_catalogue() -> None:
    expected = [
        ("a", "A2", "p2", 0),
        ("c", "A", "p1", 0),  # content extracted twice is read from its oldest commit
        ("d", "D", "p3", 0),
        ("e", "D", "p3", 0),
    ]
    for order in itertools.permutations(COMMITS):
        assert described(Catalogue(order)) == expected


def test_dropped_rows_give_way_to_another_copy() -> None:
    twice = [commit(1, ("a", "A")), commit(2, ("a", "A")), Commit("p3", 3, dropped=[("p1", "A")])]
    assert Catalogue(twice)["a"].part == "p2"
    assert Catalogue(twice).live_parts() == {"p2"}


def test_deleted_name_returns_with_a_later_commit() -> None:
    back = [commit(1, ("a", "A")), Commit("p2", 2, deleted=["a"]), commit(3, ("a", "A"))]
    assert list(Catalogue(back)) == ["a"]


def test_commit_survives_writing_and_reading() -> None:
    for original in COMMITS:
        assert Catalogue([decode(encode(original), "x")]).commits[0].order == original.order
    again = decode(encode(commit(1, ("\udcff/ü", "A"))), "x")
    assert again.names == ["\udcff/ü"]
    assert set(again.videos) == set(COLUMNS)


@pytest.mark.parametrize("cut", [0, 10, 40, -5])
def test_cut_commit_is_recognised(cut: int) -> None:
    with pytest.raises(StoreError, match="here"):
        decode(encode(COMMITS[0])[:cut], "here")


def test_commit_is_one_line_of_json() -> None:
    raw = encode(COMMITS[0])
    assert raw.count(b"\n") == 1
    assert json.loads(raw)["commit"]["id"] == "p1"

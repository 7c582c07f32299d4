"""Folding: one commit that says what several said, at the times when they said it.

That is what compact, gc and merge publish. Every word on a name keeps its own time, so that a fold
never outdoes what somebody else says of the name meanwhile, and the order of folding is no matter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from tadpipe.store.catalogue import Catalogue, in_order
from tadpipe.store.commits import Commit, Saying
from tadpipe.store.writer_names import commit_id, later_than, unique_writer_id


class Word(NamedTuple):
    """The last word on a name."""

    created_ns: int
    commit: str
    content: str | None  # None: it means nothing


def last_words(commits: Iterable[Commit]) -> dict[str, Word]:
    """Name -> the last word on it."""
    words: dict[str, Word] = {}
    for saying in in_order(commits):
        for name in saying.deleted:
            words[name] = Word(saying.created_ns, saying.commit, None)
        for name, content in saying.meanings:
            words[name] = Word(saying.created_ns, saying.commit, content)
    return words


def history_of(words: Mapping[str, Word]) -> list[Saying]:
    """The words in the form of a commit's `history`."""
    said: dict[tuple[int, str], Saying] = {}
    for name, word in words.items():
        key = (word.created_ns, word.commit)
        saying = said.setdefault(key, Saying(*key, [], []))
        if word.content is None:
            saying.deleted.append(name)  # type: ignore[attr-defined]  # lists, made above
        else:
            saying.meanings.append([name, word.content])  # type: ignore[attr-defined]
    return sorted(said.values(), key=lambda saying: saying.order)


def fold(
    videos: Catalogue,
    folded: Collection[str],
    *,
    writer_id: str | None = None,
    part: Mapping[str, Any] | None = None,
) -> Commit:
    """A commit that replaces some of a catalogue's.

    Args:
        folded: ids of commits that count.
        part: `dtype`, `rows` and `videos` of the part that holds what was used of theirs.
    """
    commits = [commit for commit in videos.effective if commit.id in folded]
    older = {gone for commit in commits for gone in commit.replaces}
    there = {commit.id for commit in videos.commits}
    gone = set(folded) | (older & there)
    dropped = {tuple(pair) for commit in commits for pair in commit.dropped}
    return Commit(
        id=commit_id(writer_id or unique_writer_id()),
        created_ns=later_than(videos),
        dropped=sorted(pair for pair in dropped if pair[0] in there - gone),
        history=history_of(last_words(commits)),
        replaces=sorted(gone),
        **(part or {}),
    )

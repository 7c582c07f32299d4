"""The catalogue: what the commits of one spec add up to.

The same set of commits always gives the same catalogue. Content extracted twice is read from its
oldest commit; a name bound twice means what its newest commit says; tombstones act on what is
older than themselves, dropped rows on exactly the rows they name. Commits that another one
replaces count no more, whether they are still there or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

from tadpipe.store.commits import Commit, Saying
from tadpipe.store.metadata import VideoRow


def in_order(commits: Iterable[Commit]) -> list[Saying]:
    """All that commits say of names, oldest first."""
    said = [saying for commit in commits for saying in commit.sayings()]
    return sorted(said, key=lambda saying: saying.order)


class Catalogue(Mapping[str, VideoRow]):
    """Names -> rows, in the order in which the names first appeared."""

    def __init__(self, commits: Iterable[Commit]) -> None:
        self.commits = sorted(commits, key=lambda commit: commit.order)  # also replaced ones
        self.replaced = {gone for commit in self.commits for gone in commit.replaces}
        self.effective = [commit for commit in self.commits if commit.id not in self.replaced]
        dropped = {tuple(pair) for commit in self.effective for pair in commit.dropped}
        contents: dict[str, tuple[Commit, int]] = {}
        for commit in self.effective:
            for index, content in enumerate(commit.contents):
                if content not in contents and (commit.id, content) not in dropped:
                    contents[content] = (commit, index)
        names: dict[str, str] = {}
        for saying in in_order(self.effective):
            for name in saying.deleted:
                names.pop(name, None)
            names.update(saying.meanings)  # type: ignore[arg-type]  # pairs, whatever JSON made
        self._contents = contents
        self._names = {name: content for name, content in names.items() if content in contents}

    def __getitem__(self, name: str) -> VideoRow:
        commit, index = self._contents[self._names[name]]
        return commit.row(index, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    @property
    def latest_ns(self) -> int:
        return self.commits[-1].created_ns if self.commits else 0

    def has_content(self, sha256: str) -> bool:
        return sha256 in self._contents

    def content_of(self, name: str) -> str:
        return self._names[name]

    @cached_property
    def names_of(self) -> Mapping[str, list[str]]:
        """Content -> every name it goes by."""
        found: dict[str, list[str]] = {}
        for name, content in self._names.items():
            found.setdefault(content, []).append(name)
        return found

    def copies(self, sha256: str) -> list[tuple[str, str]]:
        """(part, content) of every copy of this content, used or not."""
        return [(commit.id, sha256) for commit in self.effective if sha256 in commit.contents]

    def row_of(self, sha256: str) -> VideoRow | None:
        """Where this content is read from, None where it is not."""
        if sha256 not in self._contents:
            return None
        commit, index = self._contents[sha256]
        return commit.row(index, commit.names[index])

    def live_parts(self) -> set[str]:
        """Parts that some named video is read from."""
        return {self._contents[content][0].id for content in self._names.values()}

    def used_rows(self) -> Iterator[VideoRow]:
        """One row per content that has a name, under its first name."""
        for content, names in self.names_of.items():
            commit, index = self._contents[content]
            yield commit.row(index, names[0])

"""The catalogue: what the commits of one spec add up to.

The same set of commits always gives the same catalogue. Content extracted twice is read from its
oldest commit; a name bound twice means what its newest commit says; tombstones act on what is
older than themselves, dropped rows on exactly the rows they name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

from tadpipe.store.commits import Commit
from tadpipe.store.metadata import VideoRow


class Catalogue(Mapping[str, VideoRow]):
    """Names -> rows, in the order in which the names first appeared."""

    def __init__(self, commits: Iterable[Commit]) -> None:
        self.commits = sorted(commits, key=lambda commit: commit.order)
        dropped = {tuple(pair) for commit in self.commits for pair in commit.dropped}
        contents: dict[str, tuple[Commit, int]] = {}
        names: dict[str, str] = {}
        for commit in self.commits:
            for name in commit.deleted:
                names.pop(name, None)
            for index, content in enumerate(commit.contents):
                if content not in contents and (commit.id, content) not in dropped:
                    contents[content] = (commit, index)
            names.update(zip(commit.names, commit.contents, strict=True))
            for name, content in commit.aliases:
                names[name] = content
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
        return [(commit.id, sha256) for commit in self.commits if sha256 in commit.contents]

    def live_parts(self) -> set[str]:
        """Parts that some named video is read from."""
        return {self._contents[content][0].id for content in self._names.values()}

    def used_rows(self) -> Iterator[VideoRow]:
        """One row per content that has a name, under its first name."""
        for content, names in self.names_of.items():
            commit, index = self._contents[content]
            yield commit.row(index, names[0])

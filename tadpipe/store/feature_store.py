"""FeatureStore: features by video and stride, from a Zarr folder or an HDF5 file.

Shapes: T rows of a video, C channels. A view reads only the rows asked for.
Names are aliases of content (SHA-256 of the video file); a spec (`fid`) is everything that decides
the numbers. What several specs could answer is asked back, never guessed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from tadpipe.errors import ConfigError, NoAnswerError, StoreError
from tadpipe.location import Address, Location, location
from tadpipe.registry import nearest
from tadpipe.store.backend import Backend, PartRows
from tadpipe.store.catalogue import Catalogue
from tadpipe.store.cleanup import GRACE_SEC, GcReport, drop_rows, forget_names
from tadpipe.store.cleanup import gc as collect_garbage
from tadpipe.store.commits import Commit
from tadpipe.store.compaction import CompactReport, compact
from tadpipe.store.durable import writing
from tadpipe.store.feature_view import FeatureView
from tadpipe.store.kept_rows import KeptRows
from tadpipe.store.merging import MergeReport, merge
from tadpipe.store.metadata import FeatureSpec, VideoRow
from tadpipe.store.object_folder import ObjectFolder
from tadpipe.store.objects import Objects
from tadpipe.store.store_names import HDF5_SUFFIXES, check_name, not_there
from tadpipe.store.summary import StoreInfo, StoreStatus, store_info, store_status
from tadpipe.store.verify import Finding
from tadpipe.store.writer import PART_ROWS, StoreWriter
from tadpipe.store.zarr_folder import ZarrFolder


class StoredFeatures:
    """The features of one spec at one stride: what a detector trains on."""

    def __init__(self, store: FeatureStore, fid: str, stride: int) -> None:
        self.store = store
        self.fid = fid
        self.spec = store.spec(fid)
        self.stride = stride
        self.channels = self.spec.channels

    def names(self) -> Sequence[str]:
        return list(self.store.videos(self.fid))

    def open(self, name: str) -> FeatureView:
        return self.store.features(name, fid=self.fid, stride=self.stride)


class FeatureStore:
    """A store on disk, opened; see the functions `open` and `create`."""

    def __init__(self, backend: Backend, writable: bool) -> None:
        self.path = backend.path
        self.backend = backend
        self.writable = writable
        self._specs: dict[str, FeatureSpec] | None = None
        self._catalogues: dict[str, Catalogue] = {}
        self._commits: dict[str, dict[str, Commit]] = {}  # fid -> id -> what was read before
        self._parts: dict[tuple[str, str], PartRows] = {}
        self._kept: KeptRows | None = None
        self._spooled: dict[str, set[str]] = {}  # content that this store's writers hold

    @staticmethod
    def exists(path: str | Location) -> bool:
        """Whether there is anything at this path or address."""
        place = location(path)
        if isinstance(place, Address):
            return Objects(place).exists("zarr.json")
        return place.exists()

    @classmethod
    def open(cls, path: str | Location, mode: Literal["r", "a"] = "r") -> FeatureStore:
        """Open a store that is there: a folder, a file, or an address such as s3://bucket/x.zarr.

        Raises:
            StoreError: nothing there, not a store, or of a later format.
        """
        path = location(path)
        if isinstance(path, Address):
            if not cls.exists(path):
                raise not_there(path, Objects(path.parent).folders(""))
            return cls(ObjectFolder(path), mode == "a")
        if not path.exists():
            beside = path.parent.iterdir() if path.parent.is_dir() else ()
            raise not_there(path, [place.name for place in beside])
        if path.is_dir():
            return cls(ZarrFolder(path), mode == "a")
        from tadpipe.store.hdf5 import Hdf5File  # h5py takes 0.2 s to import

        return cls(Hdf5File(path), mode == "a")

    @classmethod
    def create(cls, path: str | Location, exist_ok: bool = True) -> FeatureStore:
        """Make a store, HDF5 where the name ends in .h5 or .hdf5, and open it for writing."""
        path = location(path)
        is_there = cls.exists(path)
        if is_there and not exist_ok:
            raise StoreError("There is something at this path already.", str(path))
        if not is_there:
            check_name(path)
        if isinstance(path, Address):
            ObjectFolder.create(path)
        elif path.is_file() or path.suffix.lower() in HDF5_SUFFIXES:
            if not path.exists():
                from tadpipe.store.hdf5 import Hdf5File

                Hdf5File.create(path)
        elif not (path / "zarr.json").exists():
            ZarrFolder.create(path)
        return cls.open(path, "a")

    def __reduce__(self) -> tuple[Any, ...]:
        return FeatureStore.open, (self.path, "a" if self.writable else "r")

    def refresh(self) -> None:
        """See what other writers committed since."""
        self._specs = None
        self._catalogues.clear()
        self._commits.clear()
        self._parts.clear()

    # What is there

    def specs(self) -> dict[str, FeatureSpec]:
        """fid -> spec."""
        if self._specs is None:
            self._specs = self.backend.specs()
        return dict(self._specs)

    def spec(self, fid: str) -> FeatureSpec:
        specs = self.specs()
        if fid not in specs:
            raise StoreError(
                f"No features under the id '{fid}'.", self._listing(specs), "Check --features."
            )
        return specs[fid]

    def videos(self, fid: str) -> Catalogue:
        """Name -> VideoRow, in the order in which the names appeared."""
        if fid not in self._catalogues:
            commits = list(self.backend.commits(fid, self._commits.get(fid, {})))
            self._commits[fid] = {commit.id: commit for commit in commits}
            self._catalogues[fid] = Catalogue(commits)
        return self._catalogues[fid]

    def has_content(self, fid: str, sha256: str) -> bool:
        """Whether the video file with this hash is stored, or finished and about to be."""
        return sha256 in self._spooled.get(fid, ()) or self.videos(fid).has_content(sha256)

    def select(
        self, *, backbone: str | None = None, stride: int | None = None, fid: str | None = None
    ) -> str:
        """The one spec that answers a request; `backbone` may be an id in place of a name.

        A stored stride serves its multiples. Where specs differ in nothing but the stride, an
        exact one is taken before a multiple, and the coarsest that serves before finer ones.

        Raises:
            StoreError: nothing stored answers it; the message lists what there is.
            ConfigError: several do; the message says how to choose.
        """
        if fid is not None:
            spec = self.spec(fid)
            if backbone not in (None, spec.backbone) or not spec.serves(stride or spec.stride):
                raise self._nothing(backbone, stride, {fid: spec})
            return fid
        specs = {key: spec for key, spec in self.specs().items() if len(self.videos(key))}
        fitting = {
            key: spec
            for key, spec in specs.items()
            if backbone in (None, spec.backbone, key) and (stride is None or spec.serves(stride))
        }
        if not fitting:
            raise self._nothing(backbone, stride, specs)
        if stride is not None:
            others = [{**spec.to_mapping(), "stride": 0} for spec in fitting.values()]
            if all(other == others[0] for other in others):
                return max(fitting, key=lambda key: fitting[key].stride)
        if len(fitting) > 1:
            raise ConfigError(
                "The store holds several kinds of features.",
                self._listing(fitting),
                "Choose with --backbone (a name, or an id of this list) and --stride.",
            )
        return next(iter(fitting))

    # Reading

    def features(
        self,
        name: str,
        *,
        backbone: str | None = None,
        stride: int | None = None,
        fid: str | None = None,
    ) -> FeatureView:
        """The features of a video; see `select` for the rest.

        Raises:
            StoreError: no such video (the message has the nearest names), or damaged.
        """
        fid = self.select(backbone=backbone, stride=stride, fid=fid)
        videos, spec = self.videos(fid), self.spec(fid)
        if name not in videos:
            near = nearest(name, videos)
            raise StoreError(
                f"No video {name!r} in the store.",
                f"{self.path}: {len(videos)} videos of {spec.backbone}, stride {spec.stride}",
                f"Nearest names: {', '.join(map(repr, near))}."
                if near
                else "See tadpipe store ls.",
            )
        factor = 1 if stride is None else stride // spec.stride
        try:
            return FeatureView(self, spec, videos[name], factor, fid)
        except NoAnswerError:
            raise
        except StoreError:
            moved = self.moved(fid, videos[name])
            if moved is None:
                raise
            return FeatureView(self, spec, moved[0], factor, fid)

    def keep_rows(self) -> None:
        """Read each video from object storage once, from now on, however often it is asked for.

        Its rows stay on this machine until the process ends; see kept_rows.py. Other stores are
        as quick as that by themselves.
        """
        if isinstance(self.path, Address) and self._kept is None:
            self._kept = KeptRows(self.backend.work)

    def part_of(self, fid: str, row: VideoRow) -> PartRows:
        """The part that holds these rows."""
        if (fid, row.part) not in self._parts:
            self._parts[fid, row.part] = self.backend.open_part(fid, row.part)
        part = self._parts[fid, row.part]
        return part if self._kept is None else self._kept.video(fid, part, row)

    def moved(self, fid: str, row: VideoRow) -> tuple[VideoRow, PartRows] | None:
        """Where rows of a part that is gone are now, None if nowhere else."""
        self.note_committed(fid)
        now = self.videos(fid).row_of(row.content_sha256)
        if now is None or now.part == row.part:
            return None
        return replace(now, name=row.name), self.part_of(fid, now)

    def __getitem__(self, name: str) -> FeatureView:
        return self.features(name)

    def table(
        self, *, backbone: str | None = None, stride: int | None = None, fid: str | None = None
    ) -> StoredFeatures:
        """All videos of one spec at one stride; see `select`."""
        fid = self.select(backbone=backbone, stride=stride, fid=fid)
        return StoredFeatures(self, fid, self.spec(fid).stride if stride is None else stride)

    def annotations(self) -> bytes | None:
        """The annotations kept with the features, as they were given."""
        kept = self.backend.annotations()
        if kept is None:
            return None
        raw, sha256 = kept
        if hashlib.sha256(raw).hexdigest() != sha256:
            raise StoreError(
                "The store's copy of the annotations is damaged.",
                str(self.path),
                "Give --annotations again.",
            )
        return raw

    def annotations_sha256(self) -> str | None:
        """SHA-256 of the annotations, None without any."""
        kept = self.backend.annotations()
        return None if kept is None else kept[1]

    # Writing

    def writer(
        self, spec: FeatureSpec, writer_id: str | None = None, part_rows: int = PART_ROWS
    ) -> StoreWriter:
        """A context in which videos are added; see `StoreWriter`."""
        self.need_writable()
        return StoreWriter(self, spec, writer_id=writer_id, part_rows=part_rows)

    def set_annotations(self, raw: bytes) -> None:
        """Keep a copy of the annotations."""
        self.need_writable()
        with writing(self.path), self.backend.exclusive():
            self.backend.set_annotations(raw, hashlib.sha256(raw).hexdigest())

    def delete(self, fid: str, *names: str) -> None:
        """Forget names; rows too when it was their last."""
        self.need_writable()
        forget_names(self, fid, names)

    def compact(self, dry_run: bool = False, part_rows: int = PART_ROWS) -> CompactReport:
        """Write small and half-used parts into full ones; see compaction.py."""
        if not dry_run:
            self.need_writable()
        return compact(self, dry_run, part_rows)

    def drop_damaged(self, findings: Sequence[Finding]) -> list[str]:
        """Forget the damaged rows that `verify` found, so that extract makes exactly those again.

        Returns:
            The names that are not present any more.
        """
        self.need_writable()
        return drop_rows(self, findings)

    def merge(self, source: FeatureStore, dry_run: bool = False) -> MergeReport:
        """Take over the videos of another store; see merging.py.

        Raises:
            ConfigError: it is this store.
        """
        if _same(source.path, self.path):
            raise ConfigError("A store cannot be merged into itself.", str(self.path))
        if not dry_run:
            self.need_writable()
            kept = source.annotations()
            if kept is not None and self.annotations() is None:
                self.set_annotations(kept)
        return merge(self, source, dry_run)

    def gc(self, dry_run: bool = False, grace_sec: float = GRACE_SEC) -> GcReport:
        """Remove what nothing has referred to for `grace_sec`; pack what killed writers left."""
        if not dry_run:
            self.need_writable()
        return collect_garbage(self, dry_run, grace_sec)

    def note_spooled(self, fid: str, sha256: str) -> None:
        """Let `has_content` know that a writer of this store holds a finished video."""
        self._spooled.setdefault(fid, set()).add(sha256)

    def note_committed(self, fid: str, contents: Sequence[str] = ()) -> None:
        """Look at the commits again, after a change of this store's own (these left the spool)."""
        self._spooled.get(fid, set()).difference_update(contents)
        self._specs = None
        self._catalogues.pop(fid, None)

    def need_writable(self) -> None:
        if not self.writable:
            raise StoreError(
                "The store was opened for reading.", str(self.path), 'Open it with mode="a".'
            )

    # Reports

    def info(self) -> StoreInfo:
        return store_info(self)

    def status(self) -> StoreStatus:
        return store_status(self)

    def _nothing(
        self, backbone: str | None, stride: int | None, specs: Mapping[str, FeatureSpec]
    ) -> StoreError:
        asked = [
            text
            for text in (backbone, None if stride is None else f"stride {stride} frames")
            if text is not None
        ]
        if not specs:
            return StoreError(
                "The store holds no features.",
                str(self.path),
                f"Run tadpipe extract --store {self.path} first.",
            )
        return StoreError(
            f"No features of {', '.join(asked)} in the store.",
            self._listing(specs),
            "Ask for one of these, or run tadpipe extract with the settings you need.",
        )

    def _listing(self, specs: Mapping[str, FeatureSpec]) -> str:
        lines = [
            f"{spec.backbone}, stride {spec.stride} frames, clip {spec.clip_len} frames, "
            f"{spec.channels} channels: {len(self.videos(key))} videos (id {key})"
            for key, spec in specs.items()
        ]
        return "\n".join([f"{self.path}:", *lines])


def _same(one: Location, other: Location) -> bool:
    if isinstance(one, Path) and isinstance(other, Path):
        return one.resolve() == other.resolve()
    return one == other

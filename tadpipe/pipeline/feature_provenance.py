"""What imported features are: stated by the user, or by the convention of a known release.

Nothing is guessed: what neither says is asked for, all of it at once, and what both say
differently is an error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeVar

from tadpipe.datasets.conventions import CONVENTIONS, FeatureConvention
from tadpipe.errors import ConfigError
from tadpipe.registry import nearest
from tadpipe.store.metadata import FeatureSpec

T = TypeVar("T")
Rate = float | Literal["native"]


@dataclass(frozen=True)
class Provenance:
    """Everything that the numbers of imported features mean."""

    spec: FeatureSpec
    rate: Rate  # frames per second of all videos, or of each as annotated
    offset_frames: float  # frame of the centre of row 0
    prefix: str  # of file names, absent in the annotations
    key: str  # of the array in an npz file or a pickled dictionary

    def fps(self, annotated: float | None) -> Fraction | None:
        """Frames per second of one video; None where it is unknown."""
        rate = annotated if self.rate == "native" else self.rate
        return None if rate is None else Fraction(repr(float(rate)))


def state_provenance(
    convention: str | None = None,
    *,
    backbone: str | None = None,
    channels: int | None = None,
    stride: int | None = None,
    clip_len: int | None = None,
    frame_interval: int = 1,
    fps: Rate | None = None,
    offset: float | None = None,
    prefix: str | None = None,
    key: str | None = None,
    feature_dtype: Literal["float16", "float32"] = "float32",
) -> Provenance:
    """Put together what is stated and what the convention says.

    Raises:
        ConfigError: unknown convention, something is missing, or the two contradict each other.
    """
    known = None if convention is None else _convention(convention)
    said = _Stated(known)
    name = said.pick("--backbone", backbone, known.backbone if known else None, "")
    width = said.pick("--channels", channels, known.channels if known else None, 0)
    step = said.pick("--stride", stride, known.stride if known else None, 0)
    clip = said.pick("--clip-len", clip_len, known.clip_len if known else None, 0)
    published: Rate | None = known.fps if known else None
    if published == "native" and fps is not None:
        published = fps  # a rate that all the videos share
    rate: Rate = said.pick("--fps", fps, published, 0.0)
    offset_frames = float(said.pick("--offset", offset, known.offset if known else None, 0.0))
    said.need_all()
    _check_numbers(rate, offset_frames)
    is_native = rate == "native" or (known is not None and known.fps == "native")
    anchor = _anchor(offset_frames, clip * frame_interval, step)
    spec = FeatureSpec(
        backbone=name,
        weights_sha256="",
        channels=width,
        clip_len=clip,
        stride=step,
        pixels=None,
        frame_interval=frame_interval,
        anchor=anchor,
        edges="drop-tail" if anchor == "start" else "repeat-edge",
        fps=None if is_native else float(rate),
        stored_dtype=feature_dtype,
    )
    return Provenance(
        spec,
        rate,
        offset_frames,
        prefix if prefix is not None else (known.prefix if known is not None else ""),
        key or (known.key if known is not None else "feats"),
    )


class _Stated:
    """Picks what the user or the convention says; remembers what neither does."""

    def __init__(self, known: FeatureConvention | None) -> None:
        self.known = known
        self.missing: list[str] = []

    def pick(self, option: str, own: T | None, published: T | None, blank: T) -> T:
        """The one value of an option; `blank` where it is missing, until `need_all`."""
        if own is not None and published is not None and own != published:
            assert self.known is not None
            raise ConfigError(
                f"{option} contradicts the convention.",
                f"{option} {own}; {self.known.name} "
                f"({self.known.dataset}, {self.known.title}): {published}",
                "Leave one of the two out.",
            )
        value = published if own is None else own
        if value is None:
            self.missing.append(option)
            return blank
        return value

    def need_all(self) -> None:
        if not self.missing:
            return
        silent = "" if self.known is None else f"; {self.known.name} does not say"
        choice = "" if self.known else f", or one of --convention {', '.join(CONVENTIONS)}"
        raise ConfigError(
            "It is not stated what these features are.",
            f"missing: {', '.join(self.missing)}{silent}",
            f"Give these options{choice}.",
        )


def _convention(name: str) -> FeatureConvention:
    if name not in CONVENTIONS:
        raise ConfigError(
            f"Unknown convention '{name}'.",
            todo=f"Known: {', '.join(nearest(name, CONVENTIONS) or CONVENTIONS)}.",
        )
    return CONVENTIONS[name]


def _check_numbers(rate: Rate, offset_frames: float) -> None:
    if rate != "native" and not 0 < rate < math.inf:
        raise ConfigError("--fps must be positive.", f"--fps {rate}")
    if not 0 <= offset_frames < math.inf:
        raise ConfigError("--offset counts frames from 0.", f"--offset {offset_frames:g}")


def _anchor(
    offset_frames: float, span_frames: int, stride: int
) -> Literal["start", "centre", "cell"]:
    """Where clips sit, told by the centre of the first one; each video's offset is kept anyway."""
    if offset_frames == 0:
        return "centre"
    if offset_frames == stride / 2 != span_frames / 2:
        return "cell"
    return "start"

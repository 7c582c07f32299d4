"""What stored features are: the feature spec of a set of videos, and the row of one video.

`FeatureSpec` lists everything that decides the numbers; the hash of its canonical JSON is the
`fid` under which a store files them. `VideoRow` is one line of a part's row table: where a
video's rows [rows, C] are and when they are. Standard library only, like the base.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from tadpipe.config import PixelRecipe, build, digest, to_mapping
from tadpipe.errors import ConfigError

HIGHEST_FPS = 1000  # a rate to resample to; more only repeats frames
FID_DIGITS = 16  # hex digits of the SHA-256 kept as fid: 64 bits


@dataclass(frozen=True)
class FeatureSpec:
    """Everything that decides the numbers of a feature row."""

    backbone: str  # name of `tadpipe list backbones`, or what an import states
    weights_sha256: str
    channels: int  # C
    clip_len: int  # frames per clip
    stride: int  # frames between the starts of neighbouring snippets
    pixels: PixelRecipe | None  # resize, crop, mean and std, colour; None = not stated (imported)
    adapter_sha256: str = ""  # weights added to the backbone; "" = none
    representation: Literal["snippet", "frame"] = "snippet"
    window_len: int = 0  # "frame": frames that see each other in one pass
    overlap: int = 0  # "frame": frames shared by neighbouring windows
    row_spacing: float = 0.0  # "frame": frames between rows
    frame_interval: int = 1  # a clip takes every n-th frame
    anchor: Literal["start", "centre", "cell"] = "start"  # where the first clip sits
    edges: Literal["drop-tail", "repeat-edge"] = "drop-tail"  # clips that reach past the ends
    decode_size: tuple[int, int] | None = (
        None  # (width, height) asked of the decoder; None = native
    )
    rotation: Literal["upright", "as-stored"] = "upright"
    truncated: Literal["skip", "keep"] = "skip"  # a file that ends early
    fps: float | None = None  # resampled to this rate by presentation times; None = native
    pooling: str = "mean"  # tokens of a clip -> one row
    compute_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    batch: int | None = None  # padded clips per pass, where the backbone's last bits depend on it
    stored_dtype: Literal["float16", "float32"] = "float16"

    def __post_init__(self) -> None:
        for key in ("channels", "clip_len", "stride", "frame_interval"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} must be positive.", f"{key} = {getattr(self, key)}")
        if self.fps is not None and not 0 < self.fps <= HIGHEST_FPS:
            raise ConfigError(
                f"fps must be positive and at most {HIGHEST_FPS}.", f"fps = {self.fps}"
            )
        if self.anchor != "start" and self.edges != "repeat-edge":
            raise ConfigError(
                "Clips anchored at their centre reach past the ends, which repeats edge frames.",
                f"anchor = {self.anchor!r}, edges = {self.edges!r}",
            )
        if self.representation == "frame":
            if not (0 <= self.overlap < self.window_len and self.row_spacing > 0):
                raise ConfigError(
                    "Frame features need window_len > overlap >= 0 and row_spacing > 0.",
                    f"{self.window_len}, {self.overlap}, {self.row_spacing}",
                )
        elif self.window_len or self.overlap or self.row_spacing:
            raise ConfigError("window_len, overlap and row_spacing belong to frame features.")

    @property
    def fid(self) -> str:
        """The name of the spec inside a store: a hash, equal where the numbers are."""
        mapping = to_mapping(self)
        if self.pixels is not None and not self.pixels.resize_to:
            del mapping["pixels"]["resize_to"]  # a later field: at rest it must not move a store
        return digest(mapping)[:FID_DIGITS]

    @property
    def stride_frames(self) -> float:
        """Frames between neighbouring rows."""
        return float(self.stride) if self.representation == "snippet" else self.row_spacing

    @property
    def span_frames(self) -> int:
        """Frames one snippet spans, the "feat_num_frames" of published configs."""
        return self.clip_len * self.frame_interval

    @property
    def offset_frames(self) -> float:
        """Frame of the centre of row 0, unless a video states its own."""
        if self.anchor == "start":
            return self.span_frames / 2
        return 0.0 if self.anchor == "centre" else self.stride_frames / 2

    def serves(self, stride: int) -> bool:
        """Whether these rows, all of them or every n-th, are the rows at `stride`.

        Snippets do not see each other, so a multiple of the stride only leaves rows out. Anchored
        on the middle of stride cells they move with the stride, and frame features do not thin.
        """
        if stride == self.stride:
            return True
        thins = self.representation == "snippet" and self.anchor != "cell"
        return thins and stride % self.stride == 0

    def settings(self) -> dict[str, str]:
        """The spec in words, one line per setting that is not at rest, for people to compare."""
        pixels = self.pixels
        words = {
            "backbone": self.backbone,
            "weights": self.weights_sha256[:12] or "not stated",
            "adapter": self.adapter_sha256[:12],
            "stride": f"{self.stride} frames",
            "clip": f"{self.clip_len} frames",
            "frame interval": "" if self.frame_interval == 1 else str(self.frame_interval),
            "channels": str(self.channels),
            "anchor": f"{self.anchor} ({self.edges})",
            "pixels": "not stated" if pixels is None else _pixel_words(pixels),
            "normalised": "" if pixels is None or not pixels.mean else _scale_words(pixels),
            "rate": "" if self.fps is None else f"{self.fps:g} fps",
            "decoded at": "" if self.decode_size is None else "x".join(map(str, self.decode_size)),
            "rotation": "" if self.rotation == "upright" else self.rotation,
            "truncated files": "" if self.truncated == "skip" else self.truncated,
            "pooling": "" if self.pooling == "mean" else self.pooling,
            "computed in": self.compute_dtype,
            "batch": "" if self.batch is None else str(self.batch),
            "stored as": self.stored_dtype,
        }
        if self.representation == "frame":
            words["frame features"] = (
                f"windows of {self.window_len} frames, {self.overlap} shared, "
                f"a row every {self.row_spacing:g}"
            )
        return {key: value for key, value in words.items() if value}

    def to_mapping(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return to_mapping(self)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], where: str = "feature spec") -> FeatureSpec:
        """The inverse of `to_mapping`; a wrong or unknown key is a ConfigError naming `where`."""
        return build(cls, mapping, where)


def _pixel_words(pixels: PixelRecipe) -> str:
    """Size, resize, arithmetic and kind of the pictures."""
    words = f"{pixels.resize} {pixels.size} {pixels.interpolation}"
    if pixels.resize_short_side not in (0, pixels.size):
        words += f", cut from a short side of {pixels.resize_short_side}"
    if pixels.resize_to:
        words += f", cut from {pixels.resize_to[0]} x {pixels.resize_to[1]}"
    return words if pixels.colour == "rgb" else f"{words}, {pixels.colour}"


def _scale_words(pixels: PixelRecipe) -> str:
    mean, std = (" ".join(f"{v:g}" for v in values) for values in (pixels.mean, pixels.std))
    return f"mean {mean}, std {std}"


@dataclass(frozen=True)
class VideoRow:
    """One video's line in the row table of a part."""

    name: str  # alias, any Unicode; never a path
    content_sha256: str  # of the bytes of the video file
    part: str
    first_row: int  # in the part's arrays
    rows: int
    t0: float  # centre time of row 0, seconds from the container's start
    dt: Fraction | None  # seconds between rows, exact; None = variable rate
    clip_len: int
    fps: Fraction | None  # frames per second; None = variable
    frames: int  # in the video
    duration_sec: float
    offset_frames: float  # frame of the centre of row 0
    truncated: bool  # the file ended early and what there was is kept
    checksum: str  # xxh3-64 of the raw rows, hex
    times_checksum: str  # xxh3-64 of the raw row times, hex
    nan_count: int

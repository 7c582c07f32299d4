"""Where a store is: a path on this machine, or the address of objects such as s3://bucket/x.zarr.

An address stays what it was when it has been through `pathlib.Path`, which folds `s3://` to `s3:/`:
options and project files may pass either on, `location` tells them apart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tadpipe.errors import ConfigError

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
_NO_SLASHES = re.compile(r"(s3|gs):(?=[^/])", re.IGNORECASE)  # a slip, and hardly a folder's name


@dataclass(frozen=True)
class Address:
    """A folder of objects."""

    scheme: str  # as s3, gs, memory
    key: str  # bucket and folder, without a slash at either end

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}"

    def __truediv__(self, name: str) -> Address:
        return Address(self.scheme, f"{self.key}/{name}")

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    @property
    def parent(self) -> Address:
        return Address(self.scheme, self.key.rpartition("/")[0])


Location = Path | Address


def location(given: str | Path | Address) -> Location:
    """What a store was named by.

    Raises:
        ConfigError: an address without slashes, without a folder, or with a password in it.
    """
    if isinstance(given, Address):
        return given
    matched = _ADDRESS.fullmatch(str(given))
    if matched is None:
        if _NO_SLASHES.match(str(given)):
            raise ConfigError(
                "An address has two slashes after its scheme.",
                str(given),
                f"Did you mean {_NO_SLASHES.sub(lambda m: m[0].lower() + '//', str(given), 1)}?",
            )
        return Path(given)
    scheme, key = matched[1].lower(), matched[2].strip("/")
    if scheme == "file":
        return Path("/" + key)
    bucket, _, folder = key.partition("/")
    if "@" in bucket or ":" in bucket:
        raise ConfigError(
            "A store's address holds no user names and passwords.",
            f"{scheme}://...@{bucket.rpartition('@')[2]}",
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, instead.",
        )
    if not bucket or (scheme == "s3" and not folder):
        raise ConfigError(
            "A store's address names a bucket and a folder in it.",
            f"{scheme}://{key}",
            f"Name it as {scheme}://{bucket or 'bucket'}/features.zarr.",
        )
    return Address(scheme, key)


def below(anchor: Path, given: Path) -> Path:
    """A path of a file in `anchor`; absolute ones and addresses are what they are."""
    return given if _ADDRESS.fullmatch(str(given)) else anchor / given

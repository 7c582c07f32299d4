"""Objects on object storage through fsspec: the few operations that a store is made of.

An object is there whole or not at all. `create` is the one operation that commits rest on: a put
on the condition that nothing is there (`If-None-Match: *`), which the storage decides. Credentials
and endpoint come from where fsspec's driver looks for them (for s3 the AWS environment variables
and files, and fsspec's configuration); none of them is ever part of a message.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tadpipe.errors import NoAnswerError, StoreError
from tadpipe.location import Address

# Bounds how long an endpoint that does not answer is waited for: about a minute in all, as two
# attempts of botocore are made twice by s3fs, which where it reads content does that twice.
_S3_CONNECTION = {
    "connect_timeout": 5,
    "read_timeout": 8,
    "retries": {"mode": "standard", "total_max_attempts": 2},
}
_S3_ROUNDS = 2
_DENIED = ("AccessDenied", "Access Denied", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNot")


class ObjectFacts(NamedTuple):
    """What a listing says about an object."""

    bytes: int
    modified_sec: float  # by the storage's own clock, unix seconds
    version: str  # another one whenever the content is


class Objects:
    """The objects below an address; keys are relative to it.

    Raises:
        NoAnswerError: whatever keeps the storage from answering; what is not there is a
            FileNotFoundError.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self._driver: Any = None
        self._process = 0
        self._creates_once = False

    def _fs(self) -> Any:
        """The driver; a new one in a forked child, which cannot use its parent's."""
        if self._driver is None or self._process != os.getpid():
            self._driver, self._process = _open_driver(self.address), os.getpid()
        return self._driver

    def _path(self, key: str) -> str:
        return f"{self.address.key}/{key}" if key else self.address.key

    def read(self, key: str) -> bytes:
        with _asking(self.address, key):
            return bytes(self._fs().cat_file(self._path(key)))

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop`, fewer where the object ends before."""
        with _asking(self.address, key):
            return bytes(self._fs().cat_file(self._path(key), start=start, end=stop))

    def read_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        """Key -> content, asked for side by side; keys that are not there are left out."""
        if not keys:
            return {}
        with _asking(self.address, keys[0]):
            paths = [self._path(key) for key in keys]
            found = self._fs().cat(paths, on_error="return")
            if len(keys) == 1 and not isinstance(found, dict):
                found = {paths[0]: found}
            contents = {}
            for key, path in zip(keys, paths, strict=True):
                content = found.get(path, found.get(f"/{path}"))
                if isinstance(content, FileNotFoundError):
                    continue
                if isinstance(content, BaseException):
                    raise content
                contents[key] = bytes(content)
        return contents

    def create(self, key: str, raw: bytes) -> bool:
        """Put an object where nothing is; False, and nothing changed, where something is."""
        try:
            with _asking(self.address, key):
                self._fs().pipe_file(self._path(key), raw, mode="create")
        except FileExistsError:
            return False
        except StoreError as error:
            # The answer to a put that worked may be lost; asked again, the storage says no.
            if isinstance(error.__cause__, OSError) and _is_conflict(error.__cause__):
                return False
            raise
        return True

    def put(self, key: str, content: bytes | Path) -> None:
        """Put an object, in place of the one that is there."""
        with _asking(self.address, key):
            if isinstance(content, Path):
                self._fs().put_file(str(content), self._path(key))
            else:
                self._fs().pipe_file(self._path(key), content)

    def fetch(self, key: str, into: Path) -> None:
        """Copy an object into a file."""
        with _asking(self.address, key):
            self._fs().get_file(self._path(key), str(into))

    def size(self, key: str) -> int:
        with _asking(self.address, key):
            return int(self._fs().info(self._path(key))["size"])

    def exists(self, key: str) -> bool:
        try:
            self.size(key)
        except FileNotFoundError:
            return False
        return True

    def listing(self, prefix: str) -> dict[str, ObjectFacts]:
        """Every object below a folder; empty where there is none."""
        root = self._path("")
        with _asking(self.address, prefix):
            try:
                found = self._fs().find(self._path(prefix), detail=True)
            except FileNotFoundError as error:
                if _is_no_bucket(error):
                    raise
                return {}
        return {
            path.lstrip("/")[len(root) + 1 :]: _facts(entry)
            for path, entry in found.items()
            if path.lstrip("/") != self._path(prefix)  # an object by the name of the folder
        }

    def folders(self, prefix: str) -> list[str]:
        """Names of the folders right below a folder, sorted."""
        with _asking(self.address, prefix):
            try:
                found = self._fs().ls(self._path(prefix), detail=True)
            except FileNotFoundError as error:
                if _is_no_bucket(error):
                    raise
                return []
        names = (entry["name"] for entry in found if entry["type"] == "directory")
        return sorted(name.rstrip("/").rpartition("/")[2] for name in names)

    def remove(self, keys: Sequence[str]) -> None:
        """Remove objects; those that are gone already do not matter."""
        if keys:
            with (
                _asking(self.address, keys[0]),
                contextlib.suppress(FileNotFoundError),
            ):
                self._fs().rm([self._path(key) for key in keys])

    def now_sec(self) -> float:
        """The time by the storage's own clock, unix seconds: no machine's clock is trusted."""
        key = f"ledger/.clock-{secrets.token_hex(4)}"
        self.put(key, b"")
        try:
            with _asking(self.address, key):
                return _facts(self._fs().info(self._path(key))).modified_sec
        finally:
            self.remove([key])

    def mapping(self, key: str) -> Any:
        """The objects below a key as a mapping, for libraries that read them by themselves."""
        return self._fs().get_mapper(self._path(key))

    def need_create(self, key: str) -> None:
        """Make sure that `create` is refused where something is, by trying it on `key`.

        Raises:
            StoreError: the storage overwrites; writers would destroy each other's commits.
        """
        if self._creates_once:
            return
        if self.create(key, self.read(key)):
            raise StoreError(
                "This storage ignores conditional puts, on which commits rest.",
                f"{self.address}: a put with If-None-Match: * replaced an object that is there",
                "Use a storage that honours them, or a store in a folder.",
            )
        self._creates_once = True


def _open_driver(address: Address) -> Any:
    try:
        import fsspec  # with its drivers 0.2 to 0.5 s to import
    except ImportError:
        raise _no_driver(address) from None
    options: dict[str, Any] = {}
    if address.scheme == "s3":
        given = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        options["config_kwargs"] = {**_S3_CONNECTION, **given}
    try:
        driver = fsspec.filesystem(address.scheme, use_listings_cache=False, **options)
    except (ImportError, ValueError) as error:
        raise _no_driver(address) from error
    if address.scheme == "s3":
        driver.retries = _S3_ROUNDS
    return driver


def _no_driver(address: Address) -> StoreError:
    extra = (
        "it by pip install 'tadpipe[s3]'"
        if address.scheme == "s3"
        else f"the fsspec driver of {address.scheme}://"
    )
    return StoreError(
        f"There is no driver for {address.scheme}:// addresses here.",
        str(address),
        f"Install {extra}.",
    )


def _facts(entry: Mapping[str, Any]) -> ObjectFacts:
    when = entry.get("LastModified", entry.get("mtime", entry.get("created", 0.0)))
    if isinstance(when, datetime.datetime):
        when = when.timestamp()
    size = int(entry.get("size") or 0)
    return ObjectFacts(size, float(when), str(entry.get("ETag", f"{size}-{when}")))


def _is_no_bucket(error: FileNotFoundError) -> bool:
    return "specified bucket does not exist" in str(error) or "NoSuchBucket" in str(error.__cause__)


def _is_conflict(error: BaseException) -> bool:
    text = str(error)
    return "PreconditionFailed" in text or "pre-conditions" in text


@contextmanager
def _asking(address: Address, key: str) -> Iterator[None]:
    """Turn what the driver raises into a StoreError, but for what is not there."""
    place = f"{address}/{key}".rstrip("/")
    try:
        yield
    except (StoreError, FileExistsError):
        raise
    except FileNotFoundError as error:
        if not _is_no_bucket(error):
            raise FileNotFoundError(f"{place}: not there") from None
        raise NoAnswerError(
            "The bucket does not exist.", str(address), "Make the bucket, or check the address."
        ) from None
    except Exception as error:
        raise _storage_error(place, error) from error


def _storage_error(place: str, error: Exception) -> NoAnswerError:
    """What a driver's error means to a user; of its text only the first line is shown."""
    kind, text = type(error).__name__, str(error).partition("\n")[0][:300]
    if "Credentials" in kind or "ProfileNotFound" in kind or "Token" in kind:
        return NoAnswerError(
            "No credentials for the object storage.",
            place,
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE.",
        )
    if isinstance(error, PermissionError) or any(word in text for word in _DENIED):
        return NoAnswerError(
            "The object storage denies access.",
            place,
            "Check the credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE) and the bucket's policy.",
        )
    if isinstance(error, (OSError, TimeoutError)) or "Connect" in kind or "Timeout" in kind:
        return NoAnswerError(
            "The object storage does not answer.",
            f"{place}: {kind}: {text}",
            "Check the network and AWS_ENDPOINT_URL, then run the same command again "
            "(train-detector, e2e: with --resume); whatever was finished before is safe.",
        )
    return NoAnswerError("The object storage failed.", f"{place}: {kind}: {text}")

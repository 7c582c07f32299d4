"""What tests of any package may ask for: a real S3-compatible server on the loopback interface."""

from __future__ import annotations

import re
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Address of a server of our own, up while the tests run."""
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            found = re.search(r"http://127\.0\.0\.1:\d+", line)
            if found:
                break
        else:
            raise RuntimeError("the S3 server did not start")
        # Nobody reads on, and a full pipe would stop the server.
        drain = threading.Thread(target=process.stderr.read, daemon=True)
        drain.start()
        yield found[0]
    finally:
        process.kill()
        process.wait()
        drain.join()
        process.stderr.close()


@pytest.fixture
def s3_environment(
    s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """The variables that lead to the server, set here and for processes started from here."""
    variables = {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-tests",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "TADPIPE_WORK": str(tmp_path / "work"),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


@pytest.fixture
def s3_bucket(s3_environment: dict[str, str]) -> str:
    """Address of a new, empty bucket."""
    import s3fs

    name = f"bucket-{secrets.token_hex(6)}"
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}"

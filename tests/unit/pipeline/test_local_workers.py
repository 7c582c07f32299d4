"""Worker processes of this machine: Ctrl-C while they start is the command's alone."""

from __future__ import annotations

import signal
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest

from tadpipe.pipeline import local_workers


class Cluster:
    """Stands for Dask's; notes who makes it and whether it is closed."""

    made: list[Cluster]

    def __init__(self, *arguments: Any, silence_logs: int) -> None:
        self.blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        self.closed = False
        self.made.append(self)

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Cluster]:
    def client(cluster: Cluster) -> AbstractContextManager[Cluster]:
        return nullcontext(cluster)

    monkeypatch.setattr(Cluster, "made", [], raising=False)
    monkeypatch.setattr(local_workers, "SpecCluster", Cluster)
    monkeypatch.setattr(local_workers, "Client", client)
    return Cluster.made


def test_processes_start_where_an_interrupt_does_not_reach_them(made: list[Cluster]) -> None:
    with local_workers.local_workers(2, "cpu"):
        (cluster,) = made
        assert signal.SIGINT in cluster.blocked
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert cluster.closed


def test_cluster_that_starts_while_interrupted_is_closed(
    made: list[Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = Future.result
    asked: list[Future[Any]] = []

    def interrupted(self: Future[Any], timeout: float | None = None) -> Any:
        asked.append(self)
        if len(asked) == 1:
            raise KeyboardInterrupt
        return result(self, timeout)

    monkeypatch.setattr(Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt), local_workers.local_workers(2, "cpu"):
        pass
    (cluster,) = made
    assert cluster.closed

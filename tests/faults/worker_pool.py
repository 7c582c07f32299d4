"""A Dask cluster whose every process can be killed at any time and comes back at once.

    python -m tests.faults.worker_pool WORKERS

One process loads what is slow to load and forks scheduler and workers from it. It reads commands:
`kill N` sends SIGKILL to worker N and starts another, `restart` does that to the scheduler. A
worker that ends by itself is started again too, as a job array would; a video named `poison` kills
every worker that looks at it. Prints the scheduler's address first; ends with its input.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[2]


class WorkerPool:
    """The driver's side: starts the pool and sends commands; a context."""

    def __init__(self, workers: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.worker_pool", str(workers)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        self.address = self.process.stdout.readline().strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def kill(self, worker: int) -> None:
        self._tell(f"kill {worker}")

    def restart_scheduler(self) -> None:
        self._tell("restart")

    def _tell(self, command: str) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        self.process.stdout.readline()  # done


class Children:
    """The pool's own side: forked processes by name."""

    def __init__(self) -> None:
        self._pids: dict[str, int] = {}
        self._main: dict[str, Callable[[], Any]] = {}

    def start(self, name: str, main: Callable[[], Any]) -> None:
        self._main[name] = main
        pid = os.fork()
        if pid:
            self._pids[name] = pid
            return
        try:
            asyncio.run(main())
        finally:
            os._exit(0)

    def kill(self, name: str) -> None:
        """Kill one and start it again."""
        os.kill(self._pids[name], signal.SIGKILL)
        os.waitpid(self._pids[name], 0)
        self.start(name, self._main[name])

    def revive(self) -> None:
        """Start those again that ended by themselves."""
        for name, pid in list(self._pids.items()):
            if os.waitpid(pid, os.WNOHANG)[0]:
                self.start(name, self._main[name])

    def end(self) -> None:
        for pid in self._pids.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def main(workers: int) -> None:
    """Serve commands until the input ends."""
    import dask
    from distributed import Scheduler, Worker

    import tadpipe.pipeline.extract_cluster  # noqa: F401  # what every worker would load
    from tadpipe.store.content import ContentIndex

    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    logging.getLogger("tadpipe").setLevel(logging.CRITICAL)
    dask.config.set({"distributed.comm.timeouts.connect": "5s"})
    read = ContentIndex.sha256

    def sha256(index: ContentIndex, path: str | Path) -> str:
        if Path(path).stem == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        return read(index, path)

    ContentIndex.sha256 = sha256  # type: ignore[method-assign]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"

    async def scheduler() -> None:
        pages = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
        async with Scheduler(host="127.0.0.1", port=port, **pages) as running:
            await running.finished()

    async def worker() -> None:
        async with Worker(address, host="127.0.0.1", nthreads=1, dashboard=False) as running:
            await running.finished()

    children = Children()
    children.start("scheduler", scheduler)
    for number in range(workers):
        children.start(f"worker {number}", worker)
    print(address, flush=True)
    while True:
        children.revive()
        if not select.select([sys.stdin], [], [], 0.1)[0]:
            continue
        line = sys.stdin.readline()
        if not line:
            break
        children.kill("scheduler" if line == "restart\n" else f"worker {line.split()[1]}")
        print("done", flush=True)
    children.end()


if __name__ == "__main__":
    main(int(sys.argv[1]))

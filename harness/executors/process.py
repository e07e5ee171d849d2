"""Shards in several processes of this machine; a dead one is replaced and its shard redone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from harness.api import ShardEnd
from harness.errors import HarnessError, StoreError, WorkerError
from harness.plugins import load_plugins
from harness.store import CellFolder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.context import SpawnProcess

    from harness.registry import PluginSource, Registry
    from harness.workbench import Job, Workbench

STRIKES = 3
"""Times that a shard may kill its worker before it is set aside."""


@dataclass
class _Worker:
    """One process, and the job that it is doing."""

    process: SpawnProcess
    pipe: Connection
    job: Job | None = None


def process(jobs: Sequence[Job], *, registry: Registry, workers: int) -> Iterator[ShardEnd]:
    """Do every job in one of several spawned processes, which share the cores among them.

    Raises:
        StoreError: A worker could not write.
        WorkerError: A worker met a bug; its traceback is in the message.
    """
    waiting = deque(jobs)
    strikes: dict[tuple[Any, int], int] = {}
    threads = max(1, (os.cpu_count() or 1) // workers)
    pool = [_start(registry, threads) for _ in range(min(workers, len(jobs)))]
    try:
        while waiting or any(worker.job for worker in pool):
            for worker in pool:
                _feed(worker, waiting)
            for worker in _ready(pool):
                job, end = worker.job, _answer(worker)
                worker.job = None
                if end is not None:
                    yield end
                    continue
                pool[pool.index(worker)] = _start(registry, threads)
                if job is None:
                    continue
                set_aside = _struck(job, strikes, worker)
                if set_aside is None:
                    waiting.appendleft(job)
                else:
                    yield set_aside
    finally:
        for worker in pool:
            _stop(worker)


def _start(registry: Registry, threads: int) -> _Worker:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(
        target=_work, args=(there, registry.sources, registry.without, threads), daemon=True
    )
    child.start()
    there.close()
    return _Worker(child, here)


def _feed(worker: _Worker, waiting: deque[Job]) -> None:
    if worker.job is None and waiting:
        worker.job = waiting.popleft()
        try:
            worker.pipe.send(worker.job)
        except OSError:  # it died before its first job; _answer will see that
            return


def _ready(pool: list[_Worker]) -> list[_Worker]:
    """The workers that answered or died."""
    busy = [worker for worker in pool if worker.job is not None]
    heard = wait([worker.pipe for worker in busy] + [worker.process.sentinel for worker in busy])
    return [worker for worker in busy if worker.pipe in heard or worker.process.sentinel in heard]


def _answer(worker: _Worker) -> ShardEnd | None:
    """What the worker says; None where it died."""
    try:
        answer = worker.pipe.recv()
    except (EOFError, OSError):
        return None
    if isinstance(answer, BaseException):
        raise answer
    end: ShardEnd = answer
    return end


def _struck(job: Job, strikes: dict[tuple[Any, int], int], worker: _Worker) -> ShardEnd | None:
    """Count a death; the end of a shard that has caused too many."""
    worker.process.join()
    key = (job.cell.folder, job.shard.index)
    strikes[key] = strikes.get(key, 0) + 1
    folder = CellFolder(job.cell.folder)
    folder.log("worker-died", shard=job.shard.name, exit_code=worker.process.exitcode)
    if strikes[key] < STRIKES:
        return None
    reason = f"its worker died {STRIKES} times (last exit code {worker.process.exitcode})"
    return ShardEnd(job.cell.contender.row, job.shard.index, len(job.shard.ids), 0.0, reason)


def _stop(worker: _Worker) -> None:
    worker.pipe.close()
    worker.process.terminate()
    worker.process.join(timeout=5)
    if worker.process.is_alive():
        worker.process.kill()


def _work(
    pipe: Connection, sources: tuple[PluginSource, ...], without: tuple[str, ...], threads: int
) -> None:
    """The life of a worker: load plugins once, then do what comes through the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the run, which stops us
    import torch  # noqa: PLC0415 - the run itself may need none

    from harness.workbench import Workbench  # noqa: PLC0415

    torch.set_num_threads(threads)
    bench = Workbench(load_plugins(sources, without=without))
    while True:
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            pipe.send(_performed(bench, job))
        except OSError:  # the run is gone; what was done is in the files
            return


def _performed(bench: Workbench, job: Job) -> ShardEnd | HarnessError:
    """The end of a job, or the error that ends the run."""
    try:
        return bench.perform(job)
    except StoreError as error:
        return StoreError(str(error))
    except HarnessError as error:
        return WorkerError(str(error))
    except Exception:  # noqa: BLE001 - a bug: its traceback must reach the user
        return WorkerError(f"a worker met a bug:\n{traceback.format_exc()}")

"""Shards one after the other, in the process of the run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.workbench import Job, Workbench

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.api import ShardEnd
    from harness.registry import Registry


def inline(jobs: Sequence[Job], *, registry: Registry, workers: int) -> Iterator[ShardEnd]:  # noqa: ARG001 - one process, whatever is asked
    """Do every job in this process."""
    bench = Workbench(registry)
    for job in jobs:
        yield bench.perform(job)

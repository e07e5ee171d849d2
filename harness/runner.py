"""A run: open each cell, do its missing shards, score the rows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from harness.api import RunEnd, RunStart, ShardEnd
from harness.errors import HarnessError, StoreError, UsageError
from harness.opening import Opening, Request, open_cell, start
from harness.scoring import Cell, collect, score
from harness.store import CellFolder
from harness.weights import trained
from harness.workbench import CellSpec, Job

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.registry import Registry
    from harness.store import Shard

__all__ = ["Request", "Result", "run", "run_seeds", "train"]


@dataclass(frozen=True)
class Result:
    """What a run ended with.

    Attributes:
        rows: The table, one object for each row that could be scored.
        cells: The same rows with their records.
        errors: What went wrong, by row.
        shards: The units of work of each row.
    """

    rows: tuple[dict[str, Any], ...]
    cells: tuple[Cell, ...]
    errors: dict[str, str] = field(default_factory=dict)
    shards: tuple[Shard, ...] = ()


def run(request: Request, registry: Registry, observers: Sequence[object] = ()) -> Result:
    """Do all of a request that is not done yet; the same request again goes on where it was.

    Args:
        request: What is to be run.
        registry: Plugins.
        observers: Objects with some of the watching hooks, beside those of plugins.

    Raises:
        StoreError: The run folder cannot be written.
        DataError: The images cannot be loaded.
    """
    current = start(request, registry, observers)
    cells, errors = _opened(current)
    jobs = [Job(cell, shard) for cell in cells for shard in _missing(current, cell)]
    current.observers.run_started(
        RunStart(
            suite=request.suite.name,
            models=tuple(cell.contender.row for cell in cells),
            shards=len(jobs),
            finished=len(cells) * len(current.shards) - len(jobs),
            workers=1 if request.executor == "inline" else request.workers,
        )
    )
    errors |= _done(current, jobs)
    found = [collect(CellFolder(cell.folder), current.shards, request.flags) for cell in cells]
    scored = tuple(cell for cell in found if cell.records)
    rows = tuple(score(request.suite, cell, registry) for cell in scored)
    current.observers.run_finished(RunEnd(request.suite.name, rows))
    return Result(rows, scored, errors, current.shards)


def run_seeds(
    request: Request, registry: Registry, observers: Sequence[object] = (), *, count: int
) -> Result:
    """The same request from several seeds in turn, each with trainings of its own.

    Args:
        request: Its seed is the first; the others follow it.
        registry: Plugins.
        observers: Objects with some of the watching hooks.
        count: Seeds.

    Raises:
        UsageError: A row has weights already, so that seeds would only draw other attacks.
    """
    for contender in request.contenders if count > 1 else ():
        if not contender.recipe:
            raise UsageError(
                f"--seeds trains each row several times, and {contender.row} has its weights "
                "already; name a recipe, or leave --seeds out"
            )
    results = [
        run(replace(request, seed=request.seed + step), registry, observers)
        for step in range(count)
    ]
    return Result(
        tuple(row for result in results for row in result.rows),
        tuple(cell for result in results for cell in result.cells),
        {name: error for result in results for name, error in result.errors.items()},
        results[0].shards,
    )


def train(
    request: Request, registry: Registry, observers: Sequence[object] = ()
) -> dict[str, Path]:
    """Train what has no weights yet, and nothing else; the folder of each row's weights."""
    current = start(request, registry, observers)
    return {
        contender.row: trained(current.trainer, contender)
        for contender in request.contenders
        if contender.recipe
    }


def _opened(current: Opening) -> tuple[list[CellSpec], dict[str, str]]:
    """The cells whose models can be attacked, and why the others cannot."""
    cells, errors = [], {}
    for contender in current.request.contenders:
        try:
            cells.append(open_cell(current, contender))
        except StoreError:
            raise
        except HarnessError as error:
            errors[contender.row] = str(error)
    return cells, errors


def _missing(current: Opening, cell: CellSpec) -> list[Shard]:
    folder = CellFolder(cell.folder)
    return [
        shard
        for shard in current.shards
        if not folder.has(shard) or (cell.saves_all and not folder.has_images(shard))
    ]


def _done(current: Opening, jobs: Sequence[Job]) -> dict[str, str]:
    """Do the jobs; the first error of each row."""
    if not jobs:
        return {}
    request = current.request
    execute = current.registry.find("executors", request.executor).load()
    folders = {(job.cell.contender.row, job.shard.index): job for job in jobs}
    errors: dict[str, str] = {}
    for end in execute(jobs, registry=current.registry, workers=request.workers):
        if end.error:
            errors.setdefault(end.model, end.error)
        _log(folders[end.model, end.shard], end)
        current.observers.shard_finished(end)
    return errors


def _log(job: Job, end: ShardEnd) -> None:
    """Write a shard's end into the events of its cell."""
    CellFolder(job.cell.folder).log(
        "shard-failed" if end.error else "shard-finished",
        shard=job.shard.name,
        images=end.images,
        seconds=round(end.seconds, 3),
        error=end.error,
    )

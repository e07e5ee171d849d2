"""What a run shows on stderr while it works: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from harness.api import EpochEnd, RunEnd, RunStart, ShardEnd, hookimpl


class TerminalProgress:
    """An observer of a run that draws."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[told]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._total, self._done, self._workers = 0, 0, 1
        self._seconds = 0.0

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    @hookimpl
    def run_started(self, event: RunStart) -> None:
        """Open the bar of the shards; a command may have several runs."""
        self._total, self._workers = event.shards, event.workers
        self._done, self._seconds = 0, 0.0
        self._bars.start()
        if event.finished:
            self._say(f"{event.finished} shards were finished before; {event.shards} to do")
        self._tasks["shards"] = self._bars.add_task("attack", total=event.shards, told="")

    @hookimpl
    def epoch_finished(self, event: EpochEnd) -> None:
        """Move the bar of one training."""
        told = ", ".join(f"{name} {number:.3f}" for name, number in event.numbers.items())
        told += f", {event.images / max(event.seconds, 1e-9):.0f} images/s"
        if event.model not in self._tasks:
            self._tasks[event.model] = self._bars.add_task(
                f"train {event.model}", total=event.epochs, told=""
            )
        self._bars.update(self._tasks[event.model], completed=event.epoch, told=told)
        if event.epoch % max(1, event.epochs // 10) == 0 or event.epoch == event.epochs:
            self._say(f"train {event.model}: epoch {event.epoch}/{event.epochs}, {told}")

    @hookimpl
    def shard_finished(self, event: ShardEnd) -> None:
        """Move the bar of the shards."""
        told = f"{event.model}: {event.images / max(event.seconds, 1e-9):.0f} images/s"
        self._bars.update(self._tasks["shards"], advance=1, told=told)
        self._done, self._seconds = self._done + 1, self._seconds + event.seconds
        end = f"failed: {event.error}" if event.error else f"{event.seconds:.1f} s"
        end += self._left()
        self._say(f"attack {event.model}: shard {event.shard}, {event.images} images, {end}")

    @hookimpl
    def run_finished(self, event: RunEnd) -> None:  # noqa: ARG002 - the hook's signature
        """Take the bars away."""
        self._bars.stop()

    def _left(self) -> str:
        """The time that the other shards will take at the mean of those that are done."""
        left = self._total - self._done
        seconds = round(self._seconds / self._done * left / max(1, min(self._workers, left)))
        return f"; about {timedelta(seconds=seconds)} left" if left else ""

    def _say(self, line: str) -> None:
        """A plain line, where there are no bars."""
        if not self._console.is_terminal:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

"""A grid of nine epsilons, once each way that our protocols have, against nine separate runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from harness.bench.contest import as_found
from harness.bench.gauge import gauged, seconds
from harness.bench.ours import attacked, passes
from harness.bench.race import Spread, in_order, spread
from harness.bench.tasks import Manner

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from harness.bench.contest import Contest
    from harness.bench.gauge import Effort
    from harness.bench.tasks import Task
    from harness.records import Record

GRID = {f"{step:g}/255": step / 255 for step in (0.25, 0.5, 1, 1.5, 2, 3, 4, 6, 8)}
"""The radii in Linf, upwards, as suites write them."""


class Way(NamedTuple):
    """How the grid is gone through."""

    name: str
    protocol: str
    stop: str
    is_separate: bool  # one evaluation for each epsilon


WAYS = (
    Way("nine separate runs, no dropping", "independent", "never", is_separate=True),
    Way("nested", "nested", "first", is_separate=False),
    Way("descending", "descending", "first", is_separate=False),
)
"""The first is what the others are compared with."""


class SweepLap(NamedTuple):
    """One way through the grid, once."""

    way: str
    number: int  # of the round; the first is warm-up
    seconds: float  # those that count on this device
    effort: Effort
    passes: int
    robust: tuple[int, ...]  # images left at each epsilon, upwards, by the harness's verdict

    def to_json(self) -> dict[str, Any]:
        """The lap as a JSON object."""
        return {
            "way": self.way,
            "round": self.number,
            "is_warm_up": self.number == 0,
            **self.effort._asdict(),
            "passes": self.passes,
            "robust": dict(zip(GRID, self.robust, strict=True)),
        }


def swept(
    contest: Contest, task: Task, *, rounds: int, told: Callable[[SweepLap], None]
) -> list[SweepLap]:
    """Every way through the grid in each round, in turn and back.

    Args:
        contest: Its epsilon does not count here.
        task: Which attack.
        rounds: The first is warm-up.
        told: Called after each lap.
    """
    laps = []
    for number in range(rounds):
        for way in in_order(WAYS, number):
            laps.append(_lap(contest, task, way, number))
            told(laps[-1])
    return laps


def gains(laps: list[SweepLap]) -> dict[str, Spread]:
    """The seconds of the nine separate runs over those of each way, of the same round."""
    rows = {way.name: [lap.seconds for lap in laps if lap.way == way.name] for way in WAYS}
    whole = rows[WAYS[0].name]
    return {
        name: spread([long / short for long, short in zip(whole[1:], row[1:], strict=True)])
        for name, row in rows.items()
    }


def _lap(contest: Contest, task: Task, way: Way, number: int) -> SweepLap:
    with as_found(contest):
        records, effort = gauged(lambda: _records(contest, task, way), contest.device)
    return SweepLap(
        way=way.name,
        number=number,
        seconds=seconds(effort, contest.device),
        effort=effort,
        passes=passes(records),
        robust=_curve(records),
    )


def _records(contest: Contest, task: Task, way: Way) -> list[Record]:
    manner = Manner(way.name, way.stop, "float32")
    parts: list[Mapping[str, float]] = [GRID]
    if way.is_separate:
        parts = [{text: radius} for text, radius in GRID.items()]
    return [
        record
        for epsilons in parts
        for record in attacked(
            contest, task, manner, epsilons=epsilons, protocol=way.protocol
        ).records
    ]


def _curve(records: list[Record]) -> tuple[int, ...]:
    return tuple(
        sum(record.is_robust for record in records if record.epsilon == text) for text in GRID
    )

"""Everybody in turn, round after round; ratios of the same round, and who was as strong."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from harness.bench.contest import as_found, judged
from harness.bench.gauge import gauged, seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.bench.contest import Contest
    from harness.bench.gauge import Effort
    from harness.tensors import Images, Mask

Item = TypeVar("Item")
BALL_SLACK = 1e-6
"""Rounding that a perturbation may have beyond epsilon, in [0, 1] units."""
POINTS = 0.4
"""Percentage points of the attacked images by which ours may be more robust than theirs."""


class Proposal(NamedTuple):
    """What somebody ended with."""

    images: Images
    passes: int | None = None  # forward and backward, of all images; None where nobody counts


class Entrant(NamedTuple):
    """Somebody who runs the task."""

    name: str
    run: Callable[[], Proposal]
    is_peer: bool


class Lap(NamedTuple):
    """One run of one entrant."""

    entrant: str
    number: int  # of the round; the first is warm-up
    seconds: float  # those that count on this device
    effort: Effort
    robust: Mask  # by the judge, not by the entrant
    largest: float  # change of any pixel
    passes: int | None

    def to_json(self) -> dict[str, Any]:
        """The lap as a JSON object, with one bit for each image."""
        return {
            "entrant": self.entrant,
            "round": self.number,
            "is_warm_up": self.number == 0,
            **self.effort._asdict(),
            "robust": "".join(str(int(bit)) for bit in self.robust.tolist()),
            "largest_change": self.largest,
            "passes": self.passes,
        }


class Race(NamedTuple):
    """All laps of one task."""

    laps: tuple[Lap, ...]
    failures: dict[str, str]  # why a peer is out


class Spread(NamedTuple):
    """Some numbers in short."""

    median: float
    low: float
    high: float

    def told(self, digits: int = 2) -> str:
        """For tables: median [low-high]."""
        return f"{self.median:.{digits}f} [{self.low:.{digits}f}-{self.high:.{digits}f}]"


class Comparison(NamedTuple):
    """A peer beside one of ours."""

    peer: str
    ours: str
    ratio: Spread  # the peer's seconds over ours, of the same round
    differing: int  # images on which the verdicts differ, in the last round
    verdict: str

    def to_json(self) -> dict[str, Any]:
        """The comparison as a JSON object."""
        return {**self._asdict(), "ratio": self.ratio._asdict()}


def spread(numbers: Sequence[float]) -> Spread:
    """The median of some numbers, and how far they lie apart."""
    return Spread(median(numbers), min(numbers), max(numbers))


def in_order(items: Sequence[Item], number: int) -> Sequence[Item]:
    """The order of a round: A B C, then C B A, so that a drift favours nobody."""
    return items if number % 2 == 0 else items[::-1]


def raced(
    contest: Contest,
    entrants: Sequence[Entrant],
    *,
    rounds: int,
    told: Callable[[Lap], None],
) -> Race:
    """Let everybody run in each round; a peer that raises is out, with the reason.

    Args:
        contest: What they run on.
        entrants: In the order of even rounds.
        rounds: The first is warm-up.
        told: Called after each lap.
    """
    laps: list[Lap] = []
    failures: dict[str, str] = {}
    for number in range(rounds):
        for entrant in in_order(entrants, number):
            if entrant.name in failures:
                continue
            try:
                laps.append(_lap(contest, entrant, number))
            except Exception as error:  # a library may raise anything
                if not entrant.is_peer:
                    raise
                failures[entrant.name] = f"raised {type(error).__name__}: {error}"
                continue
            told(laps[-1])
    return Race(tuple(laps), failures)


def counted(race: Race, name: str) -> list[Lap]:
    """The laps of an entrant that count, in the order of their rounds."""
    return [lap for lap in race.laps if lap.entrant == name and lap.number > 0]


def compared(race: Race, peer: str, ours: str, *, epsilon: float) -> Comparison:
    """A peer beside one of ours, both of which finished all rounds."""
    theirs, own = counted(race, peer), counted(race, ours)
    ratios = [their.seconds / our.seconds for their, our in zip(theirs, own, strict=True)]
    ratio = spread(ratios)
    return Comparison(
        peer=peer,
        ours=ours,
        ratio=ratio,
        differing=int((theirs[-1].robust != own[-1].robust).sum()),
        verdict=verdict(theirs[-1], own[-1], ratio=ratio.median, epsilon=epsilon),
    )


def verdict(theirs: Lap, ours: Lap, *, ratio: float, epsilon: float) -> str:
    """Whether a ratio may be quoted.

    "FAIL" where ours left the ball, or was faster but left more than `POINTS` percentage points
    of the images more robust than the peer did.
    """
    if ours.largest > epsilon + BALL_SLACK:
        return "FAIL: ours left the ball"
    if theirs.largest > epsilon + BALL_SLACK:
        return "void: the peer left the ball"
    surplus = int(ours.robust.sum()) - int(theirs.robust.sum())
    if ratio > 1 and 100 * surplus > POINTS * len(ours.robust):
        return f"FAIL: faster but weaker, {surplus} more robust"
    return "ok"


def _lap(contest: Contest, entrant: Entrant, number: int) -> Lap:
    with as_found(contest):
        proposal, effort = gauged(entrant.run, contest.device)
    judgement = judged(contest, proposal.images)
    return Lap(
        entrant=entrant.name,
        number=number,
        seconds=seconds(effort, contest.device),
        effort=effort,
        robust=judgement.robust,
        largest=judgement.largest,
        passes=proposal.passes,
    )

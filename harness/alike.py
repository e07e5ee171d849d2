"""Numbers from bits, image by image: images whose bits are all alike are looked at once.

A share or a mean over images follows from what its metric gives for each image alone. Whether a
metric is one is not believed but tried, on bits of our own; where it is none, or where hardly two
images are alike, the metric sees the records of all images.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import isclose
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.stats import mean, share

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from harness.api import Evidence
    from harness.evidence import Table
    from harness.records import Value

    Aggregate = Callable[[NDArray[np.float64]], Value]
    Compute = Callable[[Evidence], Sequence[Value]]
    Numbers = list[dict[str, Any]]

TRIALS = (5, 24)
"""Images of each trial: two, because an interval depends on how many there are."""
FEWEST_ALIKE = 16
"""Images for each pattern not met before; with fewer, records of all images are faster."""
MOSTLY_RIGHT = 0.8
"""Share of the images of a trial that are right when they are clean."""
ROUNDING = 1e-9
"""Difference of two values that only the order of additions makes."""
FAILURES = (LookupError, TypeError, ValueError, ArithmeticError)


def _share(numbers: NDArray[np.float64]) -> Value:
    if not np.isin(numbers, (0.0, 1.0)).all():
        raise ValueError("a share counts images")
    return share(int(numbers.sum()), len(numbers))


def _mean(numbers: NDArray[np.float64]) -> Value:
    return mean(numbers.tolist())


AGGREGATES: tuple[Aggregate, ...] = (_share, _mean)


@dataclass(frozen=True)
class Law:
    """What a metric gives for attacks at epsilons, as far as it is known.

    Attributes:
        aggregate: How its number follows from its numbers of each image; None where it does not.
        alone: Its values of one image, by the pattern of the image's bits.
    """

    aggregate: Aggregate | None
    alone: dict[bytes, tuple[Value, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Laws:
    """What was found of metrics, kept for further entries of the same suite."""

    known: dict[Any, Law] = field(default_factory=dict)

    def numbers(self, name: str, compute: Compute, table: Table) -> Numbers:
        """What a metric that follows from bits gives, as JSON.

        Args:
            name: Of the metric.
            compute: The metric.
            table: Which images are right.

        Raises:
            LookupError: As the metric does; or TypeError, ValueError, ArithmeticError.
        """
        key = (name, *table.law)
        if key not in self.known:
            self.known[key] = Law(_tried(compute, table))
        found = _by_pattern(self.known[key], compute, table)
        return _whole(compute, table) if found is None else found


def _by_pattern(law: Law, compute: Compute, table: Table) -> Numbers | None:
    """The numbers by one look at each pattern of bits; None where that does not go or not pay."""
    if law.aggregate is None:
        return None
    packed = np.packbits(table.bits, axis=1)
    rows = packed.view(np.dtype((np.void, packed.shape[1])))[:, 0]  # compared as one each
    patterns, first, place = np.unique(rows, return_index=True, return_inverse=True)
    keys = [pattern.tobytes() for pattern in patterns]
    unseen = [number for number, key in enumerate(keys) if key not in law.alone]
    if len(unseen) * FEWEST_ALIKE > len(table.bits):
        return None
    for number in unseen:
        law.alone[keys[number]] = tuple(compute(_alone(table, int(first[number])).evidence()))
    return _aggregated([law.alone[key] for key in keys], place, law.aggregate)


def _alone(table: Table, place: int) -> Table:
    """One image of a table, without the facts that no bit proves."""
    return replace(table.rows(np.array([place])), facts={})


def _whole(compute: Compute, table: Table) -> Numbers:
    return [value.to_json() for value in compute(table.evidence())]


def _aggregated(
    alone: list[tuple[Value, ...]], place: NDArray[np.intp], aggregate: Aggregate
) -> Numbers | None:
    """The numbers of all images from those of each pattern; None where they do not follow.

    Args:
        alone: For each pattern, one value for each epsilon, or one.
        place: Pattern of each image.
        aggregate: How they follow.
    """
    found = []
    for values in zip(*alone, strict=True):
        numbers = [value.value for value in values]
        if all(number is None for number in numbers):
            found.append(values[0].to_json())
            continue
        if any(number is None for number in numbers):
            return None
        found.append(aggregate(np.asarray(numbers, dtype=np.float64)[place]).to_json())
    return found


def _tried(compute: Compute, table: Table) -> Aggregate | None:
    """How the metric follows from images one by one, on trial bits; None where it does not."""
    for aggregate in AGGREGATES:
        try:
            if all(_holds(compute, _trial(table, size), aggregate) for size in TRIALS):
                return aggregate
        except FAILURES:
            continue
    return None


def _holds(compute: Compute, trial: Table, aggregate: Aggregate) -> bool:
    places = range(len(trial.bits))
    alone = [tuple(compute(_alone(trial, place).evidence())) for place in places]
    found = _aggregated(alone, np.array(places), aggregate)
    wanted = _whole(compute, trial)
    return found is not None and len(found) == len(wanted) and all(map(equal, found, wanted))


def _trial(table: Table, size: int) -> Table:
    """The same columns over images of our own: each falls to each attack at a radius of its own."""
    rng = np.random.default_rng(size)
    radii = {epsilon.text: place for place, epsilon in enumerate(table.suite.epsilons)}
    clean = rng.random(size) < MOSTLY_RIGHT
    reach = {
        label: rng.integers(0, len(radii) + 1, size)
        for label in sorted({column.attack for column in table.columns})
    }
    robust = [clean & (reach[column.attack] > radii[column.epsilon]) for column in table.columns]
    bits = np.stack([clean, *robust], axis=1)
    return replace(table, bits=bits, samples=tuple(range(size)), facts={})


def equal(told: Any, computed: Any) -> bool:
    """Two values as JSON are the same up to the order of additions; reasons may differ."""
    if told is None:
        return False
    for key in ("value", "low", "high", "n"):
        first, second = told.get(key), computed[key]
        if (first is None) != (second is None):
            return False
        if first is not None and not isclose(first, second, abs_tol=ROUNDING, rel_tol=ROUNDING):
            return False
    return True

"""Accuracy of single experts, and where the attacks go that succeed."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from harness.api import Evidence, Value
from harness.stats import share

if TYPE_CHECKING:
    from collections.abc import Callable

ALONE = "alone.expert"
NO_PROBE = "the model does not route whole images, or the suite has no probe 'expert-accuracy'"
NOT_ALL = "experts are measured under protocol 'independent' alone"


def best_expert_accuracy(evidence: Evidence) -> tuple[Value, ...]:
    """The share of images that the best single expert has right under every attack."""
    return _by_epsilon(evidence, lambda rows: max(map(sum, zip(*rows, strict=True))))


def oracle_accuracy(evidence: Evidence) -> tuple[Value, ...]:
    """The share of images for which there is an expert that is right under every attack."""
    return _by_epsilon(evidence, lambda rows: sum(any(row) for row in rows))


def every_expert_accuracy(evidence: Evidence) -> tuple[Value, ...]:
    """The share of images that all experts, each alone, have right under every attack."""
    return _by_epsilon(evidence, lambda rows: sum(all(row) for row in rows))


def fooled_load(evidence: Evidence) -> tuple[Value, ...]:
    """The share of the attacks that succeeded whose image the fullest expert among them took."""
    return tuple(_fooled_at(evidence, epsilon) for epsilon in evidence.epsilons)


def _by_epsilon(
    evidence: Evidence, counted: Callable[[list[list[bool]]], int]
) -> tuple[Value, ...]:
    values = []
    for epsilon in evidence.epsilons:
        rows = _right(evidence, epsilon)
        if evidence.protocol != "independent" or not rows:
            values.append(_nothing(evidence, epsilon))
            continue
        values.append(share(counted(rows), len(rows), epsilon=epsilon))
    return tuple(values)


def _right(evidence: Evidence, epsilon: str) -> list[list[bool]]:
    """For each image which experts, each alone, are right under all attacks at an epsilon."""
    found: dict[int, list[bool]] = {}
    for record in evidence.records:
        if record.epsilon != epsilon or f"{ALONE}0" not in record.measures:
            continue
        count = sum(name.startswith(ALONE) for name in record.measures)
        right = [record.measures[f"{ALONE}{place}"] == 1 for place in range(count)]
        before = found.get(record.sample, [True] * count)
        found[record.sample] = [old and new for old, new in zip(before, right, strict=True)]
    return list(found.values())


def _fooled_at(evidence: Evidence, epsilon: str) -> Value:
    if evidence.protocol != "independent":
        return _nothing(evidence, epsilon)
    records = [record for record in evidence.records if record.epsilon == epsilon]
    if not any("taken_by" in record.measures for record in records):
        return _nothing(evidence, epsilon)
    taken = Counter(
        record.measures["taken_by"]
        for record in records
        if record.is_correct and not record.is_robust and "taken_by" in record.measures
    )
    if not taken:
        return Value(None, n=0, epsilon=epsilon, reason="no attack succeeded")
    return share(max(taken.values()), sum(taken.values()), epsilon=epsilon)


def _nothing(evidence: Evidence, epsilon: str) -> Value:
    reason = NO_PROBE if evidence.protocol == "independent" else NOT_ALL
    return Value(None, epsilon=epsilon, reason=reason)

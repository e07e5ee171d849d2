"""Accuracies, over all images (STYLE: correct on clean and on every attack, per image)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from harness.api import Evidence, Value
from harness.stats import mean, share

if TYPE_CHECKING:
    from collections.abc import Sequence


def clean_accuracy(evidence: Evidence) -> tuple[Value, ...]:
    """The share of images that the model has right."""
    correct = {record.sample: record.is_correct for record in evidence.records}
    return (share(sum(correct.values()), len(correct)),)


def robust_accuracy(evidence: Evidence) -> tuple[Value, ...]:
    """The share of all images that no attack fools, at each epsilon."""
    robust = robust_bits(evidence)
    return tuple(
        share(sum(bits.values()), len(bits), epsilon=epsilon) for epsilon, bits in robust.items()
    )


def error_rate(evidence: Evidence) -> tuple[Value, ...]:
    """The share of all images that the model has wrong, clean or under any attack."""
    robust = robust_bits(evidence)
    return tuple(
        share(len(bits) - sum(bits.values()), len(bits), epsilon=epsilon)
        for epsilon, bits in robust.items()
    )


def mean_accuracy(evidence: Evidence) -> tuple[Value, ...]:
    """The mean over attacks of the share of images right under each; an image is one sample."""
    right: dict[str, dict[int, list[bool]]] = {epsilon: {} for epsilon in evidence.epsilons}
    for record in evidence.records:
        right[record.epsilon].setdefault(record.sample, []).append(record.is_right)
    return tuple(
        replace(mean([sum(bits) / len(bits) for bits in by_sample.values()]), epsilon=epsilon)
        for epsilon, by_sample in right.items()
    )


def accuracy_under_autoattack(evidence: Evidence) -> tuple[Value, ...]:
    """The share of all images that withstand the attacks whose label begins with `autoattack`."""
    records = [record for record in evidence.records if record.attack.startswith("autoattack")]
    ran = {record.epsilon for record in records}
    bits = robust_bits(replace(evidence, records=records))
    return tuple(
        share(sum(found.values()), len(found), epsilon=epsilon)
        if epsilon in ran
        else Value(None, epsilon=epsilon, reason="the suite runs no AutoAttack here")
        for epsilon, found in bits.items()
    )


def robust_accuracy_of_experts(evidence: Evidence) -> tuple[Value, ...]:
    """The share of all images that stay right where only the experts see the attacked image.

    The routes of the clean image are replayed: a diagnosis, never part of robust accuracy.
    """
    return _diagnosed(evidence, "experts")


def robust_accuracy_of_router(evidence: Evidence) -> tuple[Value, ...]:
    """The share of all images that stay right where only the router sees the attacked image.

    The experts see the clean one: a diagnosis, never part of robust accuracy.
    """
    return _diagnosed(evidence, "router")


def _diagnosed(evidence: Evidence, view: str) -> tuple[Value, ...]:
    records = [record for record in evidence.diagnoses if record.view == view]
    bits = robust_bits(replace(evidence, records=records))
    why = f"the model has no routes, or the suite no attack on objective {view!r}"
    return tuple(
        share(sum(found.values()), len(found), epsilon=epsilon)
        if found
        else Value(None, epsilon=epsilon, reason=why)
        for epsilon, found in bits.items()
    )


def area_under_curve(evidence: Evidence) -> tuple[Value, ...]:
    """The area under robust accuracy over epsilon, as a share of the largest epsilon.

    Each image has a curve of its own, 1 where it is robust, and the area is their mean, so that
    its interval is that of a mean over images.
    """
    radii = [0.0, *evidence.epsilons.values()]
    correct = {record.sample: record.is_correct for record in evidence.records}
    robust = robust_bits(evidence)
    areas = [
        _trapezoids(radii, [is_right, *(bits[sample] for bits in robust.values())])
        for sample, is_right in correct.items()
    ]
    return (mean(areas),)


def robust_bits(evidence: Evidence) -> dict[str, dict[int, bool]]:
    """For each epsilon, which samples survive every attack."""
    bits: dict[str, dict[int, bool]] = {epsilon: {} for epsilon in evidence.epsilons}
    for record in evidence.records:
        at_epsilon = bits[record.epsilon]
        at_epsilon[record.sample] = at_epsilon.get(record.sample, True) and record.is_robust
    return _closed(bits) if evidence.protocol == "nested" else bits


def _closed(bits: dict[str, dict[int, bool]]) -> dict[str, dict[int, bool]]:
    """What fools an image in a ball is in every larger ball, also where no attack looked."""
    fooled: set[int] = set()
    closed = {}
    for epsilon, at_epsilon in bits.items():
        fooled |= {sample for sample, is_robust in at_epsilon.items() if not is_robust}
        closed[epsilon] = {sample: sample not in fooled for sample in at_epsilon}
    return closed


def _trapezoids(radii: Sequence[float], heights: Sequence[float]) -> float:
    pieces = zip(radii, radii[1:], heights, heights[1:], strict=False)
    return sum((right - left) * (a + b) / 2 for left, right, a, b in pieces) / radii[-1]

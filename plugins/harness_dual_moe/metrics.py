"""Accuracies that no attack has to find: certified, and exact for attacks on the router."""

from __future__ import annotations

from itertools import chain

from harness.api import Evidence, Value
from harness.stats import share

VACUOUS = 0.01 / 255
"""A radius below a hundredth of a grey level of 8 bits says nothing about images."""


def certified_accuracy(evidence: Evidence) -> tuple[Value, ...]:
    """The share of all images that are right and whose certified radius is above each epsilon."""
    radii = _measured(evidence, "certified_radius")
    if not radii:
        why = (
            "no bound is known for a layer of this model, or for this norm"
            if _measured(evidence, "uncertified")
            else "the suite has no probe 'certified-radius'"
        )
        return _missing(evidence, why)
    if max(radii.values()) < VACUOUS:
        return _missing(evidence, "vacuous: every certified radius is below 0.01/255")
    return _curve(evidence, radii)


def exact_robust_accuracy_of_router(evidence: Evidence) -> tuple[Value, ...]:
    """The share of all images that no route within epsilon has wrong.

    The experts see the clean image.
    """
    radii = _measured(evidence, "router_radius")
    if not radii:
        why = (
            "exact only in Linf, for models whose linear routers choose one expert for an image"
            if _measured(evidence, "unrouted")
            else "the suite has no probe 'router-radius'"
        )
        return _missing(evidence, why)
    return _curve(evidence, radii)


def _measured(evidence: Evidence, name: str) -> dict[int, float]:
    """A number of each clean image, 0 for those that the model has wrong."""
    return {
        record.sample: record.measures[name] if record.is_correct else 0.0
        for record in chain(evidence.records, evidence.diagnoses)
        if name in record.measures
    }


def _curve(evidence: Evidence, radii: dict[int, float]) -> tuple[Value, ...]:
    return tuple(
        share(sum(radius > size for radius in radii.values()), len(radii), epsilon=epsilon)
        for epsilon, size in evidence.epsilons.items()
    )


def _missing(evidence: Evidence, why: str) -> tuple[Value, ...]:
    return tuple(Value(None, epsilon=epsilon, reason=why) for epsilon in evidence.epsilons)

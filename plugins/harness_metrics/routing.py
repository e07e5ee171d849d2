"""What attacks did to the routes of a Mixture-of-Experts model."""

from __future__ import annotations

from dataclasses import replace

from harness.api import Evidence, Value
from harness.stats import mean

MEASURE = "routing_change"


def routing_change(evidence: Evidence) -> tuple[Value, ...]:
    """The mean routing change of all images at each epsilon, over layers and attacks.

    Only protocol "independent" attacks every image at every epsilon; under any other, the images
    that are easily fooled would be measured at small epsilons alone.
    """
    return tuple(replace(_at(evidence, epsilon), epsilon=epsilon) for epsilon in evidence.epsilons)


def _at(evidence: Evidence, epsilon: str) -> Value:
    if evidence.protocol != "independent":
        return Value(None, reason="routing is measured under protocol 'independent' alone")
    changes: dict[int, list[float]] = {}
    for record in evidence.records:
        if record.epsilon == epsilon and MEASURE in record.measures:
            changes.setdefault(record.sample, []).append(record.measures[MEASURE])
    if not changes:
        return Value(None, reason="the model has no routes, or the suite no probe for them")
    return mean([sum(found) / len(found) for found in changes.values()])

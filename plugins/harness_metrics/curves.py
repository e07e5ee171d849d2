"""Curves over epsilon, one for each attack."""

from __future__ import annotations

from dataclasses import replace

from harness.api import Evidence, Record, Value
from harness.stats import normal_mean, share
from harness_metrics.routing import distinct


def error_by_attack(evidence: Evidence) -> tuple[Value, ...]:
    """The share of all images that are wrong under each attack by itself, and without any."""
    clean = {record.sample: record.is_correct for record in evidence.records}
    wrong = len(clean) - sum(clean.values())
    return (
        *(
            replace(share(wrong, len(clean), epsilon=epsilon), series="clean")
            for epsilon in evidence.epsilons
        ),
        *(
            replace(
                share(sum(not record.is_right for record in records), len(records)),
                epsilon=epsilon,
                series=attack,
            )
            for (attack, epsilon), records in _by_attack(evidence).items()
        ),
    )


def input_gradient(evidence: Evidence) -> tuple[Value, ...]:
    """The mean size of the input gradient at attacked and at clean images, in the dual norm."""
    points = []
    for (attack, epsilon), records in _by_attack(evidence).items():
        for name, series in (("input_gradient", attack), ("clean.input_gradient", "clean")):
            sizes = [record.measures[name] for record in records if name in record.measures]
            missing = Value(None, reason="the suite has no probe 'input-gradient'")
            value = normal_mean(sizes) if sizes else missing
            points.append(replace(value, epsilon=epsilon, series=series))
    return distinct(points)


def _by_attack(evidence: Evidence) -> dict[tuple[str, str], list[Record]]:
    found: dict[tuple[str, str], list[Record]] = {}
    for record in evidence.records:
        found.setdefault((record.attack, record.epsilon), []).append(record)
    return found

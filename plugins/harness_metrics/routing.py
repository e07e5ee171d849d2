"""What attacks did to the routes of a Mixture-of-Experts model.

Routes are measured only where every image was attacked at every epsilon and each attack shows its
last iterate: whoever stops at the first success reports the smallest change that suffices.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from harness.api import Evidence, Value
from harness.stats import normal_mean, share

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

MEASURE = "routing_change"
UNROUTED = "the model has no routes, or the suite no probe for them"
PARTS = ("neither", "experts", "router", "both")


class Found(NamedTuple):
    """The measures of one attack at one epsilon, or why there are none."""

    attack: str
    epsilon: str
    measures: Sequence[Mapping[str, float]]  # of each image
    reason: str


def routing_change(evidence: Evidence) -> tuple[Value, ...]:
    """The mean routing change of all images at each epsilon, over layers and attacks."""
    found = tuple(measured(evidence))
    return tuple(
        replace(_over_attacks([item for item in found if item.epsilon == epsilon]), epsilon=epsilon)
        for epsilon in evidence.epsilons
    )


def executed(evidence: Evidence) -> tuple[Value, ...]:
    """The routing change of each layer, drops counted."""
    return layered(evidence, "routing_change", chance=True)


def intended(evidence: Evidence) -> tuple[Value, ...]:
    """The routing change of each layer as if nothing were dropped."""
    return layered(evidence, "routing_change_intended", chance=True)


def flip_rate(evidence: Evidence) -> tuple[Value, ...]:
    """The share of tokens of each layer whose first expert is another one."""
    return layered(evidence, "routing_flip", chance=True)


def gate_kl(evidence: Evidence) -> tuple[Value, ...]:
    """The divergence of each layer's gates from those of the clean image."""
    return layered(evidence, "gate_kl")


def drop_rate(evidence: Evidence) -> tuple[Value, ...]:
    """The share of each layer's choices that capacity dropped."""
    return layered(evidence, "drop_rate", clean=True)


def router_margin(evidence: Evidence) -> tuple[Value, ...]:
    """The gap of each layer between the last chosen gate logit and the next."""
    return layered(evidence, "router_margin", clean=True)


def mediation(evidence: Evidence) -> tuple[Value, ...]:
    """Accuracy with content, routes, both or neither of each attack, and of noise of its size."""
    points = []
    for item in measured(evidence):
        for kind, series in (("", item.attack), ("noise.", beside(item.attack))):
            points += [
                replace(_right(item, f"{kind}mediation.{part}"), series=f"{series}, {part}")
                for part in PARTS
            ]
    return tuple(points)


def layered(
    evidence: Evidence, measure: str, *, clean: bool = False, chance: bool = False
) -> tuple[Value, ...]:
    """The mean of a measure over images, for each layer, attack and epsilon.

    Beside each attack stands random noise as large as its perturbations.

    Args:
        evidence: With records that probes have measured.
        measure: Its name before `.layerN`.
        clean: The same of clean images stands beside them.
        chance: So does the level that routes drawn at random would have.
    """
    found = tuple(measured(evidence))
    return distinct(
        replace(value, group=group)
        for layer, group in layers(found, measure)
        for item in found
        for value in _beside_each_other(item, f"{measure}.{layer}", clean=clean, chance=chance)
    )


def layers(found: Sequence[Found], measure: str) -> list[tuple[str, str]]:
    """Name and title of the layers that were measured; one without a name where none was."""
    pattern = re.compile(rf"{re.escape(measure)}\.layer(\d+)")
    names = {name for item in found for measures in item.measures[:1] for name in measures}
    numbers = sorted({int(match[1]) for name in names if (match := pattern.match(name))})
    return [(f"layer{number}", f"layer {number}") for number in numbers] or [("", "")]


def measured(evidence: Evidence) -> Iterator[Found]:
    """What probes have measured of each attack but controls at each epsilon."""
    measures: dict[tuple[str, str], list[Mapping[str, float]]] = {}
    for record in evidence.records:
        measures.setdefault((record.attack, record.epsilon), []).append(record.measures)
    for (attack, epsilon), taken in measures.items():
        facts = evidence.attacks.get(attack)
        if facts is None or not facts.is_control:
            yield Found(attack, epsilon, taken, refusal(evidence, attack))


def refusal(evidence: Evidence, attack: str) -> str:
    """Why routes under an attack are not measured; empty where they are."""
    if evidence.protocol != "independent":
        return "routing is measured under protocol 'independent' alone"
    facts = evidence.attacks.get(attack)
    if facts is None:
        return "routing is measured under the suite's own attacks alone"
    if not facts.shows_last:
        return (
            f"routing is measured on last iterates alone, and {attack} stops early or returns "
            "another point"
        )
    return ""


def beside(attack: str) -> str:
    """The series of random noise as large as an attack's perturbations."""
    return f"noise like {attack}"


def distinct(values: Iterable[Value]) -> tuple[Value, ...]:
    """Each point once: what is clean, or chance, stands beside every attack alike."""
    return tuple({(value.group, value.series, value.epsilon): value for value in values}.values())


def average(item: Found, name: str) -> Value:
    """The mean of one measure over images."""
    numbers = [measures[name] for measures in item.measures if name in measures]
    if item.reason or not numbers:
        return Value(None, epsilon=item.epsilon, reason=item.reason or UNROUTED)
    return replace(normal_mean(numbers), epsilon=item.epsilon)


def _beside_each_other(item: Found, name: str, *, clean: bool, chance: bool) -> Iterator[Value]:
    yield replace(average(item, name), series=item.attack)
    if item.reason or not any(name in measures for measures in item.measures):
        return
    yield replace(average(item, f"noise.{name}"), series=beside(item.attack))
    if clean:
        yield replace(average(item, f"clean.{name}"), series="clean")
    if chance:
        level = item.measures[0].get(f"chance.{name}")
        yield Value(level, epsilon=item.epsilon, series="chance")


def _over_attacks(found: Sequence[Found]) -> Value:
    """The mean over images of the mean over the attacks that may be measured."""
    fine = [item for item in found if not item.reason]
    if not fine:
        return Value(None, reason=found[0].reason if found else UNROUTED)
    rows = zip(*(item.measures for item in fine), strict=True)
    changes = [[measures[MEASURE] for measures in row if MEASURE in measures] for row in rows]
    numbers = [sum(row) / len(row) for row in changes if row]
    return normal_mean(numbers) if numbers else Value(None, reason=UNROUTED)


def _right(item: Found, name: str) -> Value:
    numbers = [measures[name] for measures in item.measures if name in measures]
    if item.reason or not numbers:
        return Value(None, epsilon=item.epsilon, reason=item.reason or UNROUTED)
    return share(round(sum(numbers)), len(numbers), epsilon=item.epsilon)

"""Whether an entry says what its bits, its suite and its registered attacks and metrics say."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from harness import plan
from harness.alike import FAILURES, Laws, equal
from harness.bits import as_runs
from harness.errors import EntryError
from harness.evidence import tables_of
from harness.flags import FLAGS, NOTHING_CHECKED, Checks, weaker_flags

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from harness.bits import Bits
    from harness.entries import Entry
    from harness.evidence import Table
    from harness.registry import Registry
    from harness.suite import Suite


class Finding(NamedTuple):
    """Something that is wrong, or only worth a look."""

    where: str
    what: str
    is_error: bool = True


def check_entry(
    entry: Entry, suite: Suite, registry: Registry, laws: Laws | None = None
) -> Iterator[Finding]:
    """What is wrong with an entry by itself.

    Args:
        entry: Well-formed.
        suite: That it names, as it stands today.
        registry: Its metrics are computed again.
        laws: What was found of the metrics by entries before; grows.
    """
    about = entry.content["suite"]
    if about["name"] != suite.name:
        yield Finding(entry.where, f"is of suite {about['name']}, not {suite.name}")
        return
    yield from _named(entry, registry)
    if entry.content["reported"]:
        yield from _reported(entry, suite, registry)
        return
    yield from _marked(entry)
    yield from _hashes(entry)
    if about["version"] != suite.version:
        told = f"was measured under version {about['version']}, the suite is {suite.version}"
        yield Finding(entry.where, told, is_error=False)
        return
    found = list(_measured(entry, suite, registry))
    yield from found
    if not any(finding.is_error for finding in found):
        yield from _computed(entry, suite, registry, laws or Laws())


def _measured(entry: Entry, suite: Suite, registry: Registry) -> Iterator[Finding]:
    """Whether the suite, its images and its attacks were measured, and the bits are possible."""
    try:
        yield from _suite(entry, suite, registry)
        yield from _applicable(entry, suite, registry)
        yield from _bits(entry, suite, registry)
    except EntryError as error:
        yield Finding(entry.where, str(error).removeprefix(f"{entry.where}: "))


def _suite(entry: Entry, suite: Suite, registry: Registry) -> Iterator[Finding]:
    science = json.loads(json.dumps(suite.science()))
    for key in ("norm", "box", "protocol", "epsilons"):
        if entry.content["suite"][key] != science[key]:
            yield Finding(entry.where, f"its {key} is not that of the suite")
    if entry.content["ingredients"].get("suite") != science:
        yield Finding(entry.where, "its attacks, epsilons or images are not those of the suite")
    flags = set(entry.content["flags"])
    ids = plan.sample_ids(suite, registry.find("datasets", suite.data.name).card)
    if entry.content["samples"]["ids"] != as_runs(ids):
        told = f"has {entry.count} images that are not the suite's in the suite's order"
        may_lack = bool({"partial-data", "limited"} & flags) or suite.data.labels == "sets"
        is_part = set(entry.samples) <= set(ids)
        yield Finding(entry.where, told, is_error=not (may_lack and is_part))
    copy = suite.data.copy_of(entry.content["data"]["fingerprint"])
    if copy != suite.copy and suite.data.space != "model" and "limited" not in flags:
        yield Finding(entry.where, f"its images are those of board {suite.board(copy)}")


def _hashes(entry: Entry) -> Iterator[Finding]:
    content, ingredients = entry.content, entry.content["ingredients"]
    pairs = {
        "weights": (content["weights"]["sha256"], ingredients.get("weights")),
        "data": (content["data"]["fingerprint"], ingredients.get("data")),
        "seed": (content["model"]["seed"], ingredients.get("seed")),
        "model": (content["model"]["name"], ingredients.get("model")),
        "precision": (content["precision"], ingredients.get("precision")),
    }
    for name, (told, measured) in pairs.items():
        if told != measured:
            yield Finding(
                entry.where, f"{name} {told!r} is not what was measured, {str(measured)[:100]!r}"
            )


def _named(entry: Entry, registry: Registry) -> Iterator[Finding]:
    """Whether row, experts and flags are what the rest of the entry and the plugin here say."""
    model = entry.content["model"]
    row = plan.Contender(model["name"], recipe=model["recipe"]).row
    if model["row"] != row:
        yield Finding(entry.where, f"is named {model['row']}; its model and recipe are {row}")
    if model["card"] and registry.has("models", model["name"]):
        card = registry.find("models", model["name"]).card
        experts = [model["card"].get(key) for key in ("num_experts", "num_selected")]
        if experts != [card.num_experts, card.num_selected]:
            yield Finding(entry.where, f"its experts are not those of model {model['name']}")
    for flag in entry.content["flags"]:
        if flag not in FLAGS:
            yield Finding(entry.where, f"flag {flag!r} is not known")


def _reported(entry: Entry, suite: Suite, registry: Registry) -> Iterator[Finding]:
    """What can be checked of numbers that others published: that they can be, and whence."""
    yield Finding(entry.where, "is reported: nobody can check it", is_error=False)
    report = entry.content.get("report", {})
    for key in ("source", "url", "protocol", "licence"):
        if not report.get(key, "").strip():
            yield Finding(entry.where, f"is reported without its {key}")
    for name, told in entry.content["values"].items():
        yield from _told(entry, name, told, suite, registry)
    if not entry.content["values"]:
        yield Finding(entry.where, "is reported, and holds no number")
    if entry.content["best_known"] or entry.content["flags"] or entry.content["weights"]["sha256"]:
        yield Finding(entry.where, "is reported: flags, weights and breaks are of measured rows")


def _told(
    entry: Entry, name: str, told: Mapping[str, Any], suite: Suite, registry: Registry
) -> Iterator[Finding]:
    """Whether a reported number is a percentage that the suite measures."""
    card = registry.find("metrics", name).card if name in suite.metrics else None
    if card is None or card.unit != "share":
        yield Finding(entry.where, f"value {name!r} is no share that the suite measures")
        return
    by_epsilon = {"": told} if "value" in told else told
    grid = [epsilon.text for epsilon in suite.epsilons] if card.by_epsilon else [""]
    if not set(by_epsilon) <= set(grid):
        yield Finding(entry.where, f"{name} is not at the suite's epsilons")
        return
    for value in by_epsilon.values():
        yield from _percentage(entry, name, value)


def _percentage(entry: Entry, name: str, value: Mapping[str, Any]) -> Iterator[Finding]:
    number = value["value"]
    if number is None or not 0 <= number <= 1:
        yield Finding(entry.where, f"{name} is no percentage from 0 to 100")
    if value["n"] != entry.count:
        yield Finding(entry.where, f"{name} is not of the row's {entry.count} images")
    if value["low"] is not None:
        yield Finding(entry.where, f"{name} has an interval, which nothing proves")


def _marked(entry: Entry) -> Iterator[Finding]:
    """Whether the flags that checks and precision raise are there."""
    flags = entry.content["flags"]
    modes = [mark for mark in entry.content["precision"].split("+") if mark != "float32"]
    for mark in (*entry.content["checks"].get("flags", ()), *modes):
        if mark not in flags:
            told = "the precision means" if mark in modes else "the checks raised"
            yield Finding(entry.where, f"flag {mark!r}, which {told}, is missing")


def _applicable(entry: Entry, suite: Suite, registry: Registry) -> Iterator[Finding]:
    """Whether only attacks on routes were left out, and only of a model that has none."""
    has_experts = bool(entry.content["model"]["card"].get("num_experts"))
    for_routes = [item.label for item in suite.attacks if plan.needs_routes(item, registry)]
    for label in entry.content["not_applicable"]:
        if has_experts or label not in for_routes:
            yield Finding(entry.where, f"attack {label!r} applies to the model and was left out")


def _bits(entry: Entry, suite: Suite, registry: Registry) -> Iterator[Finding]:
    """Whether the attacks and epsilons are the suite's, and the bits possible."""
    left_out = set(entry.content["not_applicable"])
    wanted = {attack.label: attack for attack in suite.attacks if attack.label not in left_out}
    found = entry.content["bits"]["attacks"]
    for label in sorted(set(wanted) ^ set(found)):
        told = "is missing" if label in wanted else "is not the suite's"
        yield Finding(entry.where, f"attack {label!r} {told}")
    grid = [epsilon.text for epsilon in suite.epsilons]
    clean = entry.clean()
    for label in sorted(set(wanted) & set(found)):
        spec, about = wanted[label], found[label]
        is_control = bool(registry.find("attacks", spec.name).card.control)
        if (about["view"], about["is_control"]) != (spec.view, is_control):
            yield Finding(entry.where, f"attack {label!r} is not judged as the suite says")
        ran = [text for text in grid if text in (spec.epsilons or grid)]
        if sorted(about["robust"]) != sorted(ran):
            yield Finding(entry.where, f"attack {label!r} has not the suite's epsilons")
            continue
        series = [entry.robust_alone(label, text) for text in ran]
        yield from _possible(entry, label, [clean, *series])
    for epsilon in grid:
        entry.best_known(epsilon)  # raises where bits are not as many as images


def _possible(entry: Entry, label: str, series: list[Bits | None]) -> Iterator[Finding]:
    """A robust image is right when it is clean; under "nested" it is at smaller epsilons, too."""
    known = [bits for bits in series if bits is not None]
    is_nested = entry.content["suite"]["protocol"] == "nested"
    if series[0] is None and not is_nested:
        return
    for before, after in pairwise(known):
        first = before if is_nested else known[0]
        if bool((after & ~first).any()):
            told = f"attack {label!r}: images are robust that are wrong when clean or attacked less"
            yield Finding(entry.where, told)
            return


def _computed(entry: Entry, suite: Suite, registry: Registry, laws: Laws) -> Iterator[Finding]:
    """Whether values and flags follow from the bits, by the same metrics."""
    for name in sorted(set(entry.content["values"]) - set(suite.metrics)):
        yield Finding(entry.where, f"value {name!r} is not the suite's")
    found = tables_of(entry, suite)
    for name in suite.metrics:
        told = entry.content["values"].get(name)
        if told is None:
            yield Finding(entry.where, f"value {name!r} is missing")
            continue
        yield from _value(entry, name, found, registry, laws)
    for flag in _raised(entry, suite, found[0], registry):
        if flag not in entry.content["flags"]:
            yield Finding(entry.where, f"flag {flag!r}, which the bits raise, is missing")


def _value(
    entry: Entry, name: str, tables: tuple[Table, ...], registry: Registry, laws: Laws
) -> Iterator[Finding]:
    metric = registry.find("metrics", name)
    proves = metric.card.from_bits or metric.card.unit != "share"  # facts prove what is no share
    if not proves:
        yield Finding(entry.where, f"{name}: bits do not prove it", is_error=False)
        return
    compute = metric.load()
    try:
        possible = [
            laws.numbers(name, compute, table)
            if metric.card.from_bits
            else [value.to_json() for value in compute(table.evidence())]
            for table in tables
        ]
    except FAILURES as error:
        yield Finding(entry.where, f"{name} cannot be computed: {type(error).__name__} {error}")
        return
    if any(item != possible[0] for item in possible):
        yield Finding(entry.where, f"{name}: nothing proves it without clean bits", is_error=False)
        return
    told = entry.content["values"][name]
    grid = [epsilon.text for epsilon in tables[0].suite.epsilons]
    listed = [told.get(text) for text in grid] if metric.card.by_epsilon else [told]
    if len(listed) != len(possible[0]) or not all(map(equal, listed, possible[0])):
        yield Finding(entry.where, f"{name} is not what its bits give")


def _raised(entry: Entry, suite: Suite, table: Table, registry: Registry) -> Iterator[str]:
    """The flags that bits raise alone: only what random noise fools needs no gradients' count."""
    about = entry.content["checks"]
    try:
        checks = Checks.from_json(about) if about else NOTHING_CHECKED
        checked = set(checks.samples)
    except (LookupError, TypeError, AttributeError):
        checks, checked = NOTHING_CHECKED, set()
    find = registry.find
    controls = [item.label for item in suite.attacks if find("attacks", item.name).card.control]
    exempt = [
        item.label for item in suite.attacks if find("objectives", item.objective).card.needs_routes
    ]
    places = [place for place, sample in enumerate(table.samples) if sample in checked]
    records = table.rows(np.array(places, dtype=np.intp)).evidence().records
    judged = [record for record in records if record.attack not in exempt]
    fooled = {key: count for key, count in table.fooled().items() if key[1] not in exempt}
    yield from weaker_flags(judged, fooled, controls, checks)

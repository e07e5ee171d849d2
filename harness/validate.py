"""Whether entries and boards say what their bits, their suite and their pages say."""

from __future__ import annotations

import json
from itertools import pairwise
from math import isclose
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from harness import plan
from harness.api import Evidence
from harness.bits import Bits, as_runs
from harness.entries import Entry, read_entry
from harness.errors import EntryError, HarnessError
from harness.flags import FLAGS
from harness.page import as_csv, as_json, entry_file, page
from harness.records import Record
from harness.standing import read_board, standing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from harness.registry import Registry
    from harness.suite import Suite

ROUNDING = 1e-9
"""Difference of two values that only the order of additions makes."""
PAGES = {".md": page, ".csv": as_csv, ".json": as_json}


class Finding(NamedTuple):
    """Something that is wrong, or only worth a look."""

    where: str
    what: str
    is_error: bool = True


def check_entry(entry: Entry, suite: Suite, registry: Registry) -> Iterator[Finding]:
    """What is wrong with an entry by itself.

    Args:
        entry: Well-formed.
        suite: That it names, as it stands today.
        registry: Its metrics are computed again.
    """
    try:
        found = [
            *_suite(entry, suite, registry),
            *_hashes(entry),
            *_flags(entry),
            *_bits(entry, suite),
        ]
        if not any(finding.is_error for finding in found):
            found += _values(entry, suite, registry)
    except EntryError as error:
        found = [Finding(entry.where, str(error).removeprefix(f"{entry.where}: "))]
    yield from found


def check_board(suite: Suite, name: str, folder: Path, registry: Registry) -> Iterator[Finding]:
    """What is wrong with a board: each entry, where it lies, and whether the pages are its own.

    Args:
        suite: What was measured.
        name: Of the board.
        folder: Leaderboard folder.
        registry: Plugins.
    """
    entries = []
    for path in sorted((folder / name).rglob("*.json")):
        try:
            entry = read_entry(path)
        except EntryError as error:
            yield Finding(str(path), str(error).removeprefix(f"{path}: "))
            continue
        entries.append(entry)
        if path != folder / name / entry_file(entry):
            yield Finding(str(path), f"should be {name}/{entry_file(entry)}")
        if entry.content["suite"]["board"] != name:
            yield Finding(str(path), f"is of board {entry.content['suite']['board']}")
        yield from check_entry(entry, suite, registry)
    yield from _pages(suite, name, folder, registry, entries)


def check_change(board: Path, before: Path) -> Iterator[Finding]:
    """What a change of a board's folder did to rows that were there.

    Args:
        board: The folder of entries as it is.
        before: The same folder as it was.
    """
    now = {entry_file(entry): entry for entry in read_board(board)}
    for old in read_board(before):
        name = entry_file(old)
        if name not in now:
            yield Finding(old.where, "was removed; a row leaves a board only by name and reason")
            continue
        yield from _changed(old, now[name])
    for name in sorted(set(now) - {entry_file(old) for old in read_board(before)}):
        yield Finding(now[name].where, "is new", is_error=False)


def _changed(old: Entry, new: Entry) -> Iterator[Finding]:
    measured = {key: value for key, value in old.content.items() if key != "best_known"}
    if measured == {key: value for key, value in new.content.items() if key != "best_known"}:
        if new.content["best_known"][: len(old.content["best_known"])] != old.content["best_known"]:
            yield Finding(new.where, "what others broke was changed or removed; only add to it")
        return
    if old.content["provenance"].get("started") == new.content["provenance"].get("started"):
        yield Finding(new.where, "was changed without a new run: its start is still the same")
        return
    same = old.content["weights"]["sha256"] == new.content["weights"]["sha256"]
    told = "measured again on the same weights" if same else "replaced by other weights"
    yield Finding(new.where, told, is_error=False)


def _suite(entry: Entry, suite: Suite, registry: Registry) -> Iterator[Finding]:
    about = entry.content["suite"]
    if about["name"] != suite.name:
        yield Finding(entry.where, f"is of suite {about['name']}, not {suite.name}")
    if about["version"] != suite.version:
        told = f"was measured under version {about['version']}, the suite is {suite.version}"
        yield Finding(entry.where, told, is_error=False)
        return
    measured = entry.content["ingredients"].get("suite")
    if measured != json.loads(json.dumps(suite.science())):
        yield Finding(entry.where, "its attacks, epsilons or images are not those of the suite")
    ids = as_runs(plan.sample_ids(suite, registry.find("datasets", suite.data.name).card))
    if entry.content["samples"]["ids"] != ids:
        told = f"has {entry.count} images that are not the suite's in the suite's order"
        is_marked = bool({"partial-data", "limited"} & set(entry.content["flags"]))
        yield Finding(entry.where, told, is_error=not is_marked)


def _hashes(entry: Entry) -> Iterator[Finding]:
    content, ingredients = entry.content, entry.content["ingredients"]
    pairs = {
        "weights": (content["weights"]["sha256"], ingredients.get("weights")),
        "data": (content["data"]["fingerprint"], ingredients.get("data")),
        "seed": (content["model"]["seed"], ingredients.get("seed")),
        "model": (content["model"]["name"], ingredients.get("model")),
    }
    for name, (told, measured) in pairs.items():
        if told != measured:
            yield Finding(entry.where, f"{name} {told!r} is not what was measured, {measured!r}")


def _flags(entry: Entry) -> Iterator[Finding]:
    flags = entry.content["flags"]
    for flag in flags:
        if flag not in FLAGS:
            yield Finding(entry.where, f"flag {flag!r} is not known")
    for flag in entry.content["checks"].get("flags", []):
        if flag not in flags:
            yield Finding(entry.where, f"flag {flag!r}, which the checks raised, is missing")


def _bits(entry: Entry, suite: Suite) -> Iterator[Finding]:
    """Whether the attacks and epsilons are the suite's, and the bits possible."""
    left_out = set(entry.content["not_applicable"])
    wanted = {attack.label: attack for attack in suite.attacks if attack.label not in left_out}
    found = entry.content["bits"]["attacks"]
    for label in sorted(set(wanted) ^ set(found)):
        told = "is missing" if label in wanted else "is not the suite's"
        yield Finding(entry.where, f"attack {label!r} {told}")
    clean = entry.clean()
    for label in sorted(set(wanted) & set(found)):
        grid = [text for text, _ in entry.content["suite"]["epsilons"]]
        ran = [text for text in grid if text in (wanted[label].epsilons or grid)]
        if sorted(found[label]["robust"]) != sorted(ran):
            yield Finding(entry.where, f"attack {label!r} has not the suite's epsilons")
            continue
        series = [entry.robust_alone(label, text) for text in ran]
        yield from _possible(entry, label, [clean, *series])


def _possible(entry: Entry, label: str, series: list[Bits | None]) -> Iterator[Finding]:
    """A robust image is right when it is clean; under "nested" it is at smaller epsilons, too."""
    known = [bits for bits in series if bits is not None]
    is_nested = entry.content["suite"]["protocol"] == "nested"
    for before, after in pairwise(known):
        first = before if is_nested else known[0]
        if bool((after & ~first).any()):
            told = f"attack {label!r}: images are robust that are wrong when clean or attacked less"
            yield Finding(entry.where, told)
            return


def _values(entry: Entry, suite: Suite, registry: Registry) -> Iterator[Finding]:
    """Whether the values follow from the bits, by the same metrics."""
    evidence = evidence_of(entry)
    for name in suite.metrics:
        told = entry.content["values"].get(name)
        if told is None:
            yield Finding(entry.where, f"value {name!r} is missing")
            continue
        metric = registry.find("metrics", name)
        is_fact = metric.card.unit != "share"
        if not (metric.card.from_bits or is_fact) or (entry.clean() is None and not is_fact):
            yield Finding(entry.where, f"{name}: bits do not prove it", is_error=False)
            continue
        computed = [value.to_json() for value in metric.load()(evidence)]
        listed = [told[text] for text in evidence.epsilons] if metric.card.by_epsilon else [told]
        if not all(_equal(*pair) for pair in zip(listed, computed, strict=True)):
            yield Finding(entry.where, f"{name} is not what its bits give")


def _equal(told: Mapping[str, Any], computed: Mapping[str, Any]) -> bool:
    for key in ("value", "low", "high", "n"):
        first, second = told[key], computed[key]
        if (first is None) != (second is None):
            return False
        if first is not None and not isclose(first, second, abs_tol=ROUNDING, rel_tol=ROUNDING):
            return False
    return True


def evidence_of(entry: Entry) -> Evidence:
    """What metrics that ask for right and wrong alone are computed from."""
    about, clean = entry.content["suite"], entry.clean()
    right = np.ones(entry.count, dtype=bool) if clean is None else clean
    records: dict[bool, list[Record]] = {True: [], False: []}
    for label, found in entry.content["bits"]["attacks"].items():
        for text in found["robust"]:
            bits = entry.robust_alone(label, text)
            records[found["view"] == "full"] += [
                _record(sample, label, text, bool(is_right), bool(is_robust), found["view"])
                for sample, is_right, is_robust in zip(entry.samples, right, bits, strict=True)
            ]
    return Evidence(
        records=records[True],
        epsilons=dict(about["epsilons"]),
        headline=about["headline"],
        facts=entry.content["facts"],
        protocol=about["protocol"],
        diagnoses=records[False],
    )


def _record(
    sample: int,
    attack: str,
    epsilon: str,
    is_right: bool,  # noqa: FBT001
    is_robust: bool,  # noqa: FBT001
    view: str,
) -> Record:
    """A record of class 1 that says no more than its bits."""
    return Record(
        sample=sample,
        attack=attack,
        epsilon=epsilon,
        label=1,
        clean_prediction=int(is_right),
        clean_margin=0.0,
        adversarial_prediction=int(is_robust),
        adversarial_margin=0.0,
        view=view,
    )


def _pages(
    suite: Suite, name: str, folder: Path, registry: Registry, entries: list[Entry]
) -> Iterator[Finding]:
    """Whether the pages are those that the entries give."""
    try:
        board = standing(suite, name, entries)
    except HarnessError as error:
        yield Finding(str(folder / name), str(error))
        return
    for suffix, write in PAGES.items():
        path = folder / f"{name}{suffix}"
        if not path.exists() or path.read_text(encoding="utf-8") != write(board, registry):
            told = "is not what the entries give; write it again with 'harness publish'"
            yield Finding(str(path), told)

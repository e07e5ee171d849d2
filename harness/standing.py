"""Where rows stand: a board's entries, ranked as far as their images tell them apart."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from harness.entries import Entry, read_entry
from harness.errors import EntryError
from harness.flags import UNRANKED
from harness.inference import Ranks, rank_ranges

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from harness.suite import Suite


class Place(NamedTuple):
    """One row of the table."""

    entry: Entry
    ranks: Ranks | None  # None where the suite has no robust bits, or the row never ranks
    reason: str = ""  # why it never ranks


@dataclass(frozen=True)
class Standing:
    """A board, ready to be written.

    Attributes:
        suite: What was measured.
        name: Of the board.
        ranked: Rows that rank, best first.
        below: Rows that do not, by name, each with the reason.
        seeds: Entries of further training seeds, for claims about recipes.
    """

    suite: Suite
    name: str
    ranked: tuple[Place, ...]
    below: tuple[Place, ...] = ()
    seeds: tuple[Entry, ...] = ()

    def bits(self) -> NDArray[np.bool_]:
        """Which images the ranked rows have robust at the headline: rows by images."""
        return _bits([place.entry for place in self.ranked], self.suite.headline)


def read_board(folder: Path) -> tuple[Entry, ...]:
    """The entries of a board's folder, by file name.

    Raises:
        EntryError: One of them cannot be read, and is named; or something is a link.
    """
    refuse_links(folder)
    paths = sorted(path for path in folder.rglob("*.json") if not path.is_dir())
    return tuple(read_entry(path) for path in paths)


def refuse_links(folder: Path) -> None:
    """Refuse links, which would let a board read or write what lies elsewhere.

    Raises:
        EntryError: The folder, or something inside it, is one.
    """
    for path in (folder, *sorted(folder.rglob("*"))):
        if path.is_symlink():
            raise EntryError(f"{path}: is a link; put the file itself there")


def standing(suite: Suite, name: str, entries: Iterable[Entry]) -> Standing:
    """The rows of a board in their order.

    One seed stands for a model: the lowest. A row never ranks without per-sample bits, with a
    limit, with other attacks or images than the others, or under another version of the suite.
    """
    first, seeds = _first_seeds(entries)
    reasons = {entry.row: _unranked(suite, entry) for entry in first}
    fit = [entry for entry in first if not reasons[entry.row]]
    images = Counter(_images(suite, entry) for entry in fit).most_common(1)
    for entry in fit:
        if _images(suite, entry) != images[0][0]:
            reasons[entry.row] = "measured on other images than most rows"
    fit = [entry for entry in fit if not reasons[entry.row]]
    return Standing(
        suite,
        name,
        tuple(_ranked(suite, fit)),
        tuple(
            Place(entry, None, reasons[entry.row])
            for entry in sorted(first, key=lambda entry: entry.row)
            if reasons[entry.row]
        ),
        tuple(seeds),
    )


def _first_seeds(entries: Iterable[Entry]) -> tuple[list[Entry], list[Entry]]:
    """The lowest seed of each model and recipe, and the others."""
    first: dict[str, Entry] = {}
    others = []
    for entry in sorted(entries, key=lambda entry: int(entry.content["model"]["seed"])):
        name = entry.content["model"]["row"]
        if name in first:
            others.append(entry)
        else:
            first[name] = entry
    return list(first.values()), others


def _images(suite: Suite, entry: Entry) -> tuple[str, str]:
    """On which images a row stands; each model's own copy of them where the suite says so."""
    data = "" if suite.data.space == "model" else entry.content["data"]["fingerprint"]
    return entry.content["samples"]["ids"], data


def _unranked(suite: Suite, entry: Entry) -> str:
    """Why a row never ranks; empty where it does."""
    about = entry.content["suite"]
    if entry.content["reported"]:
        return "reported: no bits of its images, so that nobody can check it"
    if about["version"] != suite.version:
        return f"measured under version {about['version']} of the suite"
    if entry.robust(suite.headline) is None:
        return f"no bits at {suite.headline}"
    if about["protocol"] == "descending" or about["box"] == "none":
        return "measured under a protocol that never ranks"
    flags = [flag for flag in entry.content["flags"] if flag in UNRANKED]
    return f"flagged {flags[0]}" if flags else ""


def _ranked(suite: Suite, entries: Sequence[Entry]) -> list[Place]:
    ordered = sorted(entries, key=lambda entry: sort_key(entry, suite))
    if not ordered or "robust-accuracy" not in suite.metrics:
        return [Place(entry, None) for entry in ordered]
    ranks = rank_ranges(_bits(ordered, suite.headline))
    return [Place(entry, rank) for entry, rank in zip(ordered, ranks, strict=True)]


def _bits(entries: Sequence[Entry], epsilon: str) -> NDArray[np.bool_]:
    found = [entry.robust(epsilon) for entry in entries]
    return np.stack([bits for bits in found if bits is not None])


def sort_key(entry: Entry, suite: Suite) -> tuple[float, float, str]:
    """Best first: the first accuracy or error at the headline, then clean accuracy, then name."""
    values = entry.content["values"]
    signs = {"mean-accuracy": -1, "robust-accuracy": -1, "error-rate": 1, "fdr-at-1": 1}
    numbers = [
        _or_worst(values.get(name, {}).get(suite.headline, {}).get("value"), sign)
        for name, sign in signs.items()
        if name in suite.metrics
    ]
    clean = _or_worst(values.get("clean-accuracy", {}).get("value"), -1)
    return (numbers or [0.0])[0], clean, entry.row


def _or_worst(value: float | None, sign: int) -> float:
    """A value, the smaller the better; one that is missing is worse than any."""
    return inf if value is None else sign * value

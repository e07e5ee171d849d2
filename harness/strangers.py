"""The files of strangers: JSON that is read only where nothing in it can do harm."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from itertools import islice, pairwise
from math import isfinite
from typing import TYPE_CHECKING, Any

import jsonschema

from harness.bits import from_runs
from harness.errors import EntryError
from harness.migrations import SCHEMA, migrated

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DEEPEST = 30
"""Levels of an entry's file."""
MOST_PARTS = 200_000
"""Lists and objects of an entry's file; each takes memory that its two letters do not show."""
MOST_DIGITS = 30
"""Digits of a whole number."""
LOOKED_AT = 20
"""Breaches of the schema among which the one that tells most is shown."""


def parsed(text: bytes, where: str) -> dict[str, Any]:
    """The JSON object of an entry, in the present schema.

    Raises:
        EntryError: It is no JSON, too large, too deep, holds NaN, a key twice or letters that
            nobody sees, breaks the schema, or contradicts itself.
    """
    if text.count(b"[") + text.count(b"{") > MOST_PARTS:
        raise EntryError(f"{where}: more than {MOST_PARTS:,} lists and objects; no entry has these")
    try:
        content = json.loads(
            text.decode("utf-8"),
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_short,
            object_pairs_hook=_no_key_twice,
        )
    except (ValueError, RecursionError) as error:
        raise EntryError(f"{where}: not JSON: {str(error)[:200]}") from error
    if not isinstance(content, dict):
        raise EntryError(f"{where}: not a JSON object")
    _refuse_hidden(content, where)
    content = migrated(content, where)
    breaches = islice(_validator().iter_errors(content), LOOKED_AT)
    wrong = jsonschema.exceptions.best_match(breaches)
    if wrong is not None:
        place = "/".join(str(part) for part in wrong.absolute_path) or "the entry"
        raise EntryError(f"{where}: {place}: {wrong.message[:300]}")
    _refuse_contradictions(content, where)
    return content


@cache
def _validator() -> jsonschema.Draft202012Validator:
    path = resources.files("harness") / "schemas" / f"entry-{SCHEMA}.json"
    return jsonschema.Draft202012Validator(json.loads(path.read_text(encoding="utf-8")))


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{text[:40]} is too large a number")
    return number


def _short(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"{text[:40]}... is too long a number")
    return int(text)


def _refuse_hidden(content: dict[str, Any], where: str) -> None:
    """Refuse depth, and letters that end a line, hide others or cannot be written."""
    level: list[Any] = [content]
    for _ in range(DEEPEST):
        strings = [value for value in level if isinstance(value, str)]
        strings += [key for value in level if isinstance(value, dict) for key in value]
        for text in strings:
            if not text.isprintable():
                raise EntryError(f"{where}: control or hidden characters in {text[:60]!a}")
        level = [item for value in level for item in _items(value)]
        if not level:
            return
    raise EntryError(f"{where}: more than {DEEPEST} levels; no entry is that deep")


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _refuse_contradictions(content: Mapping[str, Any], where: str) -> None:
    """What no schema can say: epsilons rise, all others are among them, and ids are counted."""
    suite, bits, samples = content["suite"], content["bits"], content["samples"]
    if any(low[1] >= high[1] for low, high in pairwise(suite["epsilons"])):
        raise EntryError(f"{where}: suite/epsilons do not rise")
    grid = [text for text, _ in suite["epsilons"]]
    named = {suite["headline"], *(found["epsilon"] for found in content["best_known"])}
    for about in bits["attacks"].values():
        named |= set(about["robust"])
    if len(set(grid)) < len(grid) or not named <= set(grid):
        told = ", ".join(sorted(named - set(grid))) or "one of them twice"
        raise EntryError(f"{where}: suite/epsilons are {', '.join(grid)[:100]}: not {told[:100]}")
    if content["reported"]:
        if bits["attacks"] or bits["clean"]:
            raise EntryError(f"{where}: a reported row carries no bits; measure it instead")
        return
    try:
        found = len(from_runs(samples["ids"]))
    except EntryError as error:
        raise EntryError(f"{where}: {error}") from error
    if found != samples["count"]:
        raise EntryError(f"{where}: {found} sample ids where it counts {samples['count']}")

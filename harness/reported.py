"""Numbers that somebody else published: rows of a board without bits, which never rank."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

from harness.entries import Entry
from harness.errors import EntryError, SuiteError
from harness.hints import did_you_mean
from harness.migrations import SCHEMA
from harness.plan import Contender
from harness.tables import Table

if TYPE_CHECKING:
    from pathlib import Path

    from harness.registry import Registry
    from harness.suite import Suite

LARGEST = 2**20
"""Bytes of a file of reported numbers."""


def read_reported(path: Path, suite: Suite, registry: Registry, *, evaluator: str = "") -> Entry:
    """The entry of a TOML file with numbers of a paper or of another board.

    Args:
        path: The file; docs/submit.md lists its keys.
        suite: Whose board it is for.
        registry: Its metrics say which numbers there can be.
        evaluator: Who copied them.

    Raises:
        EntryError: The file cannot be read, or does not say what it must.
    """
    try:
        table = Table(tomllib.loads(_text(path)), str(path))
        content = _content(table, suite, registry)
        table.finish()
    except (ValueError, RecursionError) as error:
        raise EntryError(f"{path}: not TOML: {str(error)[:200]}") from error
    except SuiteError as error:
        raise EntryError(str(error)) from error
    return Entry({**content, "evaluator": evaluator}, str(path))


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST:
            raise EntryError(f"{path}: more than {LARGEST >> 20} MiB; give one row a file")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise EntryError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise EntryError(f"{path}: not UTF-8") from error


def _content(table: Table, suite: Suite, registry: Registry) -> dict[str, Any]:
    told = table.take("suite", str)
    if told != suite.name:
        raise EntryError(f"{table.where}: is of suite {told!r}; publish it with --suite {told}")
    count = table.take("n", int)
    return {
        "schema": SCHEMA,
        "suite": {
            "name": suite.name,
            "version": suite.version,
            "board": suite.board(suite.copy),
            "norm": suite.norm,
            "box": suite.box,
            "protocol": suite.protocol,
            "headline": suite.headline,
            "epsilons": [[epsilon.text, epsilon.value] for epsilon in suite.epsilons],
        },
        "model": _model(table),
        "report": {key: table.take(key, str) for key in ("source", "url", "protocol", "licence")},
        "weights": {"sha256": "", "source": ""},
        "data": {"name": suite.data.name, "split": suite.data.split, "fingerprint": ""},
        "precision": "unknown",
        "ingredients": {},
        "provenance": {},
        "facts": {},
        "checks": {},
        "flags": [],
        "values": _values(table.table("values"), count, suite, registry),
        "samples": {"count": count, "ids": ""},
        "bits": {"clean": None, "attacks": {}},
        "costs": {"forwards": 0, "backwards": 0},
        "best_known": [],
        "not_applicable": [],
        "reported": True,
    }


def _model(table: Table) -> dict[str, Any]:
    name, recipe = table.take("model", str), table.take("recipe", str, "")
    counts = {key: table.take(key, int, 0) for key in ("num_experts", "num_selected")}
    card = {key: number for key, number in counts.items() if number}
    row = Contender(name, recipe=recipe).row
    return {"row": row, "name": name, "recipe": recipe, "seed": 0, "card": card}


def _values(table: Table, count: int, suite: Suite, registry: Registry) -> dict[str, Any]:
    """Each number as a share, without an interval: nobody knows its bits."""
    grid = [epsilon.text for epsilon in suite.epsilons]
    found: dict[str, Any] = {}
    for name, told in table.content.items():
        where = f"{table.where}: {name}"
        card = registry.find("metrics", name).card if name in suite.metrics else None
        if card is None or card.unit != "share":
            raise EntryError(
                f"{where} is no share that suite {suite.name} measures"
                f"{did_you_mean(name, suite.metrics)}"
            )
        if not card.by_epsilon:
            found[name] = _share(told, count, where)
            continue
        if not isinstance(told, dict):
            raise EntryError(f"{where} must be a table of epsilons, [values.{name}]")
        for text in told:
            if text not in grid:
                raise EntryError(f"{where}: {text!r} is none of the suite's {', '.join(grid)}")
        found[name] = {text: _share(told[text], count, where) for text in grid if text in told}
    if not found:
        raise EntryError(f"{table.where}: holds no number; give one of {', '.join(suite.metrics)}")
    return found


def _share(percent: Any, count: int, where: str) -> dict[str, Any]:
    is_number = isinstance(percent, int | float) and not isinstance(percent, bool)
    if not is_number or not 0 <= percent <= 100:  # noqa: PLR2004 - per cent
        raise EntryError(f"{where} must be per cent, from 0 to 100, not {str(percent)[:40]!a}")
    return {"value": percent / 100, "low": None, "high": None, "n": count}

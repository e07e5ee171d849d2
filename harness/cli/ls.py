"""`harness ls`: what is registered."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from harness.cli import options as opt
from harness.cli.output import print_json, print_table
from harness.errors import UsageError
from harness.hints import did_you_mean
from harness.registry import KINDS, Registry
from harness.suite import find_suite, shipped_suites


def ls(
    kind: Annotated[str, typer.Argument(help=", ".join(KINDS))],
    plugin: opt.PluginOption = None,
    no_plugin: opt.WithoutOption = None,
    as_json: opt.JsonOption = False,
) -> None:
    """List what is registered: models, recipes, attacks, objectives, metrics, datasets ..."""
    if kind not in KINDS:
        raise UsageError(f"nothing is called {kind!r}{did_you_mean(kind, KINDS)}")
    known = opt.registry(plugin, no_plugin)
    rows = _suites(known) if kind == "suites" else _entries(kind, known)
    if as_json:
        print_json(rows)
        return
    print_table(
        ["name", "what it is", "plugin"],
        [[row["name"], row["summary"], row["plugin"]] for row in rows],
    )


def _entries(kind: str, known: Registry) -> list[dict[str, Any]]:
    return [
        {
            "name": entry.name,
            "summary": entry.card.summary,
            "plugin": f"{entry.plugin.distribution}:{entry.plugin.name}",
            "defaults": dict(entry.defaults),
        }
        for entry in known.listed(kind)
    ]


def _suites(known: Registry) -> list[dict[str, Any]]:
    """The shipped suites, read, and those of plugins."""
    rows = []
    for name in shipped_suites():
        suite = find_suite(name, known)
        summary = f"{suite.title}; version {suite.version}, {len(suite.models)} default rows"
        rows.append({"name": name, "summary": summary, "plugin": "harness", "defaults": {}})
    return rows + _entries("suites", known)

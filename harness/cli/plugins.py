"""`harness plugins`: who is installed, and who is broken."""

from __future__ import annotations

from typing import Any

from harness.cli import options as opt
from harness.cli.output import print_json, print_table
from harness.registry import Plugin, Registry


def plugins(
    plugin: opt.PluginOption = None,
    no_plugin: opt.WithoutOption = None,
    as_json: opt.JsonOption = False,
) -> None:
    """List the plugins: what each brings, or why it is broken."""
    known = opt.registry(plugin, no_plugin, warn=False)
    rows = [_described(item, known) for item in known.plugins]
    if as_json:
        print_json(rows)
        return
    print_table(
        ["plugin", "distribution", "version", "state", "brings"],
        [
            [
                row["name"],
                row["distribution"],
                row["version"] or "-",
                "broken" if row["error"] else "works",
                row["error"] or ", ".join(f"{len(v)} {k}" for k, v in row["brings"].items()),
            ]
            for row in rows
        ],
    )


def _described(plugin: Plugin, known: Registry) -> dict[str, Any]:
    brings: dict[str, list[str]] = {}
    for (kind, name), entries in known.entries.items():
        if any(entry.plugin == plugin for entry in entries):
            brings.setdefault(kind, []).append(name)
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "origin": plugin.origin,
        "location": plugin.location,
        "sha256": plugin.sha256,
        "state": "broken" if plugin.error else "works",
        "error": plugin.error,
        "brings": brings,
    }

"""`harness show`: all that is known of one name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from harness.cli import options as opt
from harness.cli.output import print_json, print_table
from harness.errors import UnknownName
from harness.hints import did_you_mean
from harness.registry import KINDS, Entry
from harness.suite import find_suite, shipped_suites

SHOWN = 20
"""Items of a list that the table shows."""


def show(
    name: Annotated[str, typer.Argument(help="Any registered name, or a suite.")],
    plugin: opt.PluginOption = None,
    no_plugin: opt.WithoutOption = None,
    as_json: opt.JsonOption = False,
) -> None:
    """Show the card, the parameters and the source of a name."""
    known = opt.registry(plugin, no_plugin)
    found = [_described(known.find(kind, name)) for kind in KINDS if known.has(kind, name)]
    if name in shipped_suites() or name.endswith(".toml"):
        suite = find_suite(name, known)
        found.append({"kind": "suite", **asdict(suite)})
    if not found:
        everything = [*shipped_suites(), *(item for kind in KINDS for item in known.names(kind))]
        raise UnknownName(
            f"nothing is called {name!r}{did_you_mean(name, everything, see='harness ls models')}"
        )
    if as_json:
        print_json(found[0] if len(found) == 1 else found)
        return
    for item in found:
        print_table(["", name], [[key, _text(value)] for key, value in item.items() if value != ""])


def _described(entry: Entry) -> dict[str, Any]:
    card = asdict(entry.card)
    return {
        "kind": entry.kind[:-1],
        **{key: value for key, value in card.items() if not callable(value)},
        "parameters": dict(entry.defaults),
        "target": entry.target if isinstance(entry.target, str) else repr(entry.target),
        "plugin": f"{entry.plugin.distribution}:{entry.plugin.name} {entry.plugin.version}".strip(),
        "file": entry.plugin.location,
    }


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{key} = {_flat(item)}" for key, item in value.items()) or "-"
    if isinstance(value, list | tuple):
        shown = [_flat(item) for item in value[:SHOWN]]
        return "\n".join([*shown, *_rest(value)]) or "-"
    return "-" if value is None else str(value)


def _flat(item: Any) -> str:
    if isinstance(item, dict):
        return ", ".join(f"{key} = {value}" for key, value in item.items()) or "-"
    if isinstance(item, list | tuple):
        return ", ".join([*(str(part) for part in item[:SHOWN]), *_rest(item)]) or "-"
    return str(item)


def _rest(items: Sequence[Any]) -> list[str]:
    """What stands for the items that a table has no room for; --json has them all."""
    return [f"... {len(items)} in all"] if len(items) > SHOWN else []

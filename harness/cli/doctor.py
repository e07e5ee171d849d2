"""`harness doctor`: whether this machine can be believed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import typer

from harness.cli import options as opt
from harness.cli.output import print_json, print_table
from harness.errors import StoreError
from harness.provenance import versions
from harness.store import Store


def doctor(
    data: opt.DataOption = None,
    out: opt.OutOption = Path("runs"),
    plugin: opt.PluginOption = None,
    no_plugin: opt.WithoutOption = None,
    as_json: opt.JsonOption = False,
) -> None:
    """Check versions, device, data, folders, plugins and arithmetic; wanted in bug reports."""
    known = opt.registry(plugin, no_plugin, warn=False)
    from harness.selfcheck import arithmetic, machine

    broken = [item for item in known.plugins if item.error]
    checks: list[dict[str, Any]] = [
        *({"check": name, "ok": True, "told": told} for name, told in machine().items()),
        *(
            {"check": name, "ok": told != "not installed", "told": told}
            for name, told in versions().items()
        ),
        _folder("run folder", out),
        _folder("temporary folder", Path(tempfile.gettempdir())),
        _data(data),
        {
            "check": "plugins",
            "ok": not broken,
            "told": f"{len(known.plugins) - len(broken)} work"
            + "".join(f"; {item.name}: {item.error}" for item in broken),
        },
        *({"check": name, "ok": ok, "told": told} for name, ok, told in arithmetic()),
    ]
    if as_json:
        print_json({"ok": all(check["ok"] for check in checks), "checks": checks})
    else:
        print_table(
            ["check", "", "what was found"],
            [[check["check"], "ok" if check["ok"] else "BAD", check["told"]] for check in checks],
        )
    if not all(check["ok"] for check in checks):
        raise typer.Exit(1)


def _folder(name: str, path: Path) -> dict[str, Any]:
    existed = path.exists()
    try:
        Store(path).check_writable()
    except StoreError as error:
        return {"check": name, "ok": False, "told": str(error)}
    if not existed:
        path.rmdir()
    return {"check": name, "ok": True, "told": f"{path} can be written"}


def _data(data: Path | None) -> dict[str, Any]:
    if data is None:
        told = "none given (--data, HARNESS_DATA); the digits need none"
        return {"check": "local data", "ok": True, "told": told}
    if not data.is_dir():
        told = f"{data}: no such folder; HARNESS_DATA is {os.environ.get('HARNESS_DATA')!r}"
        return {"check": "local data", "ok": False, "told": told}
    found = ", ".join(sorted(item.name for item in data.iterdir() if item.is_dir()))
    return {"check": "local data", "ok": True, "told": f"{data}: {found or 'empty'}"}

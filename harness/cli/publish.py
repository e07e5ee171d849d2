"""`harness publish`: from finished runs to the leaderboard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli import options as opt
from harness.cli.output import complain, note, print_json
from harness.errors import StoreError
from harness.store import Store
from harness.suite import find_suite


def publish(
    suite: opt.SuiteOption = opt.DEFAULT_SUITE,
    runs: opt.RunsOption = Path("runs"),
    out: Annotated[Path, typer.Option("--out", help="Leaderboard folder.")] = Path("leaderboard"),
    plugin: opt.PluginOption = None,
    no_plugin: opt.WithoutOption = None,
    as_json: opt.JsonOption = False,
) -> None:
    """Write the leaderboard of a suite: a Markdown table, and an entry with its bits a row."""
    from harness import leaderboard

    known = opt.registry(plugin, no_plugin)
    chosen = find_suite(suite, known)
    board = leaderboard.gather(chosen, Store(runs), known)
    for reason in board.left_out:
        complain(f"left out: {reason}", kind="warning")
    if not board.rows:
        raise StoreError(
            f"{runs}: holds no complete row of suite {chosen.name} version {chosen.version}; "
            f"run it first: harness run --suite {suite} --out {runs}"
        )
    path = leaderboard.publish(board, out, known)
    if as_json:
        print_json({"table": str(path), "rows": list(board.rows)})
        return
    note(f"{len(board.rows)} rows")
    typer.echo(str(path))

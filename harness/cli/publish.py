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
    evaluator: Annotated[
        str, typer.Option("--evaluator", help="Who measured it, as the entries shall say.")
    ] = "",
    reported: Annotated[
        list[Path] | None,
        typer.Option(
            "--reported",
            help="TOML file with a row of published numbers, which never ranks; repeatable.",
            metavar="FILE",
        ),
    ] = None,
    plugin: opt.PluginOption = None,
    no_plugin: opt.WithoutOption = None,
    as_json: opt.JsonOption = False,
) -> None:
    """Write a suite's entries, one a row, and its table over all entries in the folder.

    Without rows of its own in the run folder, the pages alone are written again, and those of
    --reported files added.
    """
    from harness import leaderboard
    from harness.reported import read_reported

    known = opt.registry(plugin, no_plugin)
    chosen = find_suite(suite, known)
    told = [read_reported(path, chosen, known, evaluator=evaluator) for path in reported or []]
    board = leaderboard.gather(chosen, Store(runs), known)
    for reason in board.left_out:
        complain(f"left out: {reason}", kind="warning")
    if told:
        leaderboard.add_reported(board, told, out)
    if not board.rows and not (out / board.name).is_dir():
        raise StoreError(
            f"{runs}: holds no complete row of suite {chosen.name} version {chosen.version}; "
            f"run it first: harness run --suite {suite} --out {runs}"
        )
    found = leaderboard.publish(board, out, known, evaluator=evaluator)
    path = out / f"{board.name}.md"
    if as_json:
        print_json({"table": str(path), "rows": list(board.rows)})
        return
    note(f"{len(board.rows)} rows of {runs}; {len(found.ranked)} ranked, {len(found.below)} below")
    typer.echo(str(path))

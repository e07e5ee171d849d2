"""`harness report`: the figures of a suite's rows, and the table behind each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli import options as opt
from harness.cli.output import complain, note, resumable
from harness.errors import UsageError
from harness.store import Store, write_atomically
from harness.suite import find_suite


def report(
    runs: Annotated[Path, typer.Argument(help="Run folder.")] = Path("runs"),
    suite: opt.SuiteOption = opt.DEFAULT_SUITE,
    to: Annotated[Path, typer.Option("--to", help="Folder of the figures.")] = Path("report"),
    tables: Annotated[
        bool, typer.Option("--tables", help="Tables alone, which need no matplotlib.")
    ] = False,
    plugin: opt.PluginOption = None,
    no_plugin: opt.WithoutOption = None,
) -> None:
    """Draw a suite's rows as PNG and SVG, each with its numbers as CSV."""
    known = opt.registry(plugin, no_plugin)
    chosen = find_suite(suite, known)
    from harness import figures
    from harness.drawing import drawn
    from harness.leaderboard import gather

    with resumable():
        board = gather(chosen, Store(runs), known)
        for reason in board.left_out:
            complain(f"left out: {reason}", kind="warning")
        if not board.rows:
            raise UsageError(
                f"{runs} holds no finished rows of suite {chosen.name}; make them with "
                f"'harness run --suite {suite} --out {runs}'"
            )
        for picture in figures.pictures(board, known):
            files = {"csv": figures.as_csv(picture).encode()}
            files |= {} if tables else drawn(picture) or {}
            for ending, content in files.items():
                write_atomically(to / f"{picture.name}.{ending}", content)
            typer.echo(f"{to / picture.name}: {', '.join(files)}")
    note(f"{len(board.rows)} rows of {chosen.name}")

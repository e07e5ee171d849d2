"""`harness report`: the figures of a suite's rows, and the table behind each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli import options as opt
from harness.cli.output import complain, note, resumable
from harness.errors import UsageError
from harness.hints import did_you_mean
from harness.store import Store, write_atomically
from harness.suite import find_suite

if TYPE_CHECKING:
    from harness.leaderboard import Board


def report(
    runs: Annotated[Path, typer.Argument(help="Run folder.")] = Path("runs"),
    suite: opt.SuiteOption = opt.DEFAULT_SUITE,
    to: Annotated[Path, typer.Option("--to", help="Folder of the figures.")] = Path("report"),
    tables: Annotated[
        bool, typer.Option("--tables", help="Tables alone, which need no matplotlib.")
    ] = False,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="A row to draw, such as cnn/digits.standard; repeatable.  [default: all]",
        ),
    ] = None,
    plugin: opt.PluginOption = None,
    no_plugin: opt.WithoutOption = None,
) -> None:
    """Draw a suite's rows as PNG and SVG, each with its numbers as CSV."""
    known = opt.registry(plugin, no_plugin)
    chosen = find_suite(suite, known)
    from harness import figures
    from harness.drawing import MOST_LINES, drawn
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
        board = _chosen(board, model or [])
        for picture in figures.pictures(board, known):
            files = {"csv": figures.as_csv(picture).encode()}
            drawing = None if tables else drawn(picture)
            for ending, content in {**files, **(drawing or {})}.items():
                write_atomically(to / f"{picture.name}.{ending}", content)
            typer.echo(f"{to / picture.name}: {', '.join([*files, *(drawing or {})])}")
            if not tables and drawing is None and figures.drawable(picture.panels):
                complain(
                    f"{picture.name}: not drawn, for more than {MOST_LINES} lines cannot be told "
                    "apart; choose rows with --model",
                    kind="warning",
                )
    note(f"{len(board.rows)} rows of {chosen.name}")


def _chosen(board: Board, wanted: list[str]) -> Board:
    """The board with some of its rows; all where none is named."""
    names = [row["model"] for row in board.rows]
    for name in wanted:
        if name not in names:
            raise UsageError(f"row {name} is not there{did_you_mean(name, names)}")
    kept = [place for place, name in enumerate(names) if not wanted or name in wanted]
    return replace(
        board,
        rows=tuple(board.rows[place] for place in kept),
        cells=tuple(board.cells[place] for place in kept),
    )

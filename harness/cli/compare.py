"""`harness compare`: two or more rows of a board against each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli import options as opt
from harness.cli.output import print_json, print_table
from harness.errors import UsageError
from harness.hints import did_you_mean
from harness.suite import find_suite

if TYPE_CHECKING:
    from harness.compare import Comparison, RecipeClaim
    from harness.entries import Entry


def compare(
    rows: Annotated[list[str], typer.Argument(help="Rows of the board, two or more.")],
    suite: opt.SuiteOption = opt.DEFAULT_SUITE,
    board: Annotated[Path, typer.Option("--board", help="Leaderboard folder.")] = Path(
        "leaderboard"
    ),
    epsilon: Annotated[
        list[str] | None,
        typer.Option("--epsilon", help="Of the suite; repeatable.  [default: the headline]"),
    ] = None,
    recipes: Annotated[
        bool,
        typer.Option(
            "--recipes",
            help="Take each row for a recipe: all its training seeds, five or more, the first row "
            "against each of the others.",
        ),
    ] = False,
    plugin: opt.PluginOption = None,
    no_plugin: opt.WithoutOption = None,
    as_json: opt.JsonOption = False,
) -> None:
    """Compare rows image by image, in words and numbers."""
    from harness.compare import claimed, compared, in_words
    from harness.standing import read_board

    if len(rows) == 1:
        raise UsageError("compare needs two rows or more: harness compare A B")
    known = opt.registry(plugin, no_plugin)
    chosen = find_suite(suite, known)
    grid = [text.text for text in chosen.epsilons]
    for text in epsilon or []:
        if text not in grid:
            raise UsageError(f"--epsilon {text}: the suite has {', '.join(grid)}")
    everything = read_board(board / chosen.board(chosen.copy))
    if recipes:
        _show_claims(claimed(everything, rows, epsilon or [chosen.headline]), as_json=as_json)
        return
    entries = _chosen(everything, rows)
    found = compared(entries, epsilon or [chosen.headline])
    if as_json:
        print_json(
            {
                "suite": chosen.name,
                "comparisons": [
                    {**item._asdict(), "found": item.found._asdict(), "verdict": item.verdict}
                    for item in found
                ],
            }
        )
        return
    print_table(
        ["first", "second", "epsilon", "difference in points", "only first", "only second", "p"],
        [
            [
                item.first,
                item.second,
                item.epsilon,
                _points(item),
                str(item.found.only_first),
                str(item.found.only_second),
                f"{item.p_adjusted:.3g}",
            ]
            for item in found
        ],
        title=f"{chosen.title}: robust accuracy, first minus second; paired, 95 % intervals, "
        "p of McNemar after Holm",
    )
    for item in found:
        typer.echo("")
        for line in in_words(item):
            typer.echo(line)


def _points(item: Comparison) -> str:
    found = item.found
    inside = f"{100 * found.low:+.1f}, {100 * found.high:+.1f}"
    return f"{100 * found.difference:+.1f} [{inside}]"


def _chosen(entries: Sequence[Entry], rows: list[str]) -> list[Entry]:
    by_row = {entry.row: entry for entry in entries}
    for row in rows:
        if row not in by_row:
            raise UsageError(f"row {row!r} is not on the board{did_you_mean(row, by_row)}")
    return [by_row[row] for row in rows]


def _show_claims(claims: Sequence[RecipeClaim], *, as_json: bool) -> None:
    from harness.compare import claim_in_words

    if as_json:
        print_json(
            {"claims": [{**item._asdict(), "found": item.found._asdict()} for item in claims]}
        )
        return
    for item in claims:
        for line in claim_in_words(item):
            typer.echo(line)
        typer.echo("")

"""`harness validate`: whether a leaderboard is what its entries say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli import options as opt
from harness.cli.output import note, print_json
from harness.errors import UsageError
from harness.suite import Suite, find_suite

if TYPE_CHECKING:
    from harness.proof import Finding
    from harness.registry import Registry

NOT_REPLAYED = "no image was attacked again, because of the errors above; mend them first"


def validate(
    suite: opt.SuiteOption = opt.DEFAULT_SUITE,
    board: Annotated[Path, typer.Option("--board", help="Leaderboard folder.")] = Path(
        "leaderboard"
    ),
    entry: Annotated[
        Path | None, typer.Option("--entry", help="One entry alone.", metavar="FILE")
    ] = None,
    replay: Annotated[
        int, typer.Option("--replay", help="Attack so many images of --entry again.", min=0)
    ] = 0,
    weights: opt.WeightsOption = "",
    data: opt.DataOption = None,
    cache: opt.CacheOption = None,
    device: opt.DeviceOption = "auto",
    runs: opt.RunsOption = Path("runs"),
    before: Annotated[
        Path | None,
        typer.Option("--before", help="The leaderboard folder as it was before a change."),
    ] = None,
    plugin: opt.PluginOption = None,
    no_plugin: opt.WithoutOption = None,
    as_json: opt.JsonOption = False,
) -> None:
    """Check entries against their bits, their suite, their pages and what was there before."""
    from harness.entries import read_entry
    from harness.proof import Finding, check_entry

    if replay and entry is None:
        raise UsageError("--replay attacks the images of one entry: name it with --entry")
    known = opt.registry(plugin, no_plugin)
    chosen = find_suite(suite, known)
    doubted = read_entry(entry) if entry else None
    found = (
        list(check_entry(doubted, chosen, known))
        if doubted
        else _board_findings(chosen, board, known)
    )
    if before is not None:
        found += _changes(chosen, board, before)
    if replay and doubted and any(finding.is_error for finding in found):
        found.append(Finding(doubted.where, NOT_REPLAYED, is_error=False))
    elif replay and doubted:
        from harness.replay import contender_of, replayed
        from harness.runner import Request

        row, place = contender_of(doubted, known, weights), opt.place_of(data, cache, offline=False)
        request = Request(chosen, (row,), runs, device=device, place=place)
        found += replayed(doubted, request, known, count=replay)
    errors = [finding for finding in found if finding.is_error]
    if as_json:
        print_json({"suite": chosen.name, "findings": [item._asdict() for item in found]})
    else:
        for finding in found:
            kind = "error" if finding.is_error else "note"
            typer.echo(_shown(f"{kind}: {finding.where}: {finding.what}"))
        note(f"{len(errors)} errors, {len(found) - len(errors)} notes")
    if errors:
        raise typer.Exit(1)


def _shown(text: str) -> str:
    """The text without what a file's name could do to a terminal or to the log of a server."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _board_findings(suite: Suite, folder: Path, known: Registry) -> list[Finding]:
    from harness.validate import check_board

    name = suite.board(suite.copy)
    if not (folder / name).is_dir():
        raise UsageError(f"{folder / name}: no such board; publish it, or name another --board")
    return list(check_board(suite, name, folder, known))


def _changes(suite: Suite, folder: Path, before: Path) -> list[Finding]:
    from harness.validate import check_change

    name = suite.board(suite.copy)
    return list(check_change(folder / name, before / name))

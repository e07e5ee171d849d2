"""`harness merge`: the finished work of another machine into this run folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from harness.cli import options as opt
from harness.cli.output import complain, print_json, resumable


def merge(
    source: Annotated[Path, typer.Argument(metavar="FROM", help="Run folder to copy from.")],
    into: Annotated[Path, typer.Option("--into", help="Run folder to copy into.")] = Path("runs"),
    as_json: opt.JsonOption = False,
) -> None:
    """Copy cells, shards and weights that are missing; what both folders have must be equal."""
    from harness import merging

    with resumable():
        done = merging.merge(source, into)
    for line in done.different:
        complain(f"non-determinism: {line}, which stays")
    for line in done.refused:
        complain(f"left out: {line}")
    if as_json:
        print_json(asdict(done))
    else:
        copied = ", ".join(f"{count} {kind}" for kind, count in done.copied.items())
        typer.echo(f"copied {copied or 'nothing'}; {done.equal} shards and weights were equal")
    if done.different or done.refused:
        raise typer.Exit(3)

"""`harness records`: all that was measured, image by image, as one flat table."""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from harness.cli import options as opt
from harness.cli.output import complain, note, resumable
from harness.errors import StoreError, UsageError
from harness.store import Store, replacing

if TYPE_CHECKING:
    from harness.export import Export


class Format(StrEnum):
    """What the table is written as."""

    csv = "csv"
    parquet = "parquet"
    pandas = "pandas"


def records(
    runs: Annotated[Path, typer.Argument(help="Run folder.")] = Path("runs"),
    to: Annotated[Format, typer.Option("--to", help="Format.")] = Format.csv,
    out: Annotated[
        Path | None, typer.Option("--out", help="File; without it, CSV goes to stdout.")
    ] = None,
    suite: Annotated[
        str | None, typer.Option("--suite", help="Only this suite: its name, or a .toml file.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Only this model, or model.recipe.")
    ] = None,
    plugin: opt.PluginOption = None,
    no_plugin: opt.WithoutOption = None,
) -> None:
    """Write all records of a run folder as one table, a line for each image, attack and epsilon."""
    if to is Format.parquet and out is None:
        raise UsageError("--to parquet needs a file: add --out FILE")
    if to is Format.pandas and out is not None:
        raise UsageError("--to pandas shows how Python reads it; a file takes --to csv or parquet")
    known = opt.registry(plugin, no_plugin)
    from harness import export

    with resumable():
        found = export.plan_export(Store(runs), known, suite=suite, model=model)
        if to is Format.pandas:
            _show(found, runs, suite, model)
        elif out is None:
            _count(export.write_csv(found, sys.stdout), found)
        else:
            write = export.write_csv_file if to is Format.csv else export.write_parquet
            _count(_written(out, found, write), found)
    for path in found.damaged:
        complain(f"left out: {path}: altered, or of another cell; run the suite again")
    if found.damaged:
        raise typer.Exit(3)


def _written(out: Path, found: Export, write: Callable[[Export, BinaryIO], int]) -> int:
    """Write a file that takes its name when it is whole; a device or a pipe is written into."""
    if not out.exists() or out.is_file():
        with replacing(out.resolve()) as file:
            return write(found, file)
    try:
        with out.open("wb") as file:
            return write(found, file)
    except OSError as error:
        raise StoreError(f"cannot write {out}: {error.strerror}; choose another --out") from error


def _count(records: int, found: Export) -> None:
    note(f"{records} records of {len(found.shards)} cells")


def _show(found: Export, runs: Path, suite: str | None, model: str | None) -> None:
    """The first rows, and the line that gives them all."""
    from harness.export import as_frame

    wanted = {"suite": suite, "model": model}
    named = "".join(f", {name}={value!r}" for name, value in wanted.items() if value)
    frame = as_frame(found)
    typer.echo(frame.head().to_string())
    typer.echo(f"\n{len(frame)} records; in Python:\n")
    typer.echo(f"import harness; frame = harness.read_records({str(runs)!r}{named})")

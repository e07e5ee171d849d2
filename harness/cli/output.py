"""How commands speak: results to stdout, all else to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

WIDE = 160
"""Columns of a table that goes to a file or a pipe."""


def complain(message: str, kind: str = "error") -> None:
    """Say on stderr what is wrong."""
    colour = {"error": "bold red", "warning": "yellow"}[kind]
    Console(stderr=True, soft_wrap=True).print(
        f"[{colour}]{kind}:[/] {escape(message)}", highlight=False
    )


def note(message: str) -> None:
    """Say on stderr what is going on."""
    Console(stderr=True, soft_wrap=True).print(escape(message), highlight=False)


@contextmanager
def resumable() -> Iterator[None]:
    """Answer Ctrl-C with what it means for the work done so far; typer alone would say nothing."""
    try:
        yield
    except KeyboardInterrupt:
        complain("interrupted; nothing that was finished is lost: the same command goes on")
        raise typer.Exit(130) from None


def print_json(content: Any) -> None:
    """Print one JSON value on stdout."""
    json.dump(content, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def print_table(
    heads: Sequence[str], lines: Sequence[Sequence[str]], *, title: str = "", caption: str = ""
) -> None:
    """Print a table on stdout, as wide as it needs where no terminal limits it."""
    table = Table(
        title=escape(title) or None,
        caption=escape(caption) or None,
        title_justify="left",
        caption_justify="left",
    )
    for place, head in enumerate(heads):
        table.add_column(escape(head), overflow="fold", no_wrap=place == 0)
    for line in lines:
        table.add_row(*(escape(text) for text in line))
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    console.print(table, highlight=False)

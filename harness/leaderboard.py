"""The leaderboard: finished cells to entries and a table that anybody can recompute."""

from __future__ import annotations

from dataclasses import dataclass
from json import dumps, loads
from typing import TYPE_CHECKING, Any

from harness import plan
from harness.entries import Entry, entry_of, read_entry, written
from harness.errors import EntryError, UsageError
from harness.flags import FLAGS, UNRANKED
from harness.page import as_csv, as_json, entry_file, page
from harness.scoring import Cell, collect, copy_of, score
from harness.standing import Standing, read_board, refuse_links, standing
from harness.store import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from harness.registry import Registry
    from harness.store import Store
    from harness.suite import Suite


@dataclass(frozen=True)
class Board:
    """What can be published of a suite.

    Attributes:
        suite: Whose board it is.
        rows: Scored rows, by name and seed.
        cells: Their records, in the same order.
        left_out: Why other rows cannot be shown.
    """

    suite: Suite
    rows: tuple[dict[str, Any], ...]
    cells: tuple[Cell, ...]
    left_out: tuple[str, ...]

    @property
    def name(self) -> str:
        """The suite's, and the copy of the data that the rows stand for."""
        return self.suite.board(self.suite.copy)


def gather(suite: Suite, store: Store, registry: Registry) -> Board:
    """The board that the cells of a run folder make.

    A row that was measured more than once from one seed, with other plugins or weights, stands
    with the cell that was started last.

    Raises:
        UsageError: Numbers of this suite never rank: a preview, or images outside [0, 1].
    """
    _refuse_unranked(suite)
    card = registry.find("datasets", suite.data.name).card
    ids = plan.sample_ids(suite, card)
    latest: dict[tuple[str, int], Cell] = {}
    others: set[str] = set()
    left_out = []
    for folder in store.cells():
        manifest = folder.manifest() or {}
        if manifest["ingredients"]["suite"] != loads(dumps(suite.science())):
            continue
        copy = copy_of(suite, manifest)
        if copy != suite.copy:
            others.add(suite.board(copy))
            continue
        without = frozenset(manifest.get("unlabelled", ()))
        usable = [sample for sample in ids if sample not in without]
        cell = collect(folder, tuple(plan.shards(usable, suite.shard_size)))
        reasons = [flag for flag in cell.flags if flag in UNRANKED]
        if reasons:
            left_out.append(f"{manifest['row']}: {FLAGS[reasons[0]]}")
            continue
        name = (manifest["row"], int(manifest["ingredients"]["seed"]))
        known = latest.get(name)
        if known is None or _started(known) < _started(cell):
            latest[name] = cell
    _refuse_mixed_data(suite, latest.values())
    found = [cell for _, cell in sorted(latest.items())]
    rows = tuple(score(suite, cell, registry) for cell in found)
    left_out += [f"rows on another copy of the data: publish {name}" for name in sorted(others)]
    return Board(suite, rows, tuple(found), tuple(left_out))


def _refuse_mixed_data(suite: Suite, cells: Iterable[Cell]) -> None:
    """Refuse rows on different images in one table, where the suite does not say which count."""
    if suite.data.space == "model":
        return  # each row's images are drawn at its own size
    rows: dict[str, list[str]] = {}
    for cell in cells:
        rows.setdefault(cell.manifest["ingredients"]["data"], []).append(cell.manifest["row"])
    if len(rows) > 1:
        told = "; ".join(f"{', '.join(names)} on {found[:16]}" for found, names in rows.items())
        raise UsageError(
            f"suite {suite.name}: the rows stand on different images: {told}; name the copies "
            "under [data.copies] of the suite, and publish each board by itself"
        )


def _refuse_unranked(suite: Suite) -> None:
    if suite.protocol == "descending":
        raise UsageError(
            f"suite {suite.name}: protocol 'descending' is a preview that never ranks; "
            "publish a suite with 'nested' or 'independent'"
        )
    if suite.box == "none":
        raise UsageError(
            f"suite {suite.name}: box 'none' lets images leave [0, 1] and never ranks; "
            "publish a suite with box 'pixels'"
        )


def publish(board: Board, out: Path, registry: Registry, *, evaluator: str = "") -> Standing:
    """Write the entries of a board's rows, then its pages over all entries in the folder.

    What others broke of the same weights is kept.

    Args:
        board: What this machine measured.
        out: Leaderboard folder.
        registry: Plugins.
        evaluator: Who measured it.

    Raises:
        EntryError: An entry in the folder cannot be read, or one to be written breaks the schema.
        StoreError: The folder cannot be written.
    """
    folder = out / board.name
    refuse_links(folder)
    for row, cell in zip(board.rows, board.cells, strict=True):
        entry = entry_of(board.suite, row, cell, registry, evaluator=evaluator)
        path = folder / entry_file(entry)
        content = written(_with_breaks(entry, path))  # first, for it refuses names that leave it
        write_atomically(path, content)
    return write_pages(board.suite, board.name, out, registry)


def add_reported(board: Board, entries: Iterable[Entry], out: Path) -> None:
    """Write entries of numbers that others published into a board's folder.

    Raises:
        EntryError: One breaks the schema.
        UsageError: The row was measured: what was measured is not replaced by what was reported.
        StoreError: The folder cannot be written.
    """
    folder = out / board.name
    refuse_links(folder)
    measured = {cell.manifest["row"] for cell in board.cells}
    files = []
    for entry in entries:
        content = written(entry)  # first, for it refuses names that leave the folder
        path = folder / entry_file(entry)
        known = path.exists() and not read_entry(path).content["reported"]
        if known or entry.row in measured:
            raise UsageError(f"{entry.where}: row {entry.row} was measured; name another model")
        files.append((path, content))
    for path, content in files:
        write_atomically(path, content)


def write_pages(suite: Suite, name: str, out: Path, registry: Registry) -> Standing:
    """Write a board's table as Markdown, CSV and JSON, from the entries in its folder.

    Raises:
        EntryError: One of them cannot be read.
        StoreError: The folder cannot be written.
    """
    found = standing(suite, name, read_board(out / name))
    write_atomically(out / f"{name}.csv", as_csv(found, registry).encode())
    write_atomically(out / f"{name}.json", as_json(found, registry).encode())
    write_atomically(out / f"{name}.md", page(found, registry).encode())
    return found


def _with_breaks(entry: Entry, path: Path) -> Entry:
    """The entry, with what others broke of the same weights on the same images."""
    try:
        known = read_entry(path).content if path.exists() else None
    except EntryError:
        known = None  # the file is about to be replaced by a sound one
    if known is None or _judged(known) != _judged(entry.content):
        return entry
    return Entry({**entry.content, "best_known": known["best_known"]}, str(path))


def _judged(content: Mapping[str, Any]) -> list[Any]:
    """What must be the same for images that broke a model to break it still."""
    suite = {key: content["suite"][key] for key in ("norm", "box", "epsilons")}
    fingerprint = content["data"]["fingerprint"]
    return [content["weights"]["sha256"], fingerprint, content["samples"], suite]


def _started(cell: Cell) -> str:
    return str(cell.manifest["provenance"]["started"])

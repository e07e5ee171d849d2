"""All records of a run folder as one flat table: CSV, Parquet or a DataFrame, shard by shard."""

from __future__ import annotations

import csv
import io
import json
import warnings
from contextlib import suppress
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from harness.errors import HarnessError, StoreError, UsageError
from harness.hints import did_you_mean
from harness.plugins import load_plugins
from harness.records import Record
from harness.scoring import copy_of
from harness.store import Store
from harness.suite import find_suite

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pandas as pd
    import pyarrow as pa

    from harness.registry import Registry
    from harness.store import CellFolder

CELL_COLUMNS = {
    "row": "str",
    "suite": "str",
    "suite_version": "int",
    "board": "str",
    "cell": "str",
    "precision": "str",
    "seed": "int",
}
"""What is the same for all records of a cell, with its type."""
RECORD_COLUMNS = {field.name: str(field.type) for field in fields(Record)}
del RECORD_COLUMNS["measures"]  # each has a column of its own
MEASURE = "measure."
BLOCK = 50_000
"""Records that are turned into one block of a Parquet file, or of a frame, at once."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Export:
    """The records that were asked for; read from the folder while the rows are taken.

    Attributes:
        columns: Names in their order, each with the type of its values.
        shards: Each cell's shared columns, its folder and the shards that can be read.
        damaged: Files that are left out: altered, or of another cell.
    """

    columns: Mapping[str, str]
    shards: tuple[tuple[Row, CellFolder, tuple[str, ...]], ...]
    damaged: tuple[Path, ...]

    def rows(self) -> Iterator[Row]:
        """One flat row for each record, with one shard in memory at a time.

        Raises:
            StoreError: A shard was altered since the export was planned.
        """
        for shared, folder, names in self.shards:
            for name in names:
                for line in _lines(folder, name):
                    yield shared | _flat(json.loads(line))


def read_records(
    folder: str | Path = "runs",
    suite: str | None = None,
    model: str | None = None,
    *,
    plugins: Sequence[str] = (),
) -> pd.DataFrame:
    """All records of a run folder, one a row; a damaged shard is left out with a warning.

    Args:
        folder: Run folder.
        suite: Name or .toml file of the only suite that is wanted.
        model: The only model, or model.recipe, that is wanted.
        plugins: Files or modules that bring suites, as `--plugin` takes them.

    Raises:
        HarnessError: There is no such run, suite or model.
    """
    found = plan_export(Store(Path(folder)), load_plugins(plugins), suite=suite, model=model)
    for path in found.damaged:
        warnings.warn(f"left out: {path}: altered, or of another cell", stacklevel=2)
    return as_frame(found)


def plan_export(
    store: Store, registry: Registry, *, suite: str | None = None, model: str | None = None
) -> Export:
    """The columns, the shards that can be read, and those that cannot.

    Raises:
        StoreError: No cell was opened there.
        UsageError: No cell is of that suite or model.
    """
    chosen = _chosen(store, suite and _suite_name(suite, registry), model)
    shards = []
    damaged: list[Path] = []
    measures: set[str] = set()
    for folder, manifest in chosen:
        readable = _readable(folder, damaged)
        measures.update(*readable.values())
        shards.append((_shared(folder, manifest, suite, registry), folder, tuple(readable)))
    own = {f"{MEASURE}{name}": "float | None" for name in sorted(measures)}
    return Export({**CELL_COLUMNS, **RECORD_COLUMNS, **own}, tuple(shards), tuple(damaged))


def write_csv(export: Export, file: TextIO) -> int:
    """Write a head and one line for each record; how many."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(export.columns)
    count = 0
    for row in export.rows():
        writer.writerow([row.get(name) for name in export.columns])
        count += 1
    return count


def write_csv_file(export: Export, file: BinaryIO) -> int:
    """Write the CSV as UTF-8 bytes; how many records."""
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    try:
        return write_csv(export, text)
    finally:
        text.detach()  # flushes, and leaves the file to whoever opened it


def write_parquet(export: Export, file: BinaryIO) -> int:
    """Write a Parquet file; how many records."""
    import pyarrow.parquet as pq  # noqa: PLC0415 - costs a second that other exports need not pay

    count = 0
    with pq.ParquetWriter(file, _schema(export)) as writer:
        for table in _tables(export):
            writer.write_table(table)
            count += table.num_rows
    return count


def as_frame(export: Export) -> pd.DataFrame:
    """The records as a DataFrame."""
    import pyarrow as pa  # noqa: PLC0415 - as above

    schema = _schema(export)
    table = pa.concat_tables(chain([schema.empty_table()], _tables(export)))
    frame: pd.DataFrame = table.to_pandas(split_blocks=True, self_destruct=True)
    return frame


def _chosen(
    store: Store, suite: str | None, model: str | None
) -> list[tuple[CellFolder, dict[str, Any]]]:
    """The cells that were asked for, with their manifests."""
    known = [(folder, folder.manifest() or {}) for folder in store.cells()]
    if not known:
        raise StoreError(
            f"{store.root}: holds no cell; name a run folder, as 'harness run' left it"
        )
    suites = {manifest["suite"]["name"] for _, manifest in known}
    if suite and suite not in suites:
        raise UsageError(
            f"{store.root}: holds nothing of suite {suite!r}{did_you_mean(suite, suites)}"
        )
    names = {manifest[name] for _, manifest in known for name in ("row", "model")}
    if model and model not in names:
        raise UsageError(
            f"{store.root}: holds nothing of model {model!r}{did_you_mean(model, names)}"
        )
    return [
        (folder, manifest)
        for folder, manifest in known
        if suite in (None, manifest["suite"]["name"])
        and model in (None, manifest["row"], manifest["model"])
    ]


def _suite_name(suite: str, registry: Registry) -> str:
    return find_suite(suite, registry).name if suite.endswith(".toml") else suite


def _shared(
    folder: CellFolder, manifest: Mapping[str, Any], suite: str | None, registry: Registry
) -> Row:
    name = manifest["suite"]["name"]
    return {
        "row": manifest["row"],
        "suite": name,
        "suite_version": manifest["suite"]["version"],
        "board": _board(suite or name, manifest, registry),
        "cell": folder.path.name,
        "precision": manifest["precision"],
        "seed": manifest["ingredients"]["seed"],
    }


def _board(suite: str, manifest: Mapping[str, Any], registry: Registry) -> str | None:
    """The board of a cell; None where the suite, which names the copies, is not at hand."""
    variant = (
        "@model-space" if manifest["ingredients"]["suite"]["data"]["canvas"] == "model" else ""
    )
    with suppress(HarnessError):
        found = find_suite(f"{suite}{variant}", registry)
        return found.board(copy_of(found, manifest))
    return None


def _readable(folder: CellFolder, damaged: list[Path]) -> dict[str, set[str]]:
    """The shards to read, with the measures in them: of those that limits cut, only the longest.

    A whole shard holds what a limited one of the same index holds, and both would count it twice.
    """
    longest: dict[str, tuple[str, list[str]]] = {}
    for name in folder.shard_names():
        lines = folder.lines(name)
        if lines is None:
            damaged.append(folder.shard_file(name))
            continue
        index = name.partition(".")[0]
        if index not in longest or _length(longest[index][0]) < _length(name):
            longest[index] = name, lines
    return {name: _measures(lines) for name, lines in longest.values()}


def _measures(lines: list[str]) -> set[str]:
    return {name for line in lines for name in json.loads(line)["measures"]}


def _length(name: str) -> float:
    _, _, first = name.partition(".first-")
    return int(first) if first else float("inf")


def _lines(folder: CellFolder, name: str) -> list[str]:
    lines = folder.lines(name)
    if lines is None:
        raise StoreError(
            f"{folder.shard_file(name)}: changed while it was read; run the command again"
        )
    return lines


def _flat(record: Row) -> Row:
    """A record as it lies in a shard, without lists and tables in it."""
    measures = record.pop("measures")
    return {
        "view": "full",
        **record,
        "flags": " ".join(record["flags"]),
        "labels": " ".join(str(label) for label in record.get("labels", ())),
        **{f"{MEASURE}{name}": value for name, value in measures.items()},
    }


def _schema(export: Export) -> pa.Schema:
    import pyarrow as pa  # noqa: PLC0415 - as above

    kinds = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}
    return pa.schema(
        [
            (name, kinds.get(kind.removesuffix(" | None"), pa.string()))
            for name, kind in export.columns.items()
        ]
    )


def _tables(export: Export) -> Iterator[pa.Table]:
    """The records in blocks."""
    import pyarrow as pa  # noqa: PLC0415 - as above

    schema, block = _schema(export), []
    for row in export.rows():
        block.append(row)
        if len(block) == BLOCK:
            yield pa.Table.from_pylist(block, schema=schema)
            block = []
    yield pa.Table.from_pylist(block, schema=schema)

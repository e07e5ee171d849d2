"""The leaderboard: finished cells to entries and a table that anybody can recompute."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from harness import plan
from harness.errors import UsageError
from harness.flags import FLAGS
from harness.report import cell_text
from harness.scoring import Cell, collect, copy_of, score
from harness.store import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from harness.registry import Registry
    from harness.store import Store
    from harness.suite import Suite

ENTRY_SCHEMA = 1
UNRANKED = (
    "limited",
    "other-attacks",
    "transfer",
    "partial-data",
    "partial-training",
    "missing-images",
)
"""Flags with which a row never enters the board."""


@dataclass(frozen=True)
class Board:
    """What can be published of a suite.

    Attributes:
        suite: Whose board it is.
        rows: Scored rows, best headline first.
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

    A row whose cell was measured more than once, with other plugins or weights, stands with the
    one that was started last.

    Raises:
        UsageError: Numbers of this suite never rank: a preview, or images outside [0, 1].
    """
    _refuse_unranked(suite)
    card = registry.find("datasets", suite.data.name).card
    ids = plan.sample_ids(suite, card)
    latest: dict[str, Cell] = {}
    others: set[str] = set()
    left_out = []
    for folder in store.cells():
        manifest = folder.manifest() or {}
        if manifest["ingredients"]["suite"] != json.loads(json.dumps(suite.science())):
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
        known = latest.get(manifest["row"])
        if known is None or _started(known) < _started(cell):
            latest[manifest["row"]] = cell
    _refuse_mixed_data(suite, latest.values())
    scored = [(score(suite, cell, registry), cell) for cell in latest.values()]
    scored.sort(key=lambda pair: _sort_key(pair[0], suite.headline))
    rows, cells = tuple(row for row, _ in scored), tuple(cell for _, cell in scored)
    left_out += [f"rows on another copy of the data: publish {name}" for name in sorted(others)]
    return Board(suite, rows, cells, tuple(left_out))


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


def publish(board: Board, out: Path, registry: Registry) -> Path:
    """Write the table and the entries behind it; the path of the table."""
    for row, cell in zip(board.rows, board.cells, strict=True):
        text = json.dumps(entry(board.suite, row, cell), indent=1, sort_keys=True)
        write_atomically(out / board.name / f"{row['model']}.json", (text + "\n").encode())
    path = out / f"{board.name}.md"
    write_atomically(path, page(board, registry).encode())
    return path


def entry(suite: Suite, row: Mapping[str, Any], cell: Cell) -> dict[str, Any]:
    """All that is behind one row: values, robust bits of every sample, provenance."""
    return {
        "schema": ENTRY_SCHEMA,
        "suite": {"name": suite.name, "version": suite.version, "board": suite.board(suite.copy)},
        "row": dict(row),
        "weights": cell.manifest["weights"],
        "ingredients": cell.manifest["ingredients"],
        "facts": cell.manifest["facts"],
        "checks": cell.checks.to_json(),
        "provenance": cell.manifest["provenance"],
        "samples": list(dict.fromkeys(record.sample for record in cell.records)),
        "bits": robust_bits(cell),
        "passes": {
            "forwards": sum(record.forwards for record in cell.records),
            "backwards": sum(record.backwards for record in cell.records),
        },
    }


def robust_bits(cell: Cell) -> dict[str, dict[str, str]]:
    """Of each attack and epsilon, one bit a sample: 1 where the model stays right.

    The bits follow the order of the entry's samples, most significant first, padded with zeros
    to whole bytes, in base64.
    """
    series: dict[str, dict[str, list[bool]]] = {}
    for record in cell.records:
        series.setdefault(record.attack, {}).setdefault(record.epsilon, []).append(record.is_robust)
    return {
        attack: {epsilon: pack(bits) for epsilon, bits in by_epsilon.items()}
        for attack, by_epsilon in series.items()
    }


def pack(bits: Sequence[bool]) -> str:
    """Bits as base64, most significant first.

    >>> pack([True, False, True])
    'oA=='
    """
    padded = [*bits, *[False] * (-len(bits) % 8)]
    number = int("".join("1" if bit else "0" for bit in padded) or "0", 2)
    return base64.b64encode(number.to_bytes(len(padded) // 8, "big")).decode()


def unpack(text: str, count: int) -> list[bool]:
    """The bits that `pack` wrote.

    >>> unpack('oA==', 3)
    [True, False, True]
    """
    content = base64.b64decode(text)
    return [bool(content[place // 8] >> (7 - place % 8) & 1) for place in range(count)]


def page(board: Board, registry: Registry) -> str:
    """The board in Markdown, GitHub flavour."""
    suite = board.suite
    heads = ["model", "recipe", *headings(suite, registry), "flags"]
    lines = [
        [
            f"[{row['model']}]({board.name}/{row['model']}.json)",
            row["recipe"] or "-",
            *cells(suite, row),
            ", ".join(row["flags"]) or "-",
        ]
        for row in board.rows
    ]
    table = tabulate(lines, headers=heads, tablefmt="github", disable_numparse=True)
    title = f"{suite.title}{f' ({board.name})' if board.name != suite.name else ''}"
    return "\n".join([f"# {title}", "", *_preface(board), "", table, *_legend(board), ""])


def headings(suite: Suite, registry: Registry) -> list[str]:
    """The heads of the metrics' columns; one for each epsilon where a metric has many."""
    found = []
    for name in suite.metrics:
        card = registry.find("metrics", name).card
        title = card.title or name
        if card.by_epsilon:
            found += [f"{title} {epsilon.text}" for epsilon in suite.epsilons]
        else:
            found.append(title)
    return found


def cells(suite: Suite, row: Mapping[str, Any]) -> list[str]:
    """The metrics of one row as text, in the order of `headings`."""
    found = []
    for name in suite.metrics:
        value = row[name.replace("-", "_")]
        if "value" in value:
            found.append(cell_text(value))
        else:
            found += [cell_text(value[epsilon.text]) for epsilon in suite.epsilons]
    return found


def _preface(board: Board) -> Iterable[str]:
    suite = board.suite
    attacks = ", ".join(f"`{attack.label}`" for attack in suite.attacks)
    n = max((row["n"] for row in board.rows), default=0)
    yield (
        f"Suite `{board.name}` version {suite.version}, protocol `{suite.protocol}`, norm "
        f"{suite.norm}, attacks {attacks}, n = {n} images of `{suite.data.name}/"
        f"{suite.data.split}`; sorted by the first accuracy or error at {suite.headline}."
    )
    yield (
        "Accuracies are percentages of all images with 95 % Wilson intervals; they speak of one "
        "checkpoint and of image sampling, not of training seeds."
    )
    yield "Robust: right on the clean image and under every attack of the list, image by image."
    for machine in sorted({_machine(cell) for cell in board.cells}):
        yield f"Computed on {machine}."


def _machine(cell: Cell) -> str:
    told = cell.manifest["provenance"]
    return (
        f"{told['machine']['device']} in float32, torch {told['versions']['torch']}, "
        f"seed {cell.manifest['ingredients']['seed']}"
    )


def _legend(board: Board) -> Iterable[str]:
    raised = sorted({flag for row in board.rows for flag in row["flags"]})
    if raised:
        yield ""
    for flag in raised:
        yield f"- `{flag}`: {FLAGS.get(flag, flag)}."


def _started(cell: Cell) -> str:
    return str(cell.manifest["provenance"]["started"])


def _sort_key(row: Mapping[str, Any], headline: str) -> tuple[float, float, str]:
    wrong = [row[name] for name in ("error_rate", "fdr_at_1") if name in row]
    right = [row[name] for name in ("mean_accuracy", "robust_accuracy") if name in row]
    values = [values[headline]["value"] or 0.0 for values in right]
    values += [1 - (values[headline]["value"] or 0.0) for values in wrong]
    robust = values[0] if values else 0.0
    clean = row.get("clean_accuracy", {}).get("value") or 0.0
    return -robust, -clean, row["model"]

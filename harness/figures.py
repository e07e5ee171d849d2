"""Figures of a suite's rows as plain numbers: what is drawn, and what stands in their tables."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.errors import UnknownName

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from harness.leaderboard import Board
    from harness.registry import Registry

FEWEST_COUNTS = 3
"""Numbers of experts from which on rows make a sweep."""


class Point(NamedTuple):
    """A number with its interval, somewhere along a line; no value where there is a reason."""

    x: float
    value: float | None
    low: float | None
    high: float | None
    n: int | None
    reason: str = ""

    @property
    def opposite(self) -> Point:
        """One minus a share: the error of an accuracy."""
        value = None if self.value is None else 1 - self.value
        low = None if self.high is None else 1 - self.high
        high = None if self.low is None else 1 - self.low
        return self._replace(value=value, low=low, high=high)


class Line(NamedTuple):
    """Points of one name."""

    name: str
    points: tuple[Point, ...]

    @property
    def drawn(self) -> tuple[Point, ...]:
        """Those that have a value."""
        return tuple(point for point in self.points if point.value is not None)


class Panel(NamedTuple):
    """Lines over shared axes."""

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Picture:
    """One figure.

    Attributes:
        name: Stem of its files.
        title: Above it.
        x_label: Under the horizontal axes.
        y_label: Beside the vertical ones.
        panels: Side by side.
        is_doubling: The horizontal axis counts doublings.
        is_scatter: Each line is a single point, its x a share with an interval of its own.
        spread: Lowest and highest x of each point of a scatter.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    panels: tuple[Panel, ...]
    is_doubling: bool = False
    is_scatter: bool = False
    spread: tuple[tuple[float, float], ...] = ()


HEADS = ("figure", "panel", "line", "x", "value", "low", "high", "n", "reason")


def pictures(board: Board, registry: Registry) -> tuple[Picture, ...]:
    """All figures that a board's rows make."""
    made = [*_errors(board), *_curves(board, registry), *_sweep(board, registry), *_scatter(board)]
    return tuple(made)


def as_csv(picture: Picture) -> str:
    """Every number of a figure, also those that could not be drawn, with the reason."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADS)
    for panel in picture.panels:
        for line in panel.lines:
            writer.writerows(
                [picture.name, panel.title, line.name, *point] for point in line.points
            )
    return text.getvalue()


def _errors(board: Board) -> Iterator[Picture]:
    """Error over epsilon, one line a row, from the clean error at 0."""
    lines = [Line(_name(row), tuple(_row_errors(board, row))) for row in board.rows]
    if any(line.drawn for line in lines):
        yield Picture(
            "error",
            f"{board.suite.title}: all attacks together",
            _epsilon_label(board),
            "error (1 - accuracy)",
            (Panel("", tuple(lines)),),
        )


def _row_errors(board: Board, row: Mapping[str, Any]) -> Iterator[Point]:
    if "clean_accuracy" in row:
        yield _point(0.0, row["clean_accuracy"]).opposite
    for epsilon in board.suite.epsilons:
        x = _scaled(board, epsilon.value)
        if "error_rate" in row:
            yield _point(x, row["error_rate"][epsilon.text])
        elif "robust_accuracy" in row:
            yield _point(x, row["robust_accuracy"][epsilon.text]).opposite


def _curves(board: Board, registry: Registry) -> Iterator[Picture]:
    """Each curve of the suite: a panel for each row and layer, a line for each series."""
    for name in board.suite.curves:
        card = registry.find("metrics", name).card
        unit = "" if card.unit == "share" else f" ({card.unit})"
        yield Picture(
            name,
            f"{board.suite.title}: {card.title or name}",
            _epsilon_label(board),
            f"{card.title or name}{unit}",
            tuple(
                panel
                for row in board.rows
                for panel in _panels(board, _name(row), row[name.replace("-", "_")])
            ),
        )


def _panels(board: Board, row: str, points: Sequence[Mapping[str, Any]]) -> Iterator[Panel]:
    values = {epsilon.text: epsilon.value for epsilon in board.suite.epsilons}
    found: dict[str, dict[str, list[Point]]] = {}
    for item in points:
        x = _scaled(board, values[item["epsilon"]])
        found.setdefault(item["group"], {}).setdefault(item["series"], []).append(_point(x, item))
    for group, lines in found.items():
        title = f"{row}, {group}" if group else row
        yield Panel(title, tuple(Line(name, tuple(line)) for name, line in lines.items()))


def _sweep(board: Board, registry: Registry) -> Iterator[Picture]:
    """Error and routing change over the number of experts, for rows that differ in it alone."""
    counted = sorted(_counted(board, registry), key=lambda pair: pair[0])
    if len({count for count, _ in counted}) < FEWEST_COUNTS:
        return
    lines: dict[str, list[Point]] = {}
    moved: dict[str, list[Point]] = {}
    for count, row in counted:
        for name, value in _sweep_errors(board, row):
            lines.setdefault(name, []).append(value._replace(x=float(count)))
        for item in row.get("routing_change_executed", ()):
            if item["epsilon"] == board.suite.headline:
                name = f"{item['series'] or 'no routes'} {item['group']}".strip()
                moved.setdefault(name, []).append(_point(float(count), item))
    panels = [Panel("error (1 - accuracy)", _as_lines(lines))]
    if moved:
        title = f"routing change at {board.suite.headline}"
        panels.append(Panel(title, _as_lines(moved)))
    yield Picture("experts", board.suite.title, "experts", "share", tuple(panels), is_doubling=True)


def _counted(board: Board, registry: Registry) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The rows of the commonest recipe and lowest seed that have experts, with their number."""
    recipes = [cell.manifest["recipe"] for cell in board.cells]
    commonest = max(set(recipes), key=recipes.count) if recipes else ""
    seed = min((row["seed"] for row in board.rows), default=0)
    for row, cell in zip(board.rows, board.cells, strict=True):
        count = _num_experts(cell.manifest["model"], registry)
        if count and row["seed"] == seed and cell.manifest["recipe"] == commonest:
            yield count, row


def _num_experts(model: str, registry: Registry) -> int | None:
    try:
        count: int | None = registry.find("models", model).card.num_experts
    except UnknownName:
        return None
    return count


def _sweep_errors(board: Board, row: Mapping[str, Any]) -> Iterator[tuple[str, Point]]:
    names = ["clean", *(f"epsilon {epsilon.text}" for epsilon in board.suite.epsilons)]
    return zip(names, _row_errors(board, row), strict=False)


def _as_lines(found: Mapping[str, Sequence[Point]]) -> tuple[Line, ...]:
    return tuple(Line(name, tuple(points)) for name, points in found.items())


def _scatter(board: Board) -> Iterator[Picture]:
    """Robust accuracy at the headline over clean accuracy: what a recipe pays, and for what."""
    lines, spread = [], []
    for row in board.rows:
        errors = list(_row_errors(board, row))
        texts = [epsilon.text for epsilon in board.suite.epsilons]
        if "clean_accuracy" not in row or len(errors) <= len(texts):
            return
        clean, robust = errors[0].opposite, errors[1 + texts.index(board.suite.headline)].opposite
        if clean.value is None or clean.low is None or clean.high is None:
            continue
        lines.append(Line(_name(row), (robust._replace(x=clean.value),)))
        spread.append((clean.low, clean.high))
    if len(lines) > 1:
        yield Picture(
            "clean-against-robust",
            board.suite.title,
            "clean accuracy",
            f"robust accuracy at {board.suite.headline}",
            (Panel("", tuple(lines)),),
            is_scatter=True,
            spread=tuple(spread),
        )


def _point(x: float, told: Mapping[str, Any]) -> Point:
    return Point(x, told["value"], told["low"], told["high"], told["n"], told.get("reason", ""))


def _scaled(board: Board, epsilon: float) -> float:
    """Epsilon as the axis shows it: in Linf in steps of 8-bit pixels."""
    return 255 * epsilon if board.suite.norm == "linf" else epsilon


def _epsilon_label(board: Board) -> str:
    norm = board.suite.norm
    return {"linf": "epsilon x 255 (Linf)", "l2": "epsilon (L2)"}.get(norm, norm)


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['model']} (seed {row['seed']})" if row["seed"] else str(row["model"])


def drawable(panels: Iterable[Panel]) -> tuple[Panel, ...]:
    """The panels with at least one value, without lines that have none."""
    kept = [
        Panel(panel.title, tuple(line for line in panel.lines if line.drawn)) for panel in panels
    ]
    return tuple(panel for panel in kept if panel.lines)

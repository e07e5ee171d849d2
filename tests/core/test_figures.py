"""Figures: the numbers behind them, what is left out, and files that two drawings share."""

from __future__ import annotations

import csv
import io
import sys
from types import SimpleNamespace

import pytest

from harness.drawing import drawn
from harness.errors import UsageError
from harness.figures import Line, Panel, Picture, Point, as_csv, drawable, pictures
from harness.leaderboard import Board
from harness.suite import find_suite


def value(number, low=None, high=None, reason=""):
    return {"value": number, "low": low, "high": high, "n": 10, "reason": reason}


def curve(series, epsilon, number, reason=""):
    return {"group": "layer 0", "series": series, "epsilon": epsilon, **value(number, 0, 1, reason)}


def row(model, clean, robust, *, changes=()):
    return {
        "model": f"{model}.standard",
        "seed": 0,
        "clean_accuracy": value(clean, clean - 0.1, clean + 0.1),
        "robust_accuracy": {"8/255": value(robust, 0, 1), "32/255": value(robust / 2, 0, 1)},
        "routing_change_executed": list(changes),
    }


SUITE = """
name = "drawn"
version = 1
metrics = ["clean-accuracy", "robust-accuracy"]
curves = ["routing-change-executed"]
[data]
name = "digits"
[threat]
norm = "linf"
epsilons = ["8/255", "32/255"]
headline = "8/255"
[[attacks]]
name = "pgd"
"""


@pytest.fixture
def board(tmp_path, registry):
    """Makes a board of rows."""

    def call(*rows):
        path = tmp_path / "drawn.toml"
        path.write_text(SUITE)
        models = [item["model"].removesuffix(".standard") for item in rows]
        cells = [
            SimpleNamespace(manifest={"recipe": "standard", "model": model}) for model in models
        ]
        return Board(find_suite(str(path), registry), rows, tuple(cells), ())

    return call


def named(found, name):
    [picture] = [item for item in found if item.name == name]
    return picture


def test_errors_begin_with_the_clean_error_and_turn_intervals_over(board, registry):
    picture = named(pictures(board(row("vit/digits", 0.75, 0.5)), registry), "error")

    [line] = picture.panels[0].lines
    assert [(point.x, point.value) for point in line.points] == [(0, 0.25), (8, 0.5), (32, 0.75)]
    assert line.points[0].low == pytest.approx(1 - 0.85)
    assert line.points[0].high == pytest.approx(1 - 0.65)


def test_a_curve_has_a_panel_for_each_row_and_layer(board, registry):
    changes = [curve("pgd", "8/255", 0.5), curve("chance", "8/255", 0.75)]

    found = pictures(board(row("vmoe/digits", 0.9, 0.5, changes=changes)), registry)

    [panel] = named(found, "routing-change-executed").panels
    assert panel.title == "vmoe/digits.standard, layer 0"
    assert [line.name for line in panel.lines] == ["pgd", "chance"]


def test_a_number_that_is_missing_is_told_but_not_drawn(board, registry):
    changes = [curve("pgd", "8/255", None, reason="no routes")]
    dense = row("vit/digits", 0.9, 0.5, changes=changes)

    picture = named(pictures(board(dense), registry), "routing-change-executed")

    [told] = csv.DictReader(io.StringIO(as_csv(picture)))
    assert (told["value"], told["reason"], told["x"]) == ("", "no routes", "8.0")
    assert drawable(picture.panels) == ()
    assert drawn(picture) is None


def test_three_numbers_of_experts_make_a_sweep_in_their_order(board, registry):
    rows = [
        row(f"vmoe/digits-e{count}", 1.0, 0.5, changes=[curve("pgd", "8/255", count / 100)])
        for count in (16, 2, 4)
    ]

    picture = named(pictures(board(*rows), registry), "experts")

    errors, moved = picture.panels
    assert [line.name for line in errors.lines] == ["clean", "epsilon 8/255", "epsilon 32/255"]
    assert [point.x for point in errors.lines[0].points] == [2, 4, 16]
    assert [point.value for point in moved.lines[0].points] == [0.02, 0.04, 0.16]


def test_two_numbers_of_experts_make_none(board, registry):
    rows = [row(f"vmoe/digits-e{count}", 1.0, 0.5) for count in (2, 4)]

    assert "experts" not in {item.name for item in pictures(board(*rows), registry)}


def test_a_scatter_sets_robust_against_clean_accuracy_at_the_headline(board, registry):
    rows = (row("vit/digits", 0.75, 0.5), row("vmoe/digits", 0.9, 0.25))

    picture = named(pictures(board(*rows), registry), "clean-against-robust")

    points = [line.points[0] for line in picture.panels[0].lines]
    assert [(point.x, point.value) for point in points] == [(0.75, 0.5), (0.9, 0.25)]


def picture_of(*names):
    lines = [Line(name, (Point(1, 0.5, 0.4, 0.6, 9), Point(2, 0.7, 0.6, 0.8, 9))) for name in names]
    return Picture("one", "One", "x", "y", (Panel("left", tuple(lines)),))


def test_a_figure_is_drawn_as_png_and_svg_and_alike_each_time():
    first, second = (drawn(picture_of("pgd", "noise like pgd", "chance")) for _ in range(2))

    assert first["png"].startswith(b"\x89PNG")
    assert b"<svg" in first["svg"]
    assert first == second


def test_more_lines_than_can_be_told_apart_are_not_drawn():
    assert drawn(picture_of(*(f"expert {place}" for place in range(9)))) is None


def test_figures_without_matplotlib_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    with pytest.raises(UsageError, match=r"harness\[report\]"):
        drawn(picture_of("pgd"))

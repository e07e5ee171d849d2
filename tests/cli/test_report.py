"""`harness report`: figures and tables of a real run."""

from __future__ import annotations

import csv
import io

CURVES = 'curves = ["error-by-attack"]\nmetrics = ["clean-accuracy", "error-rate"]'


def test_a_run_is_drawn_with_its_numbers(harness, finished, tmp_path):
    suite = tmp_path / "tiny.toml"
    text = suite.read_text()
    suite.write_text(text.replace('metrics = ["clean-accuracy", "robust-accuracy", "auc"]', CURVES))

    done = harness("report", "runs", "--suite", "tiny.toml", "--to", "figures")

    assert done.code == 0, done.err
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"error.png", "error.svg", "error.csv", "error-by-attack.csv"} <= names
    rows = list(
        csv.DictReader(io.StringIO((tmp_path / "figures" / "error-by-attack.csv").read_text()))
    )
    assert {row["line"] for row in rows} == {"clean", "noise", "pgd"}
    assert {row["n"] for row in rows} == {"20"}


def test_tables_alone_hold_no_figures(harness, finished, tmp_path):
    done = harness("report", "--suite", "tiny.toml", "--tables")

    assert done.code == 0, done.err
    assert {path.suffix for path in (tmp_path / "report").iterdir()} == {".csv"}


def test_a_folder_without_rows_says_how_to_make_them(harness, tiny):
    done = harness("report", "runs", "--suite", "tiny.toml")

    assert done.code == 2
    assert "harness run --suite tiny.toml" in " ".join(done.err.split())


def test_a_row_that_is_not_there_is_told_with_its_neighbour(harness, finished):
    done = harness("report", "--suite", "tiny.toml", "--model", "cnn/digits.standad")

    assert done.code == 2
    assert "did you mean 'cnn/digits.standard'?" in done.err


def test_rows_are_chosen_by_name(harness, finished, tmp_path):
    done = harness("report", "--suite", "tiny.toml", "--tables", "--model", "cnn/digits.standard")

    assert done.code == 0, done.err
    rows = list(csv.DictReader(io.StringIO((tmp_path / "report" / "error.csv").read_text())))
    assert {row["line"] for row in rows} == {"cnn/digits.standard"}

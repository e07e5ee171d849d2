"""Records as one flat table: every record once, in every format the same."""

from __future__ import annotations

import csv
import io

import pandas as pd
import pytest

import harness
from harness.errors import StoreError, UsageError
from harness.export import as_frame, plan_export, write_csv, write_parquet
from harness.records import Record
from harness.store import Shard, Store

FIRST = Shard(0, (0, 1))
SECOND = Shard(1, (2,))
CUT = Shard(1, (2,), is_whole=False)


def record(sample, **changes):
    return Record(sample, "pgd", "8/255", 1, 1, 0.5, 2, -0.5, **changes)


def opened(root, key, *, row="cnn/digits.standard", suite="mine", canvas=(1, 8, 8)):
    cell = Store(root).cell(key)
    cell.write_manifest(
        {
            "row": row,
            "model": row.partition(".")[0],
            "suite": {"name": suite, "version": 3},
            "precision": "float32",
            "images": {"fingerprint": "f", "is_prefix": False},
            "ingredients": {"seed": 7, "suite": {"data": {"canvas": canvas}}},
        }
    )
    return cell


def test_every_record_is_a_row_with_its_cell(registry, tmp_path):
    cell = opened(tmp_path, "key")
    cell.write(FIRST, [record(0, flags=("a", "b")), record(1, labels=(1, 4), measures={"m": 2.0})])

    frame = as_frame(plan_export(Store(tmp_path), registry))

    assert list(frame["sample"]) == [0, 1]
    assert list(frame["flags"]) == ["a b", ""]
    assert list(frame["labels"]) == ["", "1 4"]
    assert frame["measure.m"].isna().tolist() == [True, False]
    assert frame.loc[1, "measure.m"] == 2.0
    assert set(frame["row"]) == {"cnn/digits.standard"}
    assert set(frame["cell"]) == {"key"}
    assert set(frame["seed"]) == {7}
    assert set(frame["suite_version"]) == {3}
    assert set(frame["view"]) == {"full"}


@pytest.mark.parametrize(
    ("suite", "canvas", "board"),
    [
        pytest.param("digits-linf", (1, 8, 8), "digits-linf@f", id="another copy"),
        pytest.param("digits-linf", "model", "digits-linf@model-space@f", id="in model space"),
        pytest.param("mine", (1, 8, 8), None, id="of a suite that is not at hand"),
    ],
)
def test_the_board_is_told_where_the_suite_is_at_hand(registry, tmp_path, suite, canvas, board):
    opened(tmp_path, "key", suite=suite, canvas=canvas).write(FIRST, [record(0), record(1)])

    [first, _] = plan_export(Store(tmp_path), registry).rows()

    assert first["board"] == board


def test_all_formats_hold_the_same(registry, tmp_path):
    cell = opened(tmp_path, "key")
    cell.write(FIRST, [record(0, reason='a, "b"\nc', best_loss=0.1 + 0.2), record(1, norm=1e-9)])
    export = plan_export(Store(tmp_path), registry)
    text, packed = io.StringIO(), io.BytesIO()

    counts = write_csv(export, text), write_parquet(export, packed)

    frame = as_frame(export)
    lines = list(csv.DictReader(io.StringIO(text.getvalue())))
    pd.testing.assert_frame_equal(pd.read_parquet(packed), frame)
    assert counts == (2, 2)
    assert [line["reason"] for line in lines] == ['a, "b"\nc', ""]
    assert [float(line["norm"]) for line in lines] == list(frame["norm"])
    assert float(lines[0]["best_loss"]) == frame.loc[0, "best_loss"] == 0.1 + 0.2
    assert list(lines[0]) == list(frame.columns)


def test_of_shards_that_limits_cut_no_record_is_told_twice(registry, tmp_path):
    cell = opened(tmp_path, "key")
    cell.write(Shard(0, (0,), is_whole=False), [record(0)])
    cell.write(FIRST, [record(0), record(1)])
    cell.write(CUT, [record(2)])

    rows = list(plan_export(Store(tmp_path), registry).rows())

    assert [row["sample"] for row in rows] == [0, 1, 2]


def test_a_damaged_shard_is_named_and_its_limited_part_stands_for_it(registry, tmp_path):
    cell = opened(tmp_path, "key")
    cell.write(CUT, [record(2)])
    cell.write(SECOND, [record(2)])
    cell.shard_file("00001").write_text("torn")

    found = plan_export(Store(tmp_path), registry)

    assert found.damaged == (cell.shard_file("00001"),)
    assert [row["sample"] for row in found.rows()] == [2]


def test_a_shard_that_changes_while_it_is_read_ends_the_export(registry, tmp_path):
    cell = opened(tmp_path, "key")
    cell.write(FIRST, [record(0), record(1)])
    found = plan_export(Store(tmp_path), registry)

    cell.shard_file("00000").unlink()

    with pytest.raises(StoreError, match="changed while it was read; run the command again"):
        list(found.rows())


@pytest.mark.parametrize(
    ("wanted", "rows"),
    [
        ({}, ["a.x", "a.y", "b"]),
        ({"suite": "mine"}, ["a.x", "b"]),
        ({"model": "a"}, ["a.x", "a.y"]),
        ({"model": "a.y"}, ["a.y"]),
        ({"model": "a", "suite": "mine"}, ["a.x"]),
    ],
    ids=str,
)
def test_suite_and_model_choose_cells(tmp_path, wanted, rows):
    opened(tmp_path, "1", row="a.x").write(SECOND, [record(2)])
    opened(tmp_path, "2", row="a.y", suite="other").write(SECOND, [record(2)])
    opened(tmp_path, "3", row="b").write(SECOND, [record(2)])

    frame = harness.read_records(tmp_path, **wanted)

    assert list(frame["row"]) == rows


def test_a_suite_may_be_given_as_its_file(tmp_path, tiny):
    opened(tmp_path / "runs", "1", suite="tiny").write(SECOND, [record(2)])

    frame = harness.read_records(tmp_path / "runs", suite=str(tiny))

    assert list(frame["board"]) == ["tiny"]


@pytest.mark.parametrize(
    ("wanted", "remedy"),
    [({"suite": "mien"}, "did you mean 'mine'"), ({"model": "cnn/digit"}, "did you mean 'cnn/")],
    ids=["suite", "model"],
)
def test_what_the_folder_does_not_hold_is_refused_with_a_hint(tmp_path, wanted, remedy):
    opened(tmp_path, "key")

    with pytest.raises(UsageError, match=remedy):
        harness.read_records(tmp_path, **wanted)


def test_a_folder_without_cells_is_refused(tmp_path):
    with pytest.raises(StoreError, match="holds no cell; name a run folder"):
        harness.read_records(tmp_path)


def test_a_frame_of_no_records_has_its_columns(tmp_path):
    opened(tmp_path, "key")

    frame = harness.read_records(tmp_path)

    assert len(frame) == 0
    assert {"row", "sample", "adversarial_margin"} <= set(frame.columns)


def test_python_is_warned_of_a_damaged_shard(tmp_path):
    cell = opened(tmp_path, "key")
    cell.write(SECOND, [record(2)])
    cell.shard_file("00000").write_text("torn")

    with pytest.warns(UserWarning, match=r"left out: .*00000\.jsonl: altered, or of another cell"):
        frame = harness.read_records(tmp_path)

    assert len(frame) == 1

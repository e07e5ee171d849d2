"""The records as a table, and the run folders of two machines made one."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from run_folders import KILLED, SUITE, cell_of, contents, events, flat, shard_of


def test_records_go_to_stdout_and_to_files_alike(harness, finished, tmp_path):
    import pandas as pd

    printed = harness("records", "--suite", "tiny.toml")
    written = harness("records", "runs", "--to", "csv", "--out", "table.csv", *SUITE)
    packed = harness("records", "--to", "parquet", "--out", "table.parquet")

    rows = list(csv.DictReader(io.StringIO(printed.out)))
    assert (printed.code, written.code, packed.code) == (0, 0, 0)
    assert (tmp_path / "table.csv").read_text() == printed.out
    assert len(rows) == len(pd.read_parquet(tmp_path / "table.parquet")) == 80
    assert {row["board"] for row in rows} == {"tiny"}
    assert "80 records of 1 cells" in printed.err


def test_the_line_of_python_that_the_command_shows_gives_all_records(harness, finished, tmp_path):
    shown = harness("records", "--to", "pandas", "--model", "cnn/digits")

    line = shown.out.splitlines()[-1]
    done = subprocess.run(
        [sys.executable, "-c", f"{line}; import sys; print(len(frame), 'torch' in sys.modules)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "80 records" in shown.out
    assert done.stdout == "80 False\n", done.stderr


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["--to", "parquet"], "add --out FILE"),
        (["--to", "pandas", "--out", "x"], "takes --to csv or parquet"),
        (["--suite", "tinny"], "did you mean 'tiny'"),
    ],
    ids=["no file", "a file", "no such suite"],
)
def test_what_records_cannot_do_is_a_usage_error(harness, finished, arguments, remedy):
    done = harness("records", *arguments)

    assert (done.code, done.out) == (2, "")
    assert remedy in flat(done.err)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    "line",
    [
        "records --out /dev/full",
        "records > /dev/full",
        "ls models > /dev/full",
        "publish --suite tiny.toml --json > /dev/full",
    ],
)
def test_an_output_without_room_is_explained(finished, tmp_path, line):
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m harness {line}"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "HARNESS_DATA"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert "o space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert Path("/dev/full").is_char_device()


def test_a_table_that_hits_a_full_disk_keeps_the_old_one(limited, finished, tmp_path):
    (tmp_path / "table.csv").write_text("old")

    done = limited(5000, "records", "--out", "table.csv")

    assert done.code == 1
    assert "File too large" in done.err
    assert (tmp_path / "table.csv").read_text() == "old"
    assert not list(tmp_path.glob("*.part"))


def test_folders_of_disjoint_cells_are_merged_by_copying(harness, two_seeds, finished, tmp_path):
    other = cell_of(two_seeds / "runs", seed=1)

    subprocess.run(["cp", "-r", other, finished], check=True)
    table = harness("records")
    published = harness("publish", *SUITE)

    assert len(table.out.splitlines()) == 2 * 80 + 1
    assert published.code == 0, published.err


def test_a_merge_that_was_killed_is_made_again(harness, killed, finished, tmp_path):
    dead = killed(r"os.rename 00001\.jsonl$", "merge", "runs", "--into", "copy")
    half = contents(tmp_path / "copy")
    again = harness("merge", "runs", "--into", "copy", "--json")
    third = harness("merge", "runs", "--into", "copy")

    assert dead.code == KILLED
    assert half.items() < contents(finished).items()
    assert json.loads(again.out)["copied"]["shards"] == 2
    assert "copied nothing" in third.out
    assert contents(tmp_path / "copy") == contents(finished)


def test_a_merged_folder_goes_on_where_the_other_was(harness, finished, tmp_path):
    unbroken = contents(finished)
    shard_of(finished, 2).unlink()

    harness("merge", "runs", "--into", "copy")
    done = harness("run", *SUITE, "--out", "copy")

    assert done.code == 0, done.err
    assert "2 shards were finished before; 1 to do" in done.err
    assert contents(tmp_path / "copy") == unbroken


def test_a_merge_names_what_is_damaged_and_what_differs(harness, two_seeds, finished, tmp_path):
    shutil.copytree(two_seeds / "runs", tmp_path / "other")
    mine, theirs = shard_of(finished, 0), shard_of(tmp_path / "other", 1)
    theirs.write_bytes(theirs.read_bytes()[:-9])
    forge(mine)

    done = harness("merge", "other", "--into", "runs")

    assert done.code == 3
    assert "non-determinism: other" in flat(done.err)
    assert "00001.jsonl: altered, or of another cell" in flat(done.err)
    assert len(list(finished.glob("*/shards/*.jsonl"))) == 6
    assert "non-determinism" in events(finished)


def forge(path):
    """Another outcome of a shard, confirmed by its last line as a run would confirm it."""
    from hashlib import sha256

    *lines, end = (
        path.read_text().replace('"clean_prediction":0', '"clean_prediction":1').split("\n")[:-1]
    )
    body = "".join(f"{line}\n" for line in lines)
    told = {**json.loads(end), "sha256": sha256(body.encode()).hexdigest()}
    path.write_text(f"{body}{json.dumps(told)}\n")

"""From a run to a board that others check, compare, try again and break."""

from __future__ import annotations

import json
import shutil

import pytest

from harness.entries import read_entry

ENTRY = "leaderboard/tiny/cnn/digits.standard.json"


def change(path, alter):
    content = json.loads(path.read_text())
    alter(content)
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def test_an_honest_board_is_valid(harness, tiny, published):
    done = harness("validate", "--suite", tiny, "--before", "leaderboard", "--json")

    assert done.code == 0, done.err
    assert json.loads(done.out) == {"suite": "tiny", "findings": []}
    assert read_entry(published / ENTRY).content["evaluator"] == "the tests"


def test_an_altered_value_is_found_and_named(harness, tiny, published):
    path = published / ENTRY
    change(path, lambda content: content["values"]["clean-accuracy"].update(value=0.99))

    done = harness("validate", "--suite", tiny)

    assert done.code == 1
    assert f"error: {ENTRY}: clean-accuracy is not what its bits give" in done.out


def test_errors_that_keep_an_entry_from_a_replay_are_said_to(harness, tiny, published):
    change(published / ENTRY, lambda content: content["values"].pop("auc"))

    done = harness("validate", "--suite", tiny, "--entry", ENTRY, "--replay", 3)

    assert done.code == 1
    assert f"error: {ENTRY}: value 'auc' is missing" in done.out
    assert f"note: {ENTRY}: no image was attacked again, because of the errors above" in done.out
    assert "1 errors, 1 notes" in done.err


def test_the_name_of_a_file_cannot_write_lines_of_its_own(harness, tiny, published):
    (published / "leaderboard/tiny/x\n::error::y.txt").write_text("")

    done = harness("validate", "--suite", tiny)

    assert "x?::error::y.txt: is no entry" in done.out
    assert "\n::error" not in done.out


def test_an_unreadable_entry_stops_publishing_with_its_name(harness, tiny, published):
    (published / "leaderboard/tiny/other.json").write_text("{")

    done = harness("publish", "--suite", tiny)

    assert done.code == 1
    assert "other.json: not JSON" in done.err
    assert "Traceback" not in done.err


def test_a_run_folder_cannot_write_outside_the_board(harness, tiny, published):
    [manifest] = published.glob("runs/*/manifest.json")
    change(manifest, lambda content: content.update(row="../../../outside"))

    done = harness("publish", "--suite", tiny)

    assert done.code == 1
    assert "model/row" in done.err
    assert list(published.rglob("outside*")) == []


def test_pages_alone_can_be_written_again(harness, tiny, published):
    before = (published / "leaderboard/tiny.md").read_bytes()
    (published / "leaderboard/tiny.md").unlink()
    shutil.rmtree(published / "runs")

    done = harness("publish", "--suite", tiny)

    assert done.code == 0, done.err
    assert (published / "leaderboard/tiny.md").read_bytes() == before


def test_two_seeds_make_two_entries_and_one_row(harness, tiny, published):
    ran = harness("run", "--suite", tiny, "--seeds", 2, "--json")
    done = harness("publish", "--suite", tiny)

    assert [row["seed"] for row in json.loads(ran.out)["rows"]] == [0, 1]
    assert "2 rows of runs; 1 ranked, 0 below" in done.err
    assert (published / ENTRY.replace(".json", "@seed1.json")).is_file()
    assert (published / "leaderboard/tiny.md").read_text().count("[cnn/digits.standard") == 1
    assert harness("validate", "--suite", tiny).code == 0
    told = harness(
        "compare", "cnn/digits.standard", "cnn/digits.standard (seed 1)", "--suite", tiny
    )
    assert "Verdict: cannot be told apart" in told.out


def test_rows_are_compared_in_numbers_for_machines(harness, tiny, published):
    row = "cnn/digits.standard"

    done = harness("compare", row, row, "--suite", tiny, "--epsilon", "8/255", "--json")

    [item] = json.loads(done.out)["comparisons"]
    assert item["found"]["difference"] == 0
    assert item["verdict"] == "cannot be told apart"


PAPER = """
suite = "tiny"
model = "vmoe/paper"
n = 1000
source = "A paper, table 1"
url = "https://example.org/paper"
protocol = "PGD-40"
licence = "unknown"
values.clean-accuracy = 90
"""


def test_reported_numbers_stand_below_the_line_and_the_board_is_valid(harness, tiny, published):
    (published / "paper.toml").write_text(PAPER)
    (published / "bad.toml").write_text(PAPER.replace("90", "900"))

    done = harness("publish", "--suite", tiny, "--reported", "paper.toml")
    valid = harness("validate", "--suite", tiny)
    refused = harness("publish", "--suite", tiny, "--reported", "bad.toml")

    assert done.code == 0, done.err
    assert "1 ranked, 1 below" in done.err
    assert "https://example.org/paper" in (published / "leaderboard/tiny.md").read_text()
    assert valid.code == 0, valid.out
    assert "vmoe/paper.json: is reported: nobody can check it" in valid.out
    assert refused.code == 1
    assert "must be per cent, from 0 to 100, not '900'" in refused.err


BAD = [
    (["compare", "cnn/digits.standard"], 2, "two rows or more"),
    (["compare", "cnn/digits.standrd", "x"], 2, "did you mean 'cnn/digits.standard'"),
    (["compare", "a", "b", "--epsilon", "9/255"], 2, "the suite has 8/255, 32/255"),
    (["compare", "a", "b", "--recipes", "--epsilon", "9/255"], 2, "the suite has 8/255, 32/255"),
    (["compare", "a", "b", "--recipes"], 2, "row 'a' is not on the board"),
    (["validate", "--board", "nowhere"], 2, "no such board"),
    (["validate", "--replay", "3"], 2, "name it with --entry"),
    (["validate", "--entry", "gone.json"], 1, "cannot be read"),
    (["break", ENTRY, "gone.npz", "--source", "x"], 2, "not an npz file"),
    (["break", ENTRY, "tiny.toml", "--source", "x"], 2, "not an npz file"),
    (["break", ENTRY, "gone.npz", "--source", "x", "--epsilon", "9/255"], 2, "the suite has 8/255"),
]


@pytest.mark.parametrize(("arguments", "code", "remedy"), BAD, ids=[" ".join(r[0]) for r in BAD])
def test_what_cannot_be_is_one_line_with_the_remedy(
    harness, tiny, published, arguments, code, remedy
):
    done = harness(*arguments, "--suite", tiny)

    assert (done.code, remedy in done.err) == (code, True), done.err
    assert "Traceback" not in done.err

"""Rows of published numbers: never ranked, shown with their source."""

from __future__ import annotations

import copy
import csv
import io
import json

import pytest

from harness.entries import Entry, read_entry, written
from harness.errors import EntryError, HarnessError, UsageError
from harness.leaderboard import Board, add_reported, write_pages
from harness.reported import read_reported
from harness.validate import check_board, check_change, check_entry

PAPER = """
suite = "ten"
model = "vmoe/paper"
recipe = "their-own"
n = 1000
num_experts = 8
num_selected = 2
source = "Jane Doe et al., 2026, table 3"
url = "https://example.org/abs/1234.5678"
protocol = "PGD of 40 steps, last iterate, clean errors left out"
licence = "numbers: CC BY 4.0; weights: not released"

[values]
clean-accuracy = 91.3

[values.robust-accuracy]
"16/255" = 40
"""


@pytest.fixture
def read(ten, registry, tmp_path):
    """Reads a file of reported numbers, with something put in another's place."""

    def call(old="", new="", text=PAPER):
        assert old in text
        path = tmp_path / "paper.toml"
        path.write_text(text.replace(old, new) if old else text)
        return read_reported(path, ten, registry, evaluator="the tests")

    return call


@pytest.fixture
def publish(ten, registry, tmp_path, board):
    """Puts reported entries on a board, beside what others measured."""

    def call(*entries, beside=()):
        folder = board(*beside)
        add_reported(Board(ten, (), (), ()), entries, folder)
        write_pages(ten, "ten", folder, registry)
        return folder

    return call


def errors(findings):
    return [finding.what for finding in findings if finding.is_error]


def test_reported_numbers_become_an_entry_without_bits_that_the_schema_takes(read, read_back):
    entry = read_back(read())

    assert entry.content["reported"]
    assert entry.content["bits"] == {"clean": None, "attacks": {}}
    assert (entry.row, entry.count) == ("vmoe/paper.their-own", 1000)
    assert entry.content["evaluator"] == "the tests"
    assert entry.content["report"]["url"] == "https://example.org/abs/1234.5678"
    assert entry.content["values"] == {
        "clean-accuracy": {"value": 91.3 / 100, "low": None, "high": None, "n": 1000},
        "robust-accuracy": {"16/255": {"value": 0.4, "low": None, "high": None, "n": 1000}},
    }


def test_a_reported_row_never_ranks_and_shows_whence_it_comes(read, publish, make):
    folder = publish(read(), beside=[make(far="0000000000")])

    page = (folder / "ten.md").read_text()
    [row] = [line for line in page.splitlines() if line.startswith("| -") and "vmoe/paper" in line]
    assert "below the line: no rank" in page.partition(row)[0]
    assert "| 8/2 " in row
    assert "| 91.3 " in row
    assert "| 40.0 " in row
    assert "reported: no bits of its images, so that nobody can check it" in row
    assert "## Reported, not measured here" in page
    assert (
        "- vmoe/paper.their-own, n = 1000 images: Jane Doe et al., 2026, table 3; "
        "https://example.org/abs/1234.5678; protocol: PGD of 40 steps, last iterate, clean errors "
        "left out; licence: numbers: CC BY 4.0; weights: not released." in page
    )
    first, second = csv.DictReader(io.StringIO((folder / "ten.csv").read_text()))
    assert (first["rank_low"], first["reported url"]) == ("1", "")
    assert (second["rank_low"], second["n"]) == ("", "1000")
    assert second["reported url"] == "https://example.org/abs/1234.5678"
    assert json.loads((folder / "ten.json").read_text())["rows"][1]["rank_low"] is None


def test_a_board_with_a_reported_row_is_valid_with_a_note(read, publish, make, ten, registry):
    folder = publish(read(), beside=[make()])

    found = list(check_board(ten, "ten", folder, registry))

    assert [(finding.what, finding.is_error) for finding in found] == [
        ("is reported: nobody can check it", False)
    ]


REFUSED = [
    ("another suite", 'suite = "ten"', 'suite = "eleven"', "is of suite 'eleven'"),
    ("above 100", "91.3", "100.1", "must be per cent, from 0 to 100, not '100.1'"),
    ("below 0", "91.3", "-1", "must be per cent"),
    ("no number", "91.3", "nan", "must be per cent"),
    ("infinite", "91.3", "inf", "must be per cent"),
    ("a huge number", "91.3", "1" + "0" * 400, "must be per cent"),
    ("a longer number", "91.3", "1" + "0" * 5000, "not TOML"),
    ("a word", "91.3", '"\\u001b[31m"', r"must be per cent, from 0 to 100, not '\\x1b\[31m'"),
    ("a bool", "91.3", "true", "must be per cent"),
    ("no images", "n = 1000", "n = 0", "samples/count: 0 is less than the minimum"),
    ("too many images", "n = 1000", f"n = {10**9}", "samples/count"),
    ("no n", "n = 1000", "", "the key 'n' is missing"),
    ("no source", 'source = "Jane Doe et al., 2026, table 3"', "", "the key 'source' is missing"),
    ("a script", "https://example.org/abs/1234.5678", "javascript:alert(1)", "report/url"),
    ("a link", "https://example.org/abs/1234.5678", "https://a.b/](c)<script>", "report/url"),
    ("no such metric", "clean-accuracy", "clean-acuracy", "did you mean 'clean-accuracy'"),
    ("a count", "clean-accuracy = 91.3", "parameters = 7", "is no share that suite ten measures"),
    ("another epsilon", '"16/255" = 40', '"17/255" = 40', "'17/255' is none of the suite's"),
    ("no epsilon", '[values.robust-accuracy]\n"16/255" = 40', "robust-accuracy = 40",
     r"must be a table of epsilons, \[values.robust-accuracy\]"),
    ("an unknown key", "recipe =", "receipt =", "did you mean 'recipe'"),
    ("a path", "vmoe/paper", "../../../outside", "model/row"),
    ("hidden letters", "Jane Doe", "Jane\\u202eDoe", "control or hidden characters"),
    ("two lines", "Jane Doe", "Jane\\nDoe", "control or hidden characters"),
    ("no TOML", "[values]", "[values", "not TOML"),
    ("a deep list", "91.3", "[" * 5000 + "]" * 5000, "not TOML"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "told"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_what_cannot_be_reported_is_refused_and_nothing_is_written(
    read, publish, tmp_path, old, new, told
):
    with pytest.raises(HarnessError, match=told):
        publish(read(old, new))

    assert not list(tmp_path.rglob("leaderboard/ten/**/*.json"))
    assert not list(tmp_path.parent.glob("outside*"))


def test_a_file_of_no_numbers_is_refused(read):
    with pytest.raises(EntryError, match="holds no number; give one of clean-accuracy"):
        read(text=PAPER.partition("[values]")[0])


def test_a_file_that_is_gone_large_or_binary_is_refused(ten, registry, tmp_path):
    large, binary = tmp_path / "large.toml", tmp_path / "binary.toml"
    large.write_text("# " + "x" * 2**20)
    binary.write_bytes(b"\xff\xfe")

    for path, told in (("gone.toml", "cannot be read"), (large, "one row a file"),
                       (binary, "not UTF-8")):  # fmt: skip
        with pytest.raises(EntryError, match=told):
            read_reported(tmp_path / path, ten, registry)


def test_words_of_a_paper_open_no_link_and_no_cell(read, publish):
    folder = publish(read("Jane Doe", "a|b [x](https://e.vil) <img src=x>"))

    page = (folder / "ten.md").read_text()
    assert r"a\|b \[x\](https://e.vil) &lt;img src=x&gt;" in page


def test_a_formula_stays_text_in_a_spreadsheet(read, publish):
    folder = publish(read('source = "Jane', 'source = "=1+1 Jane'))

    [row] = csv.DictReader(io.StringIO((folder / "ten.csv").read_text()))
    assert row["reported source"].startswith("'=1+1 Jane")


def test_a_measured_row_is_never_replaced_by_a_reported_one(read, publish, make, ten, registry):
    entry = read("vmoe/paper", "cnn/digits")
    renamed = copy.deepcopy(dict(entry.content))
    renamed["model"] |= {"row": "cnn/digits.standard", "recipe": "standard"}

    with pytest.raises(UsageError, match=r"cnn/digits\.standard was measured"):
        publish(Entry(renamed, "paper.toml"), beside=[make()])


def test_a_change_from_measured_to_reported_is_an_error_and_new_numbers_a_note(
    read, make, tmp_path
):
    paper, other = read(), read("91.3", "91.4")
    measured = make("vmoe/paper.their-own")
    for name, entry in (("was", measured), ("now", paper), ("later", other)):
        (tmp_path / name / "vmoe").mkdir(parents=True)
        (tmp_path / name / "vmoe" / "paper.their-own.json").write_bytes(written(entry))

    swapped = list(check_change(tmp_path / "now", tmp_path / "was"))
    corrected = list(check_change(tmp_path / "later", tmp_path / "now"))

    assert errors(swapped) == ["a measured row was replaced by a reported one"]
    assert [(item.what, item.is_error) for item in corrected] == [("reports otherwise", False)]


def set_at(*path, to):
    *parents, last = path

    def alter(content):
        for key in parents:
            content = content[key]
        content[last] = to

    return alter


HALF = {"value": 0.5, "low": None, "high": None, "n": 1000}
WRONG = [
    ("above 1", set_at("values", "clean-accuracy", to={**HALF, "value": 91.3}), "no percentage"),
    ("null", set_at("values", "clean-accuracy", to={**HALF, "value": None}), "no percentage"),
    ("another n", set_at("values", "clean-accuracy", to={**HALF, "n": 5}), "row's 1000 images"),
    ("an interval", set_at("values", "clean-accuracy", to={**HALF, "low": 0.4, "high": 0.6}),
     "an interval, which nothing proves"),
    ("another radius", set_at("values", "robust-accuracy", to={"1/255": HALF}), "suite's epsilons"),
    ("no radius", set_at("values", "robust-accuracy", to=HALF), "suite's epsilons"),
    ("radii of clean", set_at("values", "clean-accuracy", to={"8/255": HALF}), "suite's epsilons"),
    ("another metric", set_at("values", "error-rate", to={"8/255": HALF}), "no share that the"),
    ("a count", set_at("values", "parameters", to=HALF), "no share that the"),
    ("no values", set_at("values", to={}), "holds no number"),
    ("no report", lambda content: content.pop("report"), "reported without its url"),
    ("an empty source", set_at("report", "source", to=" "), "reported without its source"),
    ("flags", set_at("flags", to=["limited"]), "are of measured rows"),
    ("weights", set_at("weights", "sha256", to="a" * 64), "are of measured rows"),
    ("a row", set_at("model", "row", to="b"), "is named b; its model and recipe are"),
]  # fmt: skip


@pytest.mark.parametrize(("alter", "told"), [row[1:] for row in WRONG], ids=[r[0] for r in WRONG])
def test_a_reported_entry_that_cannot_be_is_found_out(read, read_back, ten, registry, alter, told):
    content = copy.deepcopy(dict(read().content))
    alter(content)

    found = errors(check_entry(read_back(Entry(content)), ten, registry))

    assert any(told in what for what in found), found


def test_an_unreadable_report_keeps_the_others_from_being_written(read, publish, tmp_path):
    good, bad = read(), read("vmoe/paper", "../x")

    with pytest.raises(EntryError, match="model"):
        publish(good, bad)

    assert not list(tmp_path.rglob("leaderboard/ten/**/*.json"))


def test_what_was_published_is_read_back_as_it_was(read, publish):
    folder = publish(read())

    again = read_entry(folder / "ten" / "vmoe" / "paper.their-own.json")
    assert again.content == read().content

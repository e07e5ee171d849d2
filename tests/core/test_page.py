"""Pages: what a reader of the table sees, and what a hostile entry cannot put there."""

from __future__ import annotations

import csv
import io
import json

import pytest

from harness.bits import pack
from harness.page import as_csv, as_json, entry_file, page
from harness.report import plain
from harness.standing import standing


@pytest.fixture
def written(ten, registry):
    """The three pages of some entries."""

    def call(*entries):
        found = standing(ten, "ten", entries)
        return page(found, registry), as_csv(found, registry), as_json(found, registry)

    return call


def lines_with(text, word):
    return [line for line in text.splitlines() if word in line]


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_names_model_numbers_and_suite(make, written):
    table, _, _ = written(make())

    [row] = lines_with(table, "[cnn/digits.standard]")
    # 9 of 10 clean and 4 of 10 robust with their Wilson intervals
    assert cells(row)[:6] == [
        "1",
        "[cnn/digits.standard](ten/cnn/digits.standard.json)",
        "dense",
        "standard",
        "90.0 [59.6, 98.2]",
        "40.0 [16.8, 68.7]",
    ]
    assert "version 3, protocol `nested`, norm linf, attacks `noise`, `pgd`, n = 10" in table
    assert "Computed on cpu in float32, torch 2, seed 0." in table


def test_every_epsilon_has_its_number(make, written):
    table, _, _ = written(make())

    [curve] = lines_with(table, "cnn/digits.standard | robust ")
    assert cells(curve) == [
        "cnn/digits.standard", "robust", "80.0 [49.0, 94.3]", "40.0 [16.8, 68.7]",
    ]  # fmt: skip


def test_the_best_known_column_counts_what_others_broke(make, written):
    def alter(content):
        found = pack([letter == "1" for letter in "1000000001"])
        content["best_known"] = [
            {"epsilon": "8/255", "broken": found, "source": "somebody", "sha256": ""}
        ]

    table, values, _ = written(make(alter=alter))

    # four robust images, one of them broken; the other was wrong before
    assert "30.0 [10.8, 60.3]" in lines_with(table, "[cnn/digits.standard]")[0]
    assert next(csv.DictReader(io.StringIO(values)))["best-known 16/255"] == "0.3"


def test_experts_are_shown_as_all_and_selected(make, written):
    card = {"num_experts": 8, "num_selected": 2}
    some = make("a.standard", alter=lambda content: content["model"].update(card=card))
    half = make(
        "b.standard", alter=lambda content: content["model"].update(card={"num_experts": 4})
    )

    table, _, _ = written(some, half)

    assert cells(lines_with(table, "[a.standard]")[0])[2] == "8/2"
    assert cells(lines_with(table, "[b.standard]")[0])[2] == "4/?"


def test_rows_below_the_line_stand_after_it_with_their_reason(make, written):
    limited = make("b.standard", alter=lambda content: content.update(flags=["limited"]))

    table, values, content = written(make(), limited)

    order = [line for line in table.splitlines() if "below the line" in line or "[b.st" in line]
    assert "below the line: no rank" in order[0]
    assert cells(order[1])[0] == "-"
    assert "flagged limited; limited" in order[1]
    assert [row["below_the_line"] for row in csv.DictReader(io.StringIO(values))] == [
        "", "flagged limited",
    ]  # fmt: skip
    assert json.loads(content)["rows"][1]["rank_low"] is None


def test_a_reported_row_has_its_values_and_no_best_known(make, written):
    def alter(content):
        content |= {"reported": True, "bits": {"clean": None, "attacks": {}}}

    table, _, _ = written(make(), make("b.standard", alter=alter))

    row = cells(lines_with(table, "[b.standard]")[0])
    assert "40.0 [16.8, 68.7]" in row
    assert "n/a (no best known)" in row


def test_a_raised_flag_is_explained(make, written):
    table, _, _ = written(make(alter=lambda content: content.update(flags=["saturated"])))

    assert "- `saturated`: the logits are so far apart" in table


def test_csv_has_one_number_a_column(make, written):
    _, values, _ = written(make(seed=2))

    [row] = csv.DictReader(io.StringIO(values))
    assert row["model"] == "cnn/digits.standard (seed 2)"
    assert (row["rank_low"], row["rank_high"], row["n"]) == ("1", "1", "10")
    assert row["clean-accuracy"] == "0.9"
    assert row["robust-accuracy 8/255"] == "0.8"
    assert float(row["robust-accuracy 16/255 low"]) == pytest.approx(0.168, abs=1e-3)
    assert row["parameters"] == "7"
    assert row["entry"] == "ten/cnn/digits.standard@seed2.json"


def test_json_has_the_same_numbers_as_csv(make, written):
    _, values, content = written(make(), make("b.standard", far="1100000000"))

    told = json.loads(content)
    assert (told["board"], told["version"], told["headline"]) == ("ten", 3, "16/255")
    for row, line in zip(told["rows"], csv.DictReader(io.StringIO(values)), strict=True):
        assert {key: "" if value is None else str(value) for key, value in row.items()} == line


def test_an_empty_board_is_a_page(written):
    table, _, content = written()

    assert table.startswith("# ten\n")
    assert json.loads(content)["rows"] == []


HOSTILE = "<script>alert(1)</script> | \\[x\\](javascript:y) ![i](h) `c` \\| =1+1"


def test_markdown_and_html_of_an_entry_are_shown_as_they_stand(make, written):
    def alter(content):
        nothing = {"value": None, "low": None, "high": None, "n": None, "reason": HOSTILE}
        content["values"]["auc"] = nothing
        content["provenance"]["machine"]["device"] = HOSTILE
        content["provenance"]["versions"]["torch"] = HOSTILE
        content["evaluator"] = content["weights"]["source"] = HOSTILE

    table, _, _ = written(make(alter=alter))

    assert "<script" not in table
    assert table.count(plain(HOSTILE)) == 3


def test_no_sequence_of_letters_opens_a_link_or_a_cell():
    # each special letter has its own backslash, and each backslash one, too
    assert plain(r"\[x\](y)") == r"\\\[x\\\](y)"
    assert plain(r"a\|b") == r"a\\\|b"
    assert plain("a\nb\tc") == "a b c"


def test_no_cell_of_the_csv_is_a_formula(make, written):
    _, values, _ = written(make(alter=lambda content: content["weights"].update(sha256="")))

    cells_of_all = [cell for line in csv.reader(io.StringIO(values)) for cell in line]
    assert not [cell for cell in cells_of_all if cell[:1] in ("=", "+", "@")]


def test_the_file_of_an_entry_names_its_seed(make):
    assert entry_file(make()) == "cnn/digits.standard.json"
    assert entry_file(make(seed=3)) == "cnn/digits.standard@seed3.json"

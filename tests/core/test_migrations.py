"""A file of schema 1, as a real run wrote it, read today; and files that only claim to be one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.bits import unpack
from harness.entries import read_entry, written
from harness.errors import EntryError
from harness.migrations import migrated

FROZEN = Path(__file__).parents[1] / "data" / "entry-1.json"


@pytest.fixture
def old():
    return json.loads(FROZEN.read_text())


def test_the_frozen_entry_reads_with_its_values(old):
    entry = read_entry(FROZEN)

    assert entry.content["schema"] == 2
    assert entry.row == old["row"]["model"] == "cnn/digits.standard"
    assert entry.samples == tuple(old["samples"])
    assert entry.content["values"]["clean-accuracy"] == old["row"]["clean_accuracy"]
    assert entry.content["values"]["robust-accuracy"] == old["row"]["robust_accuracy"]
    assert entry.content["values"]["active-parameters"]["value"] == 77754
    assert entry.content["costs"] == {"forwards": 97696, "backwards": 93366}
    assert entry.content["weights"] == old["weights"]
    assert entry.content["provenance"] == old["provenance"]


def test_its_bits_give_its_robust_accuracy(old):
    entry = read_entry(FROZEN)

    shares = {text: entry.robust(text).mean() for text, _ in entry.content["suite"]["epsilons"]}

    told = old["row"]["robust_accuracy"]
    assert shares == pytest.approx({text: value["value"] for text, value in told.items()})


def test_its_bits_are_kept_as_they_were(old):
    entry = read_entry(FROZEN)

    kept = unpack(old["bits"]["pgd-ce"]["32/255"], 500)
    assert (entry.robust_alone("pgd-ce", "32/255") == kept).all()
    assert entry.content["bits"]["attacks"]["noise"]["is_control"]
    assert not entry.content["bits"]["attacks"]["pgd-ce"]["is_control"]


def test_its_clean_bits_are_unknown():
    assert read_entry(FROZEN).clean() is None


def test_it_can_be_written_in_the_present_schema(read_back):
    entry = read_entry(FROZEN)

    assert read_back(entry).content == entry.content
    assert b'"clean": null' in written(entry)


def test_an_entry_of_the_present_schema_is_left_as_it_is(make):
    content = make().content

    assert migrated(content, "x") == content


LACKING = ["row", "suite", "ingredients", "samples", "bits", "passes", "facts", "weights"]


@pytest.mark.parametrize("key", LACKING)
def test_a_file_that_lacks_what_schema_1_had_is_refused(old, key):
    del old[key]

    with pytest.raises(EntryError, match=f"not an entry of schema 1: KeyError '{key}'"):
        migrated(old, "x")


WILD = [
    ("no epsilons", lambda old: old["ingredients"]["suite"].update(epsilons=[])),
    ("samples of texts", lambda old: old.update(samples=["a", "b"])),
    ("samples that are a number", lambda old: old.update(samples=5)),
    ("a row that is a text", lambda old: old.update(row="cnn/digits")),
    ("bits that are a list", lambda old: old.update(bits=[])),
    ("an attack that the suite has not", lambda old: old["bits"].update(other={})),
    ("attacks that are texts", lambda old: old["ingredients"]["suite"].update(attacks=["pgd"])),
    ("samples of fractions", lambda old: old.update(samples=[0.5])),
    ("samples backwards", lambda old: old.update(samples=[-1, 0])),
    ("a row with a path", lambda old: old["row"].update(model="../../x")),
    ("a value of text", lambda old: old["row"].update(auc="<script>")),
]


@pytest.mark.parametrize("alter", [row[1] for row in WILD], ids=[row[0] for row in WILD])
def test_a_file_of_odd_shapes_is_refused_by_name(old, tmp_path, alter):
    alter(old)
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(old))

    with pytest.raises(EntryError, match=r"odd\.json: "):
        read_entry(path)

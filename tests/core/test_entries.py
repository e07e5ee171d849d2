"""Entries: bits and what follows from them, and files that are refused."""

from __future__ import annotations

import json

import pytest

from harness.bits import pack
from harness.entries import read_entry, written
from harness.errors import EntryError


def as_text(bits):
    return "".join(str(int(bit)) for bit in bits)


def broke(epsilon, text):
    found = pack([letter == "1" for letter in text])
    return {"epsilon": epsilon, "broken": found, "source": "somebody", "sha256": ""}


def test_an_entry_survives_the_round_trip(make, read_back):
    entry = make(seed=2)

    again = read_back(entry)

    assert again.content == entry.content
    assert again.row == "cnn/digits.standard (seed 2)"
    assert again.samples == tuple(range(10))
    assert as_text(again.clean()) == "1111111110"


def test_the_same_entry_is_the_same_bytes(make):
    assert written(make()) == written(make())


def test_what_fools_in_a_ball_fools_in_every_larger_one(make):
    # image 0 falls at 8/255 and is said to stand at 16/255
    entry = make(near="0111111110", far="1111000000")

    assert as_text(entry.robust("16/255")) == "0111000000"
    assert as_text(entry.robust_alone("pgd", "16/255")) == "1111000000"


def test_every_epsilon_stands_alone_under_protocol_independent(make):
    def alter(content):
        content["suite"]["protocol"] = "independent"

    entry = make(near="0111111110", far="1111000000", alter=alter)

    assert as_text(entry.robust("16/255")) == "1111000000"


def test_an_epsilon_that_was_not_measured_has_no_bits(make):
    assert make().robust("9/255") is None
    assert make().best_known("9/255") is None


def test_some_attacks_alone_can_be_asked_for(make):
    assert as_text(make().robust("16/255", attacks=("noise",))) == "1111111110"
    assert make().robust("16/255", attacks=()) is None


def test_an_attack_of_another_view_is_no_part_of_robust_accuracy(make):
    def alter(content):
        content["bits"]["attacks"]["pgd"]["view"] = "router"

    entry = make(alter=alter)

    assert entry.attacks() == ("noise",)
    assert as_text(entry.robust("16/255")) == "1111111110"


def test_what_others_broke_counts_in_its_ball_and_in_larger_ones(make):
    def alter(content):
        content["best_known"] = [broke("8/255", "1000000000"), broke("16/255", "0100000000")]

    entry = make(far="1111000000", alter=alter)

    assert as_text(entry.best_known("8/255")) == "0111111100"
    assert as_text(entry.best_known("16/255")) == "0011000000"
    assert as_text(entry.robust("16/255")) == "1111000000"


def set_at(*path):
    *parents, last = path

    def alter(content, value):
        for key in parents:
            content = content[key]
        content[last] = value

    return alter


WILD = [
    ("model row", set_at("model", "row"), "../../x", "model/row"),
    ("absolute row", set_at("model", "row"), "/etc/x", "model/row"),
    ("row that climbs inside", set_at("model", "row"), "a/../../b", "model/row"),
    ("row of dots", set_at("model", "row"), "a/..", "model/row"),
    ("row with a backslash", set_at("model", "row"), "a\\b", "model/row"),
    ("row with an end of line", set_at("model", "row"), "a\n", "hidden characters"),
    ("row with a NUL", set_at("model", "row"), "a\0b", "hidden characters"),
    ("row of look-alikes", set_at("model", "row"), "cnn/d\u0131gits", "model/row"),
    ("row written backwards", set_at("model", "row"), "a\u202eb", "hidden characters"),
    ("row with a script", set_at("model", "row"), "<script>", "model/row"),
    ("flag with a link", set_at("flags"), ["[x](y)"], "flags/0"),
    ("board outside", set_at("suite", "board"), "../x", "suite/board"),
    ("half a letter", set_at("evaluator"), "\ud800", "hidden characters"),
    ("evaluator of two lines", set_at("evaluator"), "a\nb", "hidden characters"),
    ("epsilon with Markdown", set_at("suite", "headline"), "8/255|x", "suite/headline"),
    ("headline outside the grid", set_at("suite", "headline"), "9/255", "not 9/255"),
    ("epsilons that fall", set_at("suite", "epsilons"), [["16/255", 2], ["8/255", 1]], "rise"),
    ("epsilon twice", set_at("suite", "epsilons"), [["8/255", 1], ["8/255", 2]], "not 16/255"),
    ("no epsilon", set_at("suite", "epsilons"), [], "suite/epsilons"),
    ("no card", set_at("model", "card"), [1], "model/card"),
    ("experts with a script", set_at("model", "card"), {"num_experts": "<b>"}, "num_experts"),
    ("machine that is a text", set_at("provenance", "machine"), "cpu", "provenance/machine"),
    ("version that is a list", set_at("provenance", "versions"), {"torch": []}, "versions/torch"),
    ("facts of texts", set_at("facts", "flops"), "many", "facts/flops"),
    ("facts that are a list", set_at("facts"), [], "facts"),
    ("checks with odd flags", set_at("checks"), {"flags": 5}, "checks/flags"),
    ("value without an end", set_at("values", "auc", "high"), None, "values/auc"),
    ("value that is huge", set_at("values", "auc", "value"), 10**29, "values/auc"),
    ("whole number of 400 digits", set_at("facts", "flops"), 10**400, "too long a number"),
    ("no images", set_at("samples", "count"), 0, "samples/count"),
    ("another count", set_at("samples", "count"), 11, "10 sample ids where it counts 11"),
    ("too many samples", set_at("samples", "ids"), "0-99999999999", "too many"),
    ("endless sample", set_at("samples", "ids"), "9" * 5000, "no number"),
    ("reported with bits", set_at("reported"), True, "carries no bits"),
    ("unknown key", set_at("more"), 1, "more"),
    ("other schema", set_at("schema"), 3, "reads 1 to 2"),
    ("no schema", set_at("schema"), None, "reads 1 to 2"),
    ("attack with a script", set_at("bits", "attacks", "<img src=x>"), {}, "does not match"),
    ("other bits", set_at("bits", "clean"), "<>", "bits/clean"),
    ("deep", set_at("ingredients"), json.loads("[" * 40 + "]" * 40), "deep"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "value", "told"), [row[1:] for row in WILD], ids=[row[0] for row in WILD]
)
def test_a_hostile_entry_is_refused_when_it_is_read(make, tmp_path, change, value, told):
    path = tmp_path / "hostile.json"
    path.write_text(json.dumps(make(alter=lambda content: change(content, value)).content))

    with pytest.raises(EntryError, match=told):
        read_entry(path)


@pytest.mark.parametrize(
    ("change", "value", "told"), [row[1:] for row in WILD], ids=[row[0] for row in WILD]
)
def test_a_hostile_entry_is_never_written(make, change, value, told):
    with pytest.raises(EntryError, match=told):
        written(make(alter=lambda content: change(content, value)))


NESTED = b"[" * 40 + b"]" * 40
WRONG_KEYS = b"".join(b', "%d": 0' % number for number in range(1000))
FILES = [
    ("nothing", b"", "not JSON"),
    ("a list", b"[1]", "not a JSON object"),
    ("not UTF-8", b'{"schema": "\xff"}', "not JSON"),
    ("NaN", b'{"schema": NaN}', "NaN is no number"),
    ("infinity", b'{"schema": 1e400}', "too large a number"),
    ("a key twice", b'{"schema": 2, "schema": 2}', "twice"),
    ("100,000 levels", b"[" * 100_000 + b"]" * 100_000, "not JSON"),
    ("hidden levels", b'{"a": "' + b"]" * 50 + b'", "b": ' + NESTED + b"}", "30 levels"),
    ("a million lists", b"[" + b"[],{}," * 500_000 + b"1]", "lists and objects"),
    ("a thousand wrong keys", b'{"schema": 2' + WRONG_KEYS + b"}", "the entry: "),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "told"), [row[1:] for row in FILES], ids=[row[0] for row in FILES]
)
def test_a_file_that_is_no_entry_is_refused(tmp_path, text, told):
    path = tmp_path / "hostile.json"
    path.write_bytes(text)

    with pytest.raises(EntryError, match=told):
        read_entry(path)


def test_a_file_of_70_mib_is_refused_unread(tmp_path):
    path = tmp_path / "large.json"
    with path.open("wb") as file:
        file.truncate(70 * 2**20)

    with pytest.raises(EntryError, match="more than 64 MiB"):
        read_entry(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(EntryError, match=r"gone\.json: cannot be read"):
        read_entry(tmp_path / "gone.json")


def test_an_endless_string_of_digits_is_refused_at_once(make, tmp_path):
    def alter(content):
        content["suite"]["headline"] = "0" * 200_000 + "x"

    path = tmp_path / "slow.json"
    path.write_text(json.dumps(make(alter=alter).content))

    with pytest.raises(EntryError, match="suite/headline"):
        read_entry(path)

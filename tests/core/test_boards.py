"""Folders of boards: pages, misplaced files, links, and what a change did."""

from __future__ import annotations

import json

import pytest

from harness.bits import pack
from harness.validate import check_board, check_change


def broke(text="1000000000"):
    found = pack([letter == "1" for letter in text])
    return {"epsilon": "16/255", "broken": found, "source": "somebody", "sha256": "b" * 64}


def whats(findings):
    return [finding.what for finding in findings]


def change(path, alter):
    content = json.loads(path.read_text())
    alter(content)
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


@pytest.fixture
def folder(make, board):
    return board(make(), make("vit/digits.standard", far="1100000000"))


@pytest.fixture
def found(folder, ten, registry):
    """What is found now."""
    return lambda: whats(check_board(ten, "ten", folder, registry))


STALE = "is not what the entries give; write it again with 'harness publish'"


@pytest.mark.parametrize("suffix", [".md", ".csv", ".json"])
def test_a_stale_page_is_found(folder, found, suffix):
    page = folder / f"ten{suffix}"
    page.write_bytes(page.read_bytes().replace(b"standard", b"\xff"))

    assert found() == [STALE]


@pytest.mark.parametrize("suffix", [".md", ".csv", ".json"])
def test_a_missing_page_is_found(folder, found, suffix):
    (folder / f"ten{suffix}").unlink()

    assert found() == [STALE]


def test_a_page_that_is_a_link_is_not_followed(folder, found):
    (folder / "ten.md").unlink()
    (folder / "ten.md").symlink_to("/dev/zero")

    assert found() == [STALE]


def test_a_misplaced_file_is_found(folder, found):
    (folder / "ten/vit/digits.standard.json").rename(folder / "ten/best.json")

    assert "should be ten/vit/digits.standard.json" in found()


def test_a_copy_of_a_row_under_another_name_is_found(folder, found):
    source = folder / "ten/vit/digits.standard.json"
    (folder / "ten/other.json").write_bytes(source.read_bytes())

    assert "should be ten/vit/digits.standard.json" in found()


def test_an_entry_of_another_board_is_found(folder, found):
    path = folder / "ten/vit/digits.standard.json"
    change(path, lambda content: content["suite"].update(board="ten@copy"))

    assert found() == ["is of board ten@copy"]


def test_a_file_that_is_no_entry_is_found(folder, found):
    (folder / "ten/vit/evil.html").write_text("<script>")
    (folder / "ten/broken.json").write_text("{")

    assert "is no entry; nothing else belongs here" in found()
    assert any("not JSON" in what for what in found())


def test_a_link_is_found_and_not_followed(folder, found, tmp_path):
    (tmp_path / "secret.json").write_text('{"secret": 1}')
    (folder / "ten/link.json").symlink_to(tmp_path / "secret.json")
    (folder / "ten/up").symlink_to(tmp_path)

    assert found() == ["is a link; put the file itself there"] * 2


def test_a_board_that_is_a_link_itself_is_not_read(folder, found, tmp_path):
    (folder / "ten").rename(tmp_path / "elsewhere")
    (folder / "ten").symlink_to(tmp_path / "elsewhere")

    assert "is a link; put the folder itself there" in found()


def test_bits_that_cannot_be_read_do_not_hide_other_findings(folder, found):
    path = folder / "ten/vit/digits.standard.json"
    change(path, lambda content: content["bits"]["attacks"]["pgd"]["robust"].update({"16/255": ""}))

    assert "bits for 0 samples where there are 10" in found()
    assert any("pages cannot be written" in what for what in found())


@pytest.fixture
def changed(make, board):
    """What is said when an entry before becomes one after, or goes, or comes."""

    def call(before, after):
        old = board(*before, name="old")
        new = board(*after, name="new")
        return [tuple(item)[1:] for item in check_change(new / "ten", old / "ten")]

    return call


def test_nothing_changed_says_nothing(make, changed):
    assert changed([make()], [make()]) == []


def test_a_removed_row_is_found(make, changed):
    told = changed([make(), make(seed=1)], [make()])

    assert told == [("was removed; a row leaves a board only by name and reason", True)]


def test_a_new_row_is_noted(make, changed):
    assert changed([make()], [make(), make(seed=1)]) == [("is new", False)]


def test_a_new_board_has_new_rows(make, board, tmp_path):
    folder = board(make())

    assert whats(check_change(folder / "ten", tmp_path / "nowhere")) == ["is new"]


def test_a_new_row_without_clean_bits_is_refused(make, changed):
    old_fashioned = make(alter=lambda content: content["bits"].update(clean=None))

    told = changed([], [old_fashioned])

    assert ("has no clean bits; measure it with this harness", True) in told


def test_a_row_changed_without_a_new_run_is_found(make, changed):
    told = changed([make()], [make(far="1111100000")])

    assert told == [("was changed without a new run: its start is still the same", True)]


@pytest.mark.parametrize(
    ("sha256", "told"),
    [("a" * 64, "measured again on the same weights"), ("c" * 64, "replaced by other weights")],
)
def test_a_new_run_is_noted(make, changed, sha256, told):
    def alter(content):
        content["provenance"]["started"] = "2027-01-01T00:00:00+00:00"
        content["weights"]["sha256"] = sha256

    assert changed([make()], [make(alter=alter)]) == [(told, False)]


def test_what_others_broke_may_only_be_added_to(make, changed):
    one = make(alter=lambda content: content.update(best_known=[broke()]))
    two = make(alter=lambda content: content.update(best_known=[broke(), broke("01" * 5)]))
    other = make(alter=lambda content: content.update(best_known=[broke("0100000000")]))
    told = [("what others broke was changed or removed; only add to it", True)]

    assert changed([make()], [one]) == []
    assert changed([one], [two]) == []
    assert changed([one], [other]) == told
    assert changed([two], [make()]) == told


def test_the_same_run_may_gain_the_clean_bits_that_schema_1_lacked(make, changed):
    lacking = make(alter=lambda content: content["bits"].update(clean=None))

    assert changed([lacking], [make()]) == []
    assert changed([lacking], [make(far="1110000000")])[0][1]


def test_an_entry_that_was_unreadable_before_is_noted(make, board):
    old, new = board(name="old"), board(make(), name="new")
    (old / "ten").mkdir(parents=True)
    (old / "ten/cnn.json").write_text("{")

    told = list(check_change(new / "ten", old / "ten"))

    assert [item.is_error for item in told] == [False, False]
    assert "was there before and not JSON" in told[0].what

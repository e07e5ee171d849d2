"""Hashes: equal for equal things, different for different ones."""

from __future__ import annotations

import pytest

from harness import hashing

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
"""The published sha256 of no bytes at all (FIPS 180-4 examples)."""


def written(folder, **files):
    """Files with their contents, and their paths."""
    folder.mkdir()
    paths = []
    for name, content in files.items():
        paths.append(folder / f"{name}.py")
        paths[-1].write_text(content)
    return paths


def test_canonical_json_has_sorted_keys_and_no_spaces():
    text = hashing.canonical_json({"b": [1, 2.5], "a": {"d": None, "c": "é"}})

    assert text == '{"a":{"c":"é","d":null},"b":[1,2.5]}'


@pytest.mark.parametrize("number", [float("nan"), float("inf")], ids=str)
def test_canonical_json_refuses_what_json_has_no_word_for(number):
    with pytest.raises(ValueError, match="not JSON compliant"):
        hashing.canonical_json({"loss": number})


def test_the_hash_of_nothing_is_the_published_one():
    assert hashing.of_bytes(b"") == EMPTY


def test_equal_values_have_equal_hashes_whatever_their_order():
    forwards = hashing.of_value({"steps": 3, "widths": (16, 32)})

    backwards = hashing.of_value({"widths": [16, 32], "steps": 3})

    assert backwards == forwards


def test_different_values_have_different_hashes():
    assert hashing.of_value({"steps": 3}) != hashing.of_value({"steps": 4})


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    content = b"\x00weights\r\n" * 100_000
    (tmp_path / "weights").write_bytes(content)

    found = hashing.of_file(tmp_path / "weights")

    assert found == hashing.of_bytes(content)


def test_sources_hash_alike_in_any_folder_and_any_order(tmp_path):
    here = written(tmp_path / "here", a="1", b="2")
    there = written(tmp_path / "there", b="2", a="1")

    found = hashing.of_sources(tmp_path / "here", here)

    assert hashing.of_sources(tmp_path / "there", there) == found


@pytest.mark.parametrize(
    "files",
    [
        pytest.param({"a": "1", "b": "3"}, id="content"),
        pytest.param({"a": "1", "c": "2"}, id="name"),
        pytest.param({"a": "2", "b": "1"}, id="swapped"),
        pytest.param({"a": "1"}, id="one-less"),
    ],
)
def test_sources_hash_differently_once_anything_differs(tmp_path, files):
    before = hashing.of_sources(tmp_path / "old", written(tmp_path / "old", a="1", b="2"))

    after = hashing.of_sources(tmp_path / "new", written(tmp_path / "new", **files))

    assert after != before

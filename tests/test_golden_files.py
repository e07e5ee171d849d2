"""The subset of official numbers: small, told in its README, and honest about what it lacks."""

from __future__ import annotations

import re

import numpy as np
import pytest

from golden_files import SUBSET, Arrays, golden_arrays, golden_file

FILES = sorted(path.relative_to(SUBSET).as_posix() for path in SUBSET.glob("*/*.npz"))


@pytest.fixture
def nothing_beside(monkeypatch, tmp_path):
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "data"))


def test_the_subset_is_small():
    assert sum((SUBSET / name).stat().st_size for name in FILES) < 3_000_000


def test_the_readme_tells_of_every_file_and_of_no_other():
    told = set(re.findall(r"`(\w[\w.]*\.npz)`", (SUBSET / "README.md").read_text(encoding="utf-8")))

    assert told == {name.split("/")[1] for name in FILES}


@pytest.mark.parametrize("name", FILES)
def test_what_is_left_out_is_not_there(nothing_beside, name):
    arrays = golden_arrays(*name.split("/"))

    assert arrays
    assert not arrays.left_out & set(arrays)
    assert not [key for key, array in arrays.items() if array.dtype.hasobject]


def test_a_full_file_beside_the_data_comes_first(monkeypatch, tmp_path):
    (tmp_path / "golden/vmoe").mkdir(parents=True)
    np.savez(tmp_path / "golden/vmoe/theory_numpy.npz", own=np.arange(3))
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "data"))

    arrays = golden_arrays("vmoe", "theory_numpy.npz")

    assert list(arrays) == ["own"]
    assert not arrays.left_out


def test_a_file_that_is_nowhere_skips_and_says_so(nothing_beside):
    with pytest.raises(pytest.skip.Exception, match=r"vmoe/none\.npz is neither beside the data"):
        golden_file("vmoe", "none.npz")


def test_an_array_that_was_left_out_skips_and_a_mistyped_one_fails():
    arrays = Arrays({"here": 1}, ["grad/there"])

    with pytest.raises(pytest.skip.Exception, match="grad/there is not in tests/golden"):
        arrays["grad/there"]
    with pytest.raises(pytest.skip.Exception, match="grad/there is not in tests/golden"):
        arrays.under("grad/")
    with pytest.raises(KeyError, match="their"):
        arrays["their"]


def test_of_two_files_the_second_is_not_filled_from_the_first():
    first, second = Arrays({"a": 1, "b": 1, "c": 1}, ["d"]), Arrays({"a": 2, "d": 2}, ["b"])

    both = first | second

    assert both == {"a": 2, "c": 1, "d": 2}
    assert both.left_out == {"b"}

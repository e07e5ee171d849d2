"""Bits and ids as text."""

from __future__ import annotations

import pytest

from harness.bits import as_runs, from_runs, pack, unpack
from harness.errors import EntryError


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 500])
def test_bits_survive_the_round_trip(count):
    bits = [number % 3 == 0 for number in range(count)]

    assert unpack(pack(bits), count).tolist() == bits


@pytest.mark.parametrize(
    ("text", "count", "told"),
    [
        ("oA==", 9, "bits for 8 samples where there are 9"),
        ("oA==", 2, "beyond the last sample"),
        ("o!==", 3, "not base64"),
    ],
)
def test_wrong_bits_are_refused(text, count, told):
    with pytest.raises(EntryError, match=told):
        unpack(text, count)


@pytest.mark.parametrize("ids", [(), (0,), (3, 4, 5), (5, 3, 4), (0, 2, 1, 9, 10)])
def test_ids_survive_the_round_trip_in_their_order(ids):
    assert from_runs(as_runs(ids)) == ids


def test_a_whole_split_is_one_run():
    assert as_runs(range(10_000)) == "0-9999"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("0-99999999999", "too many"),
        ("5-3", "run backwards"),
        ("0-3,2", "stands twice"),
        ("../x", "no number"),
        ("-1", "no number"),
        ("1,,2", "no number"),
    ],
)
def test_wrong_ids_are_refused(text, told):
    with pytest.raises(EntryError, match=told):
        from_runs(text)

"""`harness bench`, as a user meets it."""

from __future__ import annotations

import json

QUICK = ("bench", "--suite", "digits-linf", "--model", "cnn/digits", "--quick", "--images", 8)


def test_a_quick_comparison_needs_no_data_and_writes_every_round(harness, tmp_path):
    done = harness(
        *QUICK, "--attack", "pgd-20", "--against", "art,pyautoattack", "--json", "b.json"
    )

    assert done.code == 0, done.err
    assert "pgd-20: ratios" in done.out
    assert "of peak" in done.out
    assert "median [least-most]" in done.out
    content = json.loads((tmp_path / "b.json").read_text())
    assert {"moe-robustness-harness", "torch"} <= set(content["provenance"]["versions"])
    [task] = content["tasks"]
    assert "pyautoattack" in task["missing"]  # not installed, or has no PGD
    assert {lap["round"] for lap in task["laps"] if lap["entrant"] == "art"} == {0, 1, 2}


def test_a_sweep_shows_the_three_ways(harness):
    done = harness(*QUICK, "--rounds", 2, "--sweep")

    assert done.code == 0, done.err
    assert "nine separate runs" in done.out
    assert "0.25/255" in done.out


def test_names_that_are_not_known_end_with_2_and_the_nearest_one(harness):
    peer = harness(*QUICK, "--against", "folbox")
    attack = harness(*QUICK, "--attack", "pgd-02")

    assert (peer.code, attack.code) == (2, 2)
    assert "--against 'folbox' is not known; did you mean 'foolbox'?" in peer.err
    assert "--attack 'pgd-02' is not known; did you mean 'pgd-20'" in attack.err


def test_a_file_that_nobody_could_write_is_refused_at_once(harness):
    done = harness(*QUICK, "--json", "nowhere/b.json")

    assert done.code == 2
    assert "make the folder first" in done.err

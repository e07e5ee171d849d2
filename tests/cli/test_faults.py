"""Faults while commands are at work: what is finished stays, and the same command again goes on."""

from __future__ import annotations

import json
import shutil

import pytest

from run_folders import KILLED, SUITE, cell_of, contents, events, flat, shard_of


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("moment", "left"),
    [
        pytest.param(r"os.rename manifest\.json$", [], id="before its cell is opened"),
        pytest.param(r"os.rename 00001\.jsonl$", ["00000"], id="in a shard"),
        pytest.param(r"open 00002\.jsonl\.\d+\.part$", ["00000", "00001"], id="between shards"),
    ],
)
def test_a_run_killed_at_any_step_ends_as_an_unbroken_one(harness, killed, finished, moment, left):
    unbroken = contents(finished)
    cell = cell_of(finished)
    shutil.rmtree(cell)

    dead = killed(moment, "run", *SUITE)
    kept = sorted(path.stem for path in cell.glob("shards/*.jsonl"))
    again = harness("run", *SUITE, "--json")

    assert (dead.code, dead.out) == (KILLED, "")
    assert kept == left
    assert again.code == 0, again.err
    assert json.loads(again.out)["rows"][0]["flags"] == []
    assert contents(finished) == unbroken


@pytest.mark.slow
def test_a_training_killed_between_its_weights_and_their_card_is_made_again(
    harness, killed, finished
):
    unbroken = contents(finished)
    shutil.rmtree(finished)

    dead = killed(r"os.rename card\.json$", "run", *SUITE)
    planned = json.loads(harness("plan", *SUITE, "--json").out)["rows"][0]
    again = harness("run", *SUITE)

    assert (dead.code, dead.out) == (KILLED, "")
    assert planned["weights"] == "to train"
    assert again.code == 0, again.err
    assert contents(finished).items() <= unbroken.items()


def test_a_full_disk_stops_a_run_with_its_remedy_and_keeps_what_is_finished(
    harness, limited, finished
):
    unbroken = contents(finished)
    shard_of(finished, 1).unlink()

    full = limited(8000, "run", *SUITE)
    kept = contents(finished)
    again = harness("run", *SUITE)

    assert (full.code, full.out) == (1, "")
    assert "00001.jsonl: File too large; what is finished is safe: make room" in flat(full.err)
    assert "Traceback" not in full.err
    assert kept.items() <= unbroken.items()
    assert len(kept) == len(unbroken) - 1
    assert again.code == 0, again.err
    assert contents(finished) == unbroken


DAMAGES = {
    "truncated": lambda runs: shard_of(runs, 1).write_bytes(shard_of(runs, 1).read_bytes()[:-9]),
    "altered": lambda runs: shard_of(runs, 1).write_text(
        shard_of(runs, 1).read_text().replace('"label":8', '"label":3', 1)
    ),
    "of another cell": lambda runs: shutil.copy(
        cell_of(runs, seed=1) / "shards" / "00001.jsonl", shard_of(runs, 1)
    ),
    "of other samples": lambda runs: shutil.copy(shard_of(runs, 0), shard_of(runs, 1)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_foreign_shard_is_never_counted(harness, two_seeds, tmp_path, damage):
    shutil.copytree(two_seeds, tmp_path, dirs_exist_ok=True)
    runs = tmp_path / "runs"
    DAMAGES[damage](runs)
    shutil.rmtree(cell_of(runs, seed=1))

    plan = json.loads(harness("plan", *SUITE, "--json").out)["rows"][0]
    published = harness("publish", *SUITE)
    table = harness("records")

    assert (plan["shards"], plan["shards_done"]) == (3, 2)
    assert published.code == 1
    assert "their images are not in the numbers" in flat(published.err)
    assert table.code == 3
    assert "00001.jsonl: altered, or of another cell; run the suite again" in flat(table.err)
    # 12 images under two attacks at two epsilons, and the head
    assert len(table.out.splitlines()) == 12 * 4 + 1


def test_a_run_does_a_foreign_shard_again_and_says_so_in_its_events(harness, two_seeds, tmp_path):
    shutil.copytree(two_seeds, tmp_path, dirs_exist_ok=True)
    runs = tmp_path / "runs"
    unbroken = contents(runs)
    DAMAGES["of another cell"](runs)

    again = harness("run", *SUITE, "--json")

    assert json.loads(again.out)["rows"][0]["flags"] == []
    assert contents(runs) == unbroken
    assert "replaced-damaged" in events(runs)


def test_a_damaged_manifest_is_told_and_costs_no_shard(harness, finished):
    unbroken = contents(finished)
    manifest = cell_of(finished) / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:100])
    times = {path: path.stat().st_mtime_ns for path in finished.glob("*/shards/*")}

    torn = harness("run", *SUITE)
    manifest.unlink()
    again = harness("run", *SUITE, "--json")

    assert torn.code == 1
    assert "delete this one file and run again: its shards are kept" in flat(torn.err)
    assert json.loads(again.out)["rows"][0]["n"] == 20
    assert contents(finished) == unbroken
    assert {path: path.stat().st_mtime_ns for path in finished.glob("*/shards/*")} == times


@pytest.mark.slow
def test_altered_weights_are_refused_and_trained_again_once_they_are_deleted(harness, finished):
    unbroken = contents(finished)
    [weights] = (
        path
        for path in finished.glob("weights/*/weights.safetensors")
        if json.loads(path.with_name("card.json").read_text())["ingredients"]["seed"] == 0
    )
    weights.write_bytes(weights.read_bytes()[:-4])
    shard_of(finished, 1).unlink()

    refused = harness("run", *SUITE, "--json")
    shutil.rmtree(weights.parent)
    again = harness("run", *SUITE)

    assert refused.code == 3
    assert json.loads(refused.out)["rows"][0]["flags"] == ["missing-images"]
    assert "or delete its folder where a run trained it" in flat(refused.err)
    assert again.code == 0, again.err
    assert contents(finished) == unbroken


VANDAL = """
import os, shutil
from harness import AttackCard, hookimpl

def vandal(objective, images, labels, threat, *, noise):
    if 8 in noise.samples.tolist() and not os.path.exists("mark"):
        open("mark", "w").close()
        shutil.rmtree("runs")
    return images

@hookimpl
def register_attacks(register):
    register("vandal", vandal, card=AttackCard())
"""
"""Removes the run folder in the second shard, once."""


def test_a_run_whose_folder_is_removed_claims_nothing(harness, finished, tmp_path):
    (tmp_path / "vandal.py").write_text(VANDAL)
    command = ("run", *SUITE, "--plugin", "vandal.py", "--attack", "vandal", "--json")

    robbed = harness(*command)
    again = harness(*command)

    assert (robbed.code, robbed.out) == (1, "")
    assert "the folder was removed or replaced while the run was at work" in flat(robbed.err)
    assert "Traceback" not in robbed.err
    assert again.code == 0, again.err
    assert json.loads(again.out)["rows"][0]["n"] == 20
    assert len(list(finished.glob("*/shards/*.jsonl"))) == 3


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["run", *SUITE, "--out"], id="run"),
        pytest.param(["publish", *SUITE, "--out"], id="publish"),
        pytest.param(["records", "--out"], id="records"),
        pytest.param(["merge", "runs", "--into"], id="merge"),
    ],
)
@pytest.mark.parametrize("place", ["/proc/nowhere/x", "tiny.toml/x"], ids=["read-only", "a file"])
def test_a_place_that_cannot_be_written_is_told_before_anything_is_done(
    harness, finished, command, place
):
    before = files(finished)

    done = harness(*command, place)

    assert (done.code, done.out) == (1, "")
    assert "cannot write" in done.err
    assert "Traceback" not in done.err
    assert files(finished) == before


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(r"open standard\.json\.\d+\.part$", id="before the entry"),
        pytest.param(r"os.rename standard\.json$", id="in the entry"),
        pytest.param(r"open tiny\.md\.\d+\.part$", id="between entry and table"),
        pytest.param(r"os.rename tiny\.md$", id="in the table"),
    ],
)
def test_a_kill_while_publishing_tears_nothing_and_the_same_command_ends_it(
    harness, killed, finished, tmp_path, moment
):
    harness("publish", *SUITE, "--out", "unbroken")
    unbroken = board(tmp_path / "unbroken")

    dead = killed(moment, "publish", *SUITE)
    torn = board(tmp_path / "leaderboard")
    again = harness("publish", *SUITE)

    assert dead.code == KILLED
    assert torn.items() < unbroken.items()
    assert again.code == 0, again.err
    assert board(tmp_path / "leaderboard") == unbroken


def board(folder):
    """All that a reader of a board sees."""
    paths = [*folder.rglob("*.json"), *folder.rglob("*.md")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_a_full_disk_while_publishing_leaves_the_old_board(harness, limited, finished, tmp_path):
    harness("publish", *SUITE)
    before = files(tmp_path / "leaderboard")

    full = limited(500, "publish", *SUITE)

    assert full.code == 1
    assert "File too large; what is finished is safe" in flat(full.err)
    assert files(tmp_path / "leaderboard") == before


@pytest.mark.parametrize(
    "years", [("1970", "2999"), ("2999", "1970"), ("2026", "2026")], ids=["back", "ahead", "same"]
)
def test_a_clock_that_jumped_makes_no_second_row(harness, two_seeds, tmp_path, years):
    shutil.copytree(two_seeds, tmp_path, dirs_exist_ok=True)
    for seed, year in enumerate(years):
        path = cell_of(tmp_path / "runs", seed) / "manifest.json"
        content = json.loads(path.read_text())
        content["provenance"]["started"] = f"{year}-01-01T00:00:00+00:00"
        path.write_text(json.dumps(content))

    first = json.loads(harness("publish", *SUITE, "--json").out)
    written = files(tmp_path / "leaderboard")
    second = json.loads(harness("publish", *SUITE, "--json").out)

    board = json.loads((tmp_path / "leaderboard" / "tiny.json").read_text())
    assert [row["seed"] for row in first["rows"]] == [0, 1]
    assert [row["model"] for row in board["rows"]] == ["cnn/digits.standard"]
    assert first == second
    assert files(tmp_path / "leaderboard") == written

"""Merging run folders: what is missing comes, what is there stays, what differs is told."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile

import pytest
from filelock import FileLock

from harness.errors import UsageError
from harness.flags import Checks
from harness.merging import merge
from harness.records import Record
from harness.store import CellFolder, Shard

FIRST, SECOND = Shard(0, (0, 1)), Shard(1, (2, 3))


def write(cell, shard, *, margin=-0.5):
    cell.write(shard, [Record(i, "pgd", "8/255", 1, 1, 0.5, 2, margin) for i in shard.ids])


def cell_in(root, *shards, seed=0, host="here"):
    """A cell with finished shards; where it was measured is no part of what it is."""
    cell = CellFolder(root / f"key-{seed}")
    cell.write_manifest({"ingredients": {"seed": seed}, "provenance": {"host": host}})
    for shard in shards:
        write(cell, shard)
    return cell


def trained(root, content=b"weights", name="training"):
    folder = root / "weights" / name
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(content)
    (folder / "card.json").write_text(json.dumps({"sha256": hashlib.sha256(content).hexdigest()}))
    return folder


def image_file(cell, name, content="pixels"):
    path = cell.path / "images" / f"{name}.npz"
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("clean.npy", content)
    return path


def everything(root):
    """All files, but the locks."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != "lock"
    }


@pytest.fixture
def sides(tmp_path):
    return tmp_path / "there", tmp_path / "here"


def test_what_is_missing_is_copied_as_it_is(sides):
    there, here = sides
    image_file(cell_in(there, FIRST, SECOND), "gallery")
    trained(there)

    done = merge(there, here)

    assert everything(here) == everything(there)
    assert done.copied == {"weights": 1, "cells": 1, "shards": 2, "images": 1}
    assert (done.different, done.refused) == ([], [])


def test_shards_of_one_cell_that_two_machines_shared_come_together(sides):
    there, here = sides
    cell_in(there, SECOND, host="there")
    own = cell_in(here, FIRST)

    done = merge(there, here)

    assert own.has(FIRST)
    assert own.has(SECOND)
    assert own.manifest()["provenance"] == {"host": "here"}
    assert done.copied == {"shards": 1}


def test_merging_again_changes_nothing(sides):
    there, here = sides
    theirs, own = cell_in(there, FIRST, SECOND), cell_in(here, FIRST)
    write(own, SECOND, margin=-0.25)
    theirs.log("shard-finished", shard="00000", seconds=1.5)
    trained(there)
    merge(there, here)
    before = everything(here)

    done = merge(there, here)

    assert everything(here) == before
    assert done.copied == {}
    assert done.equal == 2
    assert len(done.different) == 1


def test_a_shard_that_differs_is_told_and_the_own_one_stays(sides):
    there, here = sides
    theirs, own = cell_in(there), cell_in(here, FIRST)
    write(theirs, FIRST, margin=-0.25)
    image_file(theirs, "gallery")
    before = own.read(FIRST)

    done = merge(there, here)

    [event] = own.events()
    assert own.read(FIRST) == before
    assert (event["event"], event["shard"]) == ("non-determinism", "00000")
    assert "00000.jsonl: not equal to" in done.different[0]
    assert not (own.path / "images").exists()


def test_a_damaged_shard_is_refused_by_name_and_the_others_come(sides):
    there, here = sides
    theirs = cell_in(there, FIRST, SECOND)
    damaged = theirs.shard_file("00000")
    damaged.write_bytes(damaged.read_bytes()[:-10])

    done = merge(there, here)

    assert done.refused == [f"{damaged}: altered, or of another cell"]
    assert CellFolder(here / "key-0").shard_names() == ["00001"]


def test_a_damaged_shard_here_is_replaced_by_a_whole_one(sides):
    there, here = sides
    cell_in(there, FIRST)
    own = cell_in(here, FIRST)
    own.shard_file("00000").write_text("torn")

    merge(there, here)

    assert own.has(FIRST)


def test_a_foreign_shard_is_refused(sides):
    there, here = sides
    theirs, other = cell_in(there, FIRST), cell_in(there, FIRST, seed=1)
    shutil.copy(other.shard_file("00000"), theirs.shard_file("00000"))

    done = merge(there, here)

    assert len(done.refused) == 1
    assert done.copied == {"cells": 2, "shards": 1}


def test_another_cell_under_the_same_name_is_refused(sides):
    there, here = sides
    cell_in(there, FIRST, seed=1).path.rename(there / "key-0")
    own = cell_in(here)

    done = merge(there, here)

    assert "another cell than" in done.refused[0]
    assert own.shard_names() == []


def test_a_damaged_manifest_is_refused_and_the_other_cells_come(sides):
    there, here = sides
    cell_in(there, FIRST)
    (cell_in(there, FIRST, seed=1).path / "manifest.json").write_text("{")

    done = merge(there, here)

    assert "key-1/manifest.json: not JSON" in done.refused[0]
    assert CellFolder(here / "key-0").has(FIRST)


def test_damaged_images_are_refused_by_name(sides):
    there, here = sides
    path = image_file(cell_in(there, FIRST), "00000", "pixels" * 100)
    path.write_bytes(path.read_bytes().replace(b"pixels", b"pixelz", 1))

    done = merge(there, here)

    assert done.refused == [f"{path}: altered"]
    assert CellFolder(here / "key-0").has(FIRST)


def test_the_checks_that_looked_at_more_images_stand(sides):
    there, here = sides
    cell_in(there).write_checks(Checks(64))
    own = cell_in(here)
    own.write_checks(Checks(16))

    merge(there, here)

    assert own.checks() == Checks(64)


def test_events_of_both_sides_are_kept(sides):
    there, here = sides
    cell_in(there).log("worker-died", shard="00000")
    own = cell_in(here)
    own.log("shard-finished", shard="00001")

    merge(there, here)

    assert sorted(event["event"] for event in own.events()) == ["shard-finished", "worker-died"]


def test_weights_that_differ_are_told_and_the_own_ones_stay(sides):
    there, here = sides
    trained(there, b"theirs")
    own = trained(here, b"ours")

    done = merge(there, here)

    assert (own / "weights.safetensors").read_bytes() == b"ours"
    assert "weights.safetensors: not equal to" in done.different[0]


def test_weights_that_are_not_what_their_card_says_are_refused(sides):
    there, here = sides
    (trained(there) / "weights.safetensors").write_bytes(b"others")

    done = merge(there, here)

    assert "weights.safetensors: altered" in done.refused[0]
    assert not (here / "weights").exists()


def test_weights_that_are_being_trained_here_are_left_alone(sides):
    there, here = sides
    trained(there)
    own = here / "weights" / "training"
    own.mkdir(parents=True)

    with FileLock(own / "lock"):
        done = merge(there, here)

    assert "is being trained" in done.refused[0]
    assert not (own / "card.json").exists()


def test_fetched_weights_are_copied_where_their_name_is_their_hash(sides):
    there, here = sides
    cell_in(there)
    fetched = there / "weights" / "fetched"
    fetched.mkdir(parents=True)
    name = f"{hashlib.sha256(b'right').hexdigest()[:16]}-a.safetensors"
    (fetched / name).write_bytes(b"right")
    (fetched / "0123456789abcdef-b.safetensors").write_bytes(b"wrong")

    done = merge(there, here)

    assert [path.name for path in (here / "weights" / "fetched").iterdir()] == [name]
    assert "b.safetensors: altered" in done.refused[0]


def test_a_folder_without_cells_is_refused(sides):
    with pytest.raises(UsageError, match="holds no cell; name a run folder"):
        merge(*sides)


def test_a_folder_is_not_merged_into_itself(tmp_path):
    cell_in(tmp_path, FIRST)

    with pytest.raises(UsageError, match="are the same folder"):
        merge(tmp_path, tmp_path / ".." / tmp_path.name)

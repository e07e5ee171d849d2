"""Faults of disks, clocks and people: nothing finished is lost, and nothing is counted twice."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.api import RunStart, ShardEnd
from harness.cli.progress import TerminalProgress
from harness.errors import StoreError
from harness.records import Record
from harness.scoring import collect
from harness.store import CellFolder, Shard, Store

ROOT = Path(__file__).parents[2]
FIRST, SECOND = Shard(0, (0, 1)), Shard(1, (2, 3))

WRITER = """
import os, re, sys
from pathlib import Path
from harness.records import Record
from harness.store import CellFolder, Shard

root, event, pattern = sys.argv[1:]

def die(name, arguments):
    if name == event and re.search(pattern, str(arguments[name == "os.rename"])):
        os.kill(os.getpid(), 9)

def records(*samples):
    return [Record(sample, "pgd", "8/255", 1, 1, 0.5, 2, -0.5) for sample in samples]

sys.addaudithook(die)
folder = CellFolder(Path(root))
folder.write(Shard(0, (0, 1)), records(0, 1))
folder.write(Shard(1, (2, 3)), records(2, 3))
"""
"""Writes two shards, and is killed just before it opens, or gives its name to, a file."""


def records(*samples, attack="pgd"):
    return [Record(sample, attack, "8/255", 1, 1, 0.5, 2, -0.5) for sample in samples]


def written(folder, *shards):
    """A cell with finished shards."""
    cell = CellFolder(folder)
    cell.write_manifest({"row": folder.name})
    for shard in shards:
        cell.write(shard, records(*shard.ids))
    return cell


def write_until(folder, event, pattern):
    return subprocess.run(
        [sys.executable, "-c", WRITER, folder, event, pattern], check=False, timeout=60
    ).returncode


def make_old(file):
    """Take out of a shard file what older files do not say."""
    lines = file.read_text().splitlines()
    end = json.loads(lines[-1])
    del end["cell"], end["shard"]
    file.write_text("\n".join([*lines[:-1], json.dumps(end)]) + "\n")


@pytest.mark.parametrize(
    ("event", "pattern", "finished"),
    [
        pytest.param("open", r"00000\.jsonl\.\d+\.part$", [], id="before the first"),
        pytest.param("os.rename", r"00000\.jsonl$", [], id="in the first"),
        pytest.param("open", r"/shards$", [FIRST], id="named, folder not synced"),
        pytest.param("open", r"00001\.jsonl\.\d+\.part$", [FIRST], id="between shards"),
        pytest.param("os.rename", r"00001\.jsonl$", [FIRST], id="in the last"),
    ],
)
def test_a_kill_at_any_step_of_a_write_keeps_what_was_finished_and_the_rest_is_redone(
    tmp_path, event, pattern, finished
):
    unbroken, broken = tmp_path / "a" / "key", tmp_path / "b" / "key"
    write_until(unbroken, "never", "")

    code = write_until(broken, event, pattern)
    kept = [shard for shard in (FIRST, SECOND) if CellFolder(broken).has(shard)]
    again = write_until(broken, "never", "")

    assert (code, again) == (-signal.SIGKILL, 0)
    assert kept == finished
    assert contents(broken) == contents(unbroken)
    assert CellFolder(broken).shard_names() == ["00000", "00001"]
    assert CellFolder(broken).events() == []


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("shards/*.jsonl")}


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        pytest.param("other", "00000", id="the same samples of another cell"),
        pytest.param("key", "00001", id="other samples of the same cell"),
        pytest.param("other", "00001", id="other samples of another cell"),
    ],
)
def test_a_foreign_shard_is_not_counted_and_is_done_again(tmp_path, cell, name):
    key = written(tmp_path / "key", FIRST, SECOND)
    written(tmp_path / "other", FIRST, SECOND)
    intact = key.shard_file("00000").read_bytes()
    shutil.copy(tmp_path / cell / "shards" / f"{name}.jsonl", key.shard_file("00000"))

    found = collect(key, [FIRST, SECOND])
    key.write(FIRST, records(*FIRST.ids))

    assert found.records == tuple(records(*SECOND.ids))
    assert found.flags == ("missing-images",)
    assert key.shard_file("00000").read_bytes() == intact
    assert key.events() == [{"event": "replaced-damaged", "shard": "00000"}]


def test_reading_a_foreign_shard_is_refused_with_the_remedy(tmp_path):
    key = written(tmp_path / "key", FIRST)
    written(tmp_path / "other", FIRST)
    shutil.copy(tmp_path / "other" / "shards" / "00000.jsonl", key.shard_file("00000"))

    with pytest.raises(StoreError, match="or of another cell; run the suite again"):
        key.read(FIRST)


def test_a_limited_shard_under_the_name_of_a_whole_one_is_not_counted(tmp_path):
    limited = Shard(0, (0,), is_whole=False)
    key = written(tmp_path / "key", limited)
    key.shard_file(limited.name).rename(key.shard_file("00000"))

    assert not key.has(FIRST)
    assert not key.has(limited)


def test_an_older_shard_that_names_no_cell_counts(tmp_path):
    key = written(tmp_path / "key", FIRST)

    make_old(key.shard_file("00000"))

    assert key.read(FIRST) == records(*FIRST.ids)
    assert key.has(Shard(0, (0,), is_whole=False))


def test_an_older_shard_with_other_samples_does_not_count(tmp_path):
    key = written(tmp_path / "key", SECOND)

    make_old(key.shard_file("00001"))
    key.shard_file("00001").rename(key.shard_file("00000"))

    assert not key.has(FIRST)
    assert not key.has(Shard(0, (0,), is_whole=False))


def test_a_sample_is_not_taken_from_a_measure_of_that_name(tmp_path):
    cell, shard = CellFolder(tmp_path), Shard(0, (7,))
    told = Record(7, "pgd", "0", 1, 1, 0.5, 2, -0.5, reason='"sample":8', measures={"sample": 9.0})

    cell.write(shard, [told])

    assert cell.read(shard) == [told]


def test_a_cell_that_was_removed_while_the_run_was_at_work_is_not_scored(tmp_path):
    cell = written(tmp_path / "key", FIRST)
    shutil.rmtree(cell.path)
    cell.write(SECOND, records(*SECOND.ids))

    with pytest.raises(StoreError, match=r"its manifest is gone: .*; run the same command again"):
        collect(cell, [FIRST, SECOND])


def test_a_lost_manifest_is_written_again_beside_its_shards(tmp_path):
    cell = written(tmp_path / "key", FIRST, SECOND)
    (cell.path / "manifest.json").write_text("{")

    with pytest.raises(StoreError, match="delete this one file and run again: its shards are kept"):
        cell.manifest()
    (cell.path / "manifest.json").unlink()
    cell.write_manifest({"row": "key"})

    assert collect(cell, [FIRST, SECOND]).flags == ()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into a read-only folder")
def test_a_read_only_folder_is_explained(tmp_path):
    tmp_path.chmod(0o500)

    with pytest.raises(StoreError, match="Permission denied; what is finished is safe"):
        Store(tmp_path / "runs").check_writable()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc, where nobody can write")
def test_a_folder_that_nobody_can_write_is_explained():
    with pytest.raises(StoreError, match=r"cannot write /proc/.*; what is finished is safe"):
        Store(Path("/proc/runs")).check_writable()


def test_only_the_provenance_reads_a_clock_that_people_can_set():
    wall = re.compile(r"\btime\.time\(|\.now\(|\.utcnow\(|\.today\(|strftime\(|localtime\(")

    found = {
        path.name for path in (ROOT / "harness").rglob("*.py") if wall.search(path.read_text())
    }

    assert found == {"provenance.py"}


@pytest.mark.parametrize("seconds", [0.0, 0.25, 1e6], ids=["none", "some", "many"])
def test_the_time_left_is_never_negative(capsys, seconds):
    progress = TerminalProgress()
    progress.run_started(RunStart("tiny", ("cnn",), shards=3, finished=0, workers=4))

    for index in range(3):
        progress.shard_finished(ShardEnd("cnn", index, images=8, seconds=seconds))

    told = re.findall(r"about (.*) left", capsys.readouterr().err)
    assert len(told) == 2
    assert not any("-" in text for text in told)

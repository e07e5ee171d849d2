"""The run folder: shards are there whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from harness.errors import StoreError
from harness.flags import Checks
from harness.records import Record
from harness.store import CellFolder, Shard, Store, write_atomically

WHOLE = Shard(0, (10, 11))
FIRST = Shard(0, (10,), is_whole=False)

WRITER = """
import signal, sys
from pathlib import Path
from harness.records import Record
from harness.store import CellFolder, Shard

def records(count):
    return [Record(i, "pgd", "8/255", 1, 1, 0.5, 2, -0.5, reason="x" * 100) for i in range(count)]

folder = CellFolder(Path(sys.argv[1]))
"""
"""The start of a program that writes shards."""

FOR_EVER = """
for index in range(1_000_000):
    folder.write(Shard(index, tuple(range(2000))), records(2000))
    print(index, flush=True)
"""

TWO = """
import resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
folder.write(Shard(0, (0, 1)), records(2))
folder.write(Shard(1, tuple(range(2000))), records(2000))
"""
"""The second shard hits the largest size of a file, as on a full disk."""


def record(sample, *, prediction=2, epsilon="8/255"):
    """What happened to one image."""
    return Record(
        sample=sample,
        attack="pgd",
        epsilon=epsilon,
        label=1,
        clean_prediction=1,
        clean_margin=0.5,
        adversarial_prediction=prediction,
        adversarial_margin=-0.5,
        flags=("carried",),
        measures={"confidence": 0.25},
    )


RECORDS = [record(10), record(10, epsilon="16/255"), record(11), record(11, epsilon="16/255")]


def shard_files(folder):
    """The names of all files of all shards, half-written ones too."""
    return sorted(path.name for path in (folder / "shards").iterdir())


def finished(tmp_path):
    """A cell with one shard, and the shard's file."""
    cell = CellFolder(tmp_path / "cell")
    cell.write(WHOLE, RECORDS)
    return cell, tmp_path / "cell" / "shards" / "00000.jsonl"


def test_records_are_read_as_they_were_written(tmp_path):
    cell, _ = finished(tmp_path)

    found = cell.read(WHOLE)

    assert found == RECORDS
    assert cell.has(WHOLE)


def test_a_shard_without_samples_is_finished_too(tmp_path):
    cell, empty = CellFolder(tmp_path), Shard(0, ())

    cell.write(empty, [])

    assert cell.has(empty)
    assert cell.read(empty) == []


def test_a_finished_shard_leaves_no_other_file(tmp_path):
    finished(tmp_path)

    assert shard_files(tmp_path / "cell") == ["00000.jsonl"]


def test_a_shard_is_not_finished_before_it_is_written(tmp_path):
    cell = CellFolder(tmp_path)

    assert not cell.has(WHOLE)


def test_reading_what_is_not_finished_is_refused_with_the_remedy(tmp_path):
    cell = CellFolder(tmp_path)

    with pytest.raises(
        StoreError, match=r"00000\.jsonl: missing or altered, .*; run the suite again"
    ):
        cell.read(WHOLE)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: content[:-10], id="end-cut-off"),
        pytest.param(lambda content: content[: len(content) // 2], id="half"),
        pytest.param(lambda content: content[: content.index(b"\n") + 1], id="one-line-left"),
        pytest.param(lambda content: content.split(b"\n", 1)[1], id="first-line-gone"),
        pytest.param(lambda content: content.replace(b"0.25", b"0.26", 1), id="one-digit"),
        pytest.param(lambda content: content.replace(b"carried", b"\xff\xfe", 1), id="no-text"),
        pytest.param(lambda content: content + b"{}\n", id="one-line-more"),
        pytest.param(lambda _: b"", id="empty"),
        pytest.param(lambda _: b"\n", id="empty-line"),
        pytest.param(lambda content: bytes(len(content)), id="zeros"),
        pytest.param(lambda _: b'{"schema": 1}\n', id="foreign-object"),
        pytest.param(lambda _: b"[1, 2]\n", id="foreign-list"),
        pytest.param(lambda _: b"null\n", id="foreign-null"),
        pytest.param(lambda _: b'{"sha256": null}\n', id="foreign-hash"),
    ],
)
def test_a_damaged_shard_counts_as_not_finished_and_is_written_again(tmp_path, damage):
    cell, file = finished(tmp_path)
    intact = file.read_bytes()
    file.write_bytes(damage(intact))

    had = cell.has(WHOLE)
    cell.write(WHOLE, RECORDS)

    assert not had
    assert file.read_bytes() == intact
    assert cell.events() == [{"event": "replaced-damaged", "shard": "00000"}]


def test_reading_an_altered_shard_is_refused(tmp_path):
    cell, file = finished(tmp_path)
    file.write_bytes(file.read_bytes().replace(b'"label":1', b'"label":2', 1))

    with pytest.raises(StoreError, match="run the suite again"):
        cell.read(WHOLE)


def test_a_limited_shard_is_read_from_a_whole_one(tmp_path):
    cell, _ = finished(tmp_path)

    found = cell.read(FIRST)

    assert found == RECORDS[:2]
    assert cell.has(FIRST)


def test_a_whole_shard_is_not_read_from_a_limited_one(tmp_path):
    cell = CellFolder(tmp_path)

    cell.write(FIRST, RECORDS[:2])

    assert cell.has(FIRST)
    assert not cell.has(WHOLE)


def test_a_limited_shard_is_not_read_from_a_damaged_whole_one(tmp_path):
    cell, file = finished(tmp_path)

    file.write_bytes(file.read_bytes()[:-10])

    assert not cell.has(FIRST)


def test_shards_of_different_limits_lie_side_by_side(tmp_path):
    cell = CellFolder(tmp_path)

    cell.write(FIRST, RECORDS[:2])
    cell.write(WHOLE, RECORDS)

    assert shard_files(tmp_path) == ["00000.first-1.jsonl", "00000.jsonl"]


def test_writing_the_same_records_again_changes_nothing(tmp_path):
    cell, file = finished(tmp_path)
    before = file.stat().st_mtime_ns

    cell.write(WHOLE, RECORDS)

    assert file.stat().st_mtime_ns == before
    assert cell.events() == []


def test_different_records_for_a_finished_shard_are_logged_and_the_first_are_kept(tmp_path):
    cell, _ = finished(tmp_path)

    cell.write(WHOLE, [record(10, prediction=1), *RECORDS[1:]])

    (event,) = cell.events()
    assert event["event"] == "non-determinism"
    assert event["shard"] == "00000"
    assert cell.read(WHOLE) == RECORDS


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda root: Store(root).check_writable(), id="check"),
        pytest.param(lambda root: Store(root).cell("key").write(WHOLE, RECORDS), id="shard"),
        pytest.param(lambda root: Store(root).cell("key").write_manifest({}), id="manifest"),
        pytest.param(lambda root: Store(root).cell("key").write_images("a", b""), id="images"),
        pytest.param(lambda root: Store(root).cell("key").log("started"), id="event"),
    ],
)
def test_a_folder_that_cannot_be_written_is_explained(tmp_path, write):
    root = tmp_path / "runs"
    root.write_text("a file, not a folder")

    with pytest.raises(StoreError, match="what is finished is safe: make room or choose another"):
        write(root)


def test_a_folder_that_can_be_written_is_left_empty_by_the_check(tmp_path):
    Store(tmp_path / "runs" / "today").check_writable()

    assert list((tmp_path / "runs" / "today").iterdir()) == []


def test_a_file_that_cannot_be_replaced_leaves_no_part_behind(tmp_path):
    (tmp_path / "table.json").mkdir()

    with pytest.raises(StoreError, match=r"cannot write .*table\.json"):
        write_atomically(tmp_path / "table.json", b"content")

    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]


def test_a_file_is_replaced_and_not_written_into(tmp_path):
    path, seen_by_a_reader = tmp_path / "table.json", tmp_path / "opened-before"
    write_atomically(path, b"first")
    seen_by_a_reader.hardlink_to(path)

    write_atomically(path, b"second")

    assert path.read_bytes() == b"second"
    assert seen_by_a_reader.read_bytes() == b"first"


def test_a_full_disk_is_explained_and_keeps_what_is_finished(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WRITER + TWO, tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )

    cell = CellFolder(tmp_path)
    assert "File too large; what is finished is safe: make room" in done.stderr
    assert cell.has(Shard(0, (0, 1)))
    assert shard_files(tmp_path) == ["00000.jsonl"]


def test_a_death_in_the_middle_of_a_write_leaves_no_half_shard(tmp_path):
    deadly = "signal.signal(signal.SIGXFSZ, signal.SIG_DFL)"

    done = subprocess.run(
        [sys.executable, "-c", WRITER + deadly + TWO, tmp_path], capture_output=True, check=False
    )

    cell = CellFolder(tmp_path)
    half = Shard(1, tuple(range(2000)))
    assert done.returncode == -signal.SIGXFSZ
    assert len(cell.read(Shard(0, (0, 1)))) == 2
    assert not cell.has(half)
    assert not (tmp_path / "shards" / "00001.jsonl").exists()


def test_a_shard_that_death_cut_off_is_written_by_the_next_run(tmp_path):
    deadly = "signal.signal(signal.SIGXFSZ, signal.SIG_DFL)"
    subprocess.run(
        [sys.executable, "-c", WRITER + deadly + TWO, tmp_path], capture_output=True, check=False
    )
    cell = CellFolder(tmp_path)

    cell.write(Shard(1, (10, 11)), RECORDS)

    assert cell.read(Shard(1, (10, 11))) == RECORDS


def test_a_kill_between_two_writes_loses_no_finished_shard(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", WRITER + FOR_EVER, tmp_path], stdout=subprocess.PIPE, text=True
    ) as process:
        told = [process.stdout.readline() for _ in range(5)]
        process.kill()

    cell = CellFolder(tmp_path)
    files = sorted((tmp_path / "shards").glob("*.jsonl"))
    shards = [Shard(int(file.stem), tuple(range(2000))) for file in files]
    assert told == ["0\n", "1\n", "2\n", "3\n", "4\n"]
    assert process.returncode == -signal.SIGKILL
    assert len(shards) >= 5
    assert [len(cell.read(shard)) for shard in shards] == [2000] * len(shards)


def test_a_manifest_is_written_once(tmp_path):
    cell = CellFolder(tmp_path / "key")

    cell.write_manifest({"model": "cnn/digits"})
    cell.write_manifest({"model": "vit/digits"})

    assert cell.manifest() == {"schema": 1, "model": "cnn/digits"}


def test_a_cell_that_was_never_opened_has_no_manifest(tmp_path):
    assert CellFolder(tmp_path).manifest() is None


def test_a_damaged_manifest_is_refused_with_the_remedy(tmp_path):
    (tmp_path / "manifest.json").write_text('{"schema": 1, "mod')

    with pytest.raises(StoreError, match=r"not JSON: .*; delete this one file and run again"):
        CellFolder(tmp_path).manifest()


def test_a_manifest_of_another_schema_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text('{"schema": 99}')

    with pytest.raises(StoreError, match="schema 99, this harness reads 1"):
        CellFolder(tmp_path).manifest()


def test_a_store_lists_the_cells_that_were_opened(tmp_path):
    store = Store(tmp_path)
    store.cell("b").write_manifest({})
    store.cell("a").write_manifest({})
    store.weights("c").mkdir(parents=True)

    found = store.cells()

    assert [cell.path.name for cell in found] == ["a", "b"]


def test_events_are_kept_in_their_order(tmp_path):
    cell = CellFolder(tmp_path)

    cell.log("started", shard="00000")
    cell.log("ended", seconds=1.5)

    assert cell.events() == [
        {"event": "started", "shard": "00000"},
        {"event": "ended", "seconds": 1.5},
    ]


def test_events_of_all_processes_are_told(tmp_path):
    cell = CellFolder(tmp_path)
    (tmp_path / "events-0.jsonl").write_text('{"event": "worker-died"}\n')

    cell.log("started")

    assert sorted(event["event"] for event in cell.events()) == ["started", "worker-died"]


def test_a_torn_last_event_is_left_out(tmp_path):
    cell = CellFolder(tmp_path)
    cell.log("started")
    (file,) = tmp_path.glob("events-*.jsonl")
    file.write_text(file.read_text() + json.dumps({"event": "ended"})[:-5])

    found = cell.events()

    assert found == [{"event": "started"}]


def test_images_are_kept_by_shard(tmp_path):
    cell = CellFolder(tmp_path)

    cell.write_images(FIRST.name, b"content")

    assert cell.has_images(FIRST)
    assert not cell.has_images(WHOLE)


def test_images_of_a_whole_shard_serve_its_first_ones(tmp_path):
    cell = CellFolder(tmp_path)
    cell.write_images(WHOLE.name, b"content")

    assert cell.images(FIRST) == tmp_path / "images" / "00000.npz"
    assert cell.images(Shard(1, (12,))) is None


def test_checks_are_kept_and_replaced(tmp_path):
    folder = CellFolder(tmp_path)
    before = folder.checks()

    folder.write_checks(Checks(16, (1, 2), ("zero-gradient",), "8/255", {"noise": (2,)}))
    folder.write_checks(Checks(32, (1,), (), "8/255", {"noise": ()}))

    assert before is None
    assert folder.checks() == Checks(32, (1,), (), "8/255", {"noise": ()})


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b'{"schema": 1}', b'{"schema": 0, "looked": 1}'],
    ids=["empty", "a list", "no findings", "another schema"],
)
def test_checks_that_cannot_be_read_are_as_good_as_none(tmp_path, content):
    (tmp_path / "checks.json").write_bytes(content)

    assert CellFolder(tmp_path).checks() is None

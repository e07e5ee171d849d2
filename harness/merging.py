"""One run folder into another: what is missing is copied, what both have must be equal."""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from harness import hashing
from harness.errors import HarnessError, UsageError
from harness.store import Store, checked_lines, replacing, write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from harness.store import CellFolder

WEIGHTS = "weights.safetensors"
CARD = "card.json"


@dataclass
class Merged:
    """What a merge did; filled while it goes on.

    Attributes:
        copied: Files that were missing, by kind.
        equal: Shards and weights that both sides have, and have equal.
        different: What both sides have, but not equal; the copy that was there stays.
        refused: What was not copied, and why.
    """

    copied: dict[str, int] = field(default_factory=dict)
    equal: int = 0
    different: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def count(self, kind: str) -> None:
        """One more file was copied."""
        self.copied[kind] = self.copied.get(kind, 0) + 1


def merge(source: Path, into: Path) -> Merged:
    """Copy the cells, shards and weights of one run folder that another has not.

    Every file is there whole or not at all, so that a merge that was stopped is made again, and
    one that was finished changes nothing when it is made again.

    Raises:
        UsageError: The source is no run folder, or the same one.
        StoreError: The other folder cannot be written.
    """
    given, target = Store(source), Store(into)
    folders = given.cells()
    trainings = sorted(path.parent for path in source.glob(f"weights/*/{CARD}"))
    if not folders and not trainings:
        raise UsageError(f"{source}: holds no cell; name a run folder, as 'harness run' left it")
    if into.exists() and source.samefile(into):
        raise UsageError(f"{source} and {into} are the same folder")
    target.check_writable()
    done = Merged()
    for training in trainings:
        _merge_weights(training, target.weights(training.name), done)
    for path in sorted(source.glob("weights/fetched/*")):
        _merge_fetched(path, into / "weights" / "fetched" / path.name, done)
    for folder in folders:
        _merge_cell(folder, target.cell(folder.path.name), done)
    return done


def _merge_cell(given: CellFolder, own: CellFolder, done: Merged) -> None:
    try:
        manifest = given.manifest() or {}
        known = own.manifest()
    except HarnessError as error:
        done.refused.append(str(error))
        return
    if known and known["ingredients"] != manifest["ingredients"]:
        done.refused.append(f"{given.path}: another cell than {own.path}, under the same name")
        return
    if known is None:
        write_atomically(own.path / "manifest.json", (given.path / "manifest.json").read_bytes())
        done.count("cells")
    for name in given.shard_names():
        if _is_shared(given, own, name, done):
            _copy_images(given, own, name, done)
    _merge_checks(given, own)
    _merge_events(given, own)


def _is_shared(given: CellFolder, own: CellFolder, name: str, done: Merged) -> bool:
    """Both folders have the shard now, and have it equal."""
    path = given.shard_file(name)
    content = path.read_bytes()
    theirs, ours = checked_lines(content, cell=own.path.name, name=name), own.lines(name)
    if theirs is None:
        done.refused.append(f"{path}: altered, or of another cell")
        return False
    if ours is None:
        write_atomically(own.shard_file(name), content)
        done.count("shards")
        return True
    if ours == theirs:
        done.equal += 1
        return True
    done.different.append(f"{path}: not equal to {own.shard_file(name)}")
    event = {"event": "non-determinism", "shard": name, "sha256": hashing.of_bytes(content)}
    if event not in own.events():
        own.log(**event)
    return False


def _copy_images(given: CellFolder, own: CellFolder, name: str, done: Merged) -> None:
    """Copy the images of a shard that both folders agree on; the gallery comes with the first."""
    for stem in (name, *(["gallery"] if name.startswith("00000") else [])):
        path, place = (cell.path / "images" / f"{stem}.npz" for cell in (given, own))
        if not path.exists() or place.exists():
            continue
        if not _is_whole_archive(path):
            done.refused.append(f"{path}: altered")
            continue
        with path.open("rb") as read, replacing(place) as file:
            shutil.copyfileobj(read, file)
        done.count("images")


def _is_whole_archive(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError):
        return False


def _merge_checks(given: CellFolder, own: CellFolder) -> None:
    """Keep the checks that looked at more images."""
    theirs, ours = given.checks(), own.checks()
    if theirs and (ours is None or theirs.looked > ours.looked):
        own.write_checks(theirs)


def _merge_events(given: CellFolder, own: CellFolder) -> None:
    """Keep the events that nobody here tells of, in a file of their own."""
    known = own.events()
    missing = [event for event in given.events() if event not in known]
    if missing:
        path = own.path / "events-merged.jsonl"
        before = path.read_bytes() if path.exists() else b""
        lines = "".join(json.dumps(event, sort_keys=True) + "\n" for event in missing)
        write_atomically(path, before + lines.encode())


def _merge_weights(given: Path, own: Path, done: Merged) -> None:
    """Copy a finished training, its card last; nothing while somebody trains the same here."""
    theirs, ours = _card(given), _card(own)
    content = (given / WEIGHTS).read_bytes() if (given / WEIGHTS).exists() else b""
    if theirs is None or hashing.of_bytes(content) != theirs.get("sha256"):
        done.refused.append(f"{given / WEIGHTS}: altered, or not what its card says")
        return
    if ours is not None:
        if ours.get("sha256") == theirs["sha256"]:
            done.equal += 1
        else:
            done.different.append(f"{given / WEIGHTS}: not equal to {own / WEIGHTS}")
        return
    own.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(own / "lock", timeout=0):
            write_atomically(own / WEIGHTS, content)
            write_atomically(own / CARD, (given / CARD).read_bytes())
    except Timeout:
        done.refused.append(f"{given}: is being trained in {own}; merge again afterwards")
        return
    (own / "checkpoint.pt").unlink(missing_ok=True)
    done.count("weights")


def _card(folder: Path) -> dict[str, Any] | None:
    """The card of a finished training; None where it is not finished."""
    try:
        content = json.loads((folder / CARD).read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and (folder / WEIGHTS).is_file() else None


def _merge_fetched(given: Path, own: Path, done: Merged) -> None:
    """Copy downloaded weights, whose name starts with their hash."""
    if own.exists() or given.name.endswith(".part"):
        return
    if not given.name.startswith(hashing.of_file(given)[:16]):
        done.refused.append(f"{given}: altered")
        return
    with given.open("rb") as read, replacing(own) as file:
        shutil.copyfileobj(read, file)
    done.count("weights")

"""The run folder: plain files, complete only by rename, safe against a kill at any moment."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from harness import hashing
from harness.errors import StoreError
from harness.flags import Checks
from harness.records import Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

SCHEMA = 1
CHECKS_SCHEMA = 1
"""Raised when the checks change, so that the next run makes them again."""

SAMPLE = '"sample":'


@dataclass(frozen=True)
class Shard:
    """A fixed run of sample ids: the unit of work and of resume.

    Attributes:
        index: Its place among the shards of the suite.
        ids: Its samples; the first of them only, where a limit cuts it.
        is_whole: No limit cuts it.
    """

    index: int
    ids: tuple[int, ...]
    is_whole: bool = True

    @property
    def name(self) -> str:
        """The stem of its files."""
        return f"{self.index:05d}" if self.is_whole else f"{self.index:05d}.first-{len(self.ids)}"


@dataclass(frozen=True)
class CellFolder:
    """The files of one cell.

    Attributes:
        path: `runs/<cell key>`.
    """

    path: Path

    def manifest(self) -> dict[str, Any] | None:
        """What the cell is; None before it was first opened."""
        path = self.path / "manifest.json"
        if not path.exists():
            return None
        return _parsed(path.read_bytes(), path)

    def write_manifest(self, content: Mapping[str, Any]) -> None:
        """Say what the cell is, once: an existing manifest stays as it is."""
        path = self.path / "manifest.json"
        if not path.exists():
            text = json.dumps({"schema": SCHEMA, **content}, indent=1, sort_keys=True)
            write_atomically(path, (text + "\n").encode())

    def checks(self) -> Checks | None:
        """What the checks of the model found; None where there are none that can be read."""
        try:
            content = json.loads((self.path / "checks.json").read_bytes())
            return Checks.from_json(content) if content["schema"] == CHECKS_SCHEMA else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write_checks(self, checks: Checks) -> None:
        """Keep what the checks of the model found, in place of what was known."""
        text = json.dumps({"schema": CHECKS_SCHEMA, **checks.to_json()}, indent=1, sort_keys=True)
        write_atomically(self.path / "checks.json", (text + "\n").encode())

    def has(self, shard: Shard) -> bool:
        """The shard is finished, as it was written, and this cell's own."""
        return self._content(shard) is not None

    def read(self, shard: Shard) -> list[Record]:
        """The records of a finished shard.

        Raises:
            StoreError: It is not finished, was altered, or is another cell's.
        """
        lines = self._content(shard)
        if lines is None:
            raise StoreError(
                f"{self.shard_file(shard.name)}: missing or altered, or of another cell; "
                "run the suite again"
            )
        return [Record.from_json(json.loads(line)) for line in lines]

    def write(self, shard: Shard, records: Iterable[Record]) -> None:
        """Finish a shard; a finished one is left alone, and must be equal.

        Raises:
            StoreError: The folder cannot be written.
        """
        lines = [hashing.canonical_json(record.to_json()) for record in records]
        path, kept = self.shard_file(shard.name), self._own(shard)
        if kept is None:
            is_damaged = path.exists()
            write_atomically(path, self._sealed(shard.name, lines))
            if is_damaged:
                self.log("replaced-damaged", shard=shard.name)
        elif kept != lines:
            self.log("non-determinism", shard=shard.name, sha256=_hash(lines))

    def shard_file(self, name: str) -> Path:
        """Where a shard lies, by its name."""
        return self.path / "shards" / f"{name}.jsonl"

    def shard_names(self) -> list[str]:
        """The shards that have a file, whole or damaged, in order."""
        return sorted(path.name.removesuffix(".jsonl") for path in self.path.glob("shards/*.jsonl"))

    def lines(self, name: str) -> list[str] | None:
        """The records of a shard as JSON; None where it is missing, altered or another cell's."""
        try:
            return checked_lines(self.shard_file(name).read_bytes(), cell=self.path.name, name=name)
        except OSError:
            return None

    def write_images(self, name: str, content: bytes) -> None:
        """Keep clean and adversarial images, as an npz file."""
        write_atomically(self.path / "images" / f"{name}.npz", content)

    def has_images(self, shard: Shard) -> bool:
        """All images of the shard were kept."""
        return self.images(shard) is not None

    def images(self, shard: Shard) -> Path | None:
        """The file of all images of a shard, or of the whole one it is part of."""
        names = dict.fromkeys([shard.name, f"{shard.index:05d}"])
        paths = [self.path / "images" / f"{name}.npz" for name in names]
        return next((path for path in paths if path.exists()), None)

    def log(self, event: str, **facts: Any) -> None:
        """Add a line to this process's own list of events."""
        line = json.dumps({"event": event, **facts}, sort_keys=True) + "\n"
        path = self.path / f"events-{os.getpid()}.jsonl"
        with _explained(path), _opened(path, os.O_APPEND) as file:
            file.write(line.encode())

    def events(self) -> list[dict[str, Any]]:
        """All events of all processes; a torn last line is left out."""
        found = []
        for path in sorted(self.path.glob("events-*.jsonl")):
            for line in path.read_bytes().split(b"\n"):
                with suppress(ValueError):
                    found += [item for item in [json.loads(line)] if isinstance(item, dict)]
        return found

    def _sealed(self, name: str, lines: list[str]) -> bytes:
        """The content of a shard's file: its last line says whose it is and confirms the others."""
        told = {"cell": self.path.name, "shard": name, "count": len(lines), "sha256": _hash(lines)}
        return "".join(f"{line}\n" for line in [*lines, hashing.canonical_json(told)]).encode()

    def _own(self, shard: Shard) -> list[str] | None:
        """The lines of the shard's own file, where it holds the shard's samples."""
        lines = self.lines(shard.name)
        return lines if lines is not None and _samples(lines) == set(shard.ids) else None

    def _content(self, shard: Shard) -> list[str] | None:
        """The lines of a complete and unaltered shard, or of the whole one it is part of."""
        own = self._own(shard)
        if own is not None or shard.is_whole:
            return own
        wanted = set(shard.ids)
        whole = self.lines(f"{shard.index:05d}") or []
        part = [line for line in whole if _sample(line) in wanted]
        return part if _samples(part) == wanted else None


@dataclass(frozen=True)
class Store:
    """A run folder.

    Attributes:
        root: Where cells, weights and their locks lie.
    """

    root: Path

    def cell(self, key: str) -> CellFolder:
        """The folder of a cell."""
        return CellFolder(self.root / key)

    def cells(self) -> list[CellFolder]:
        """All cells that were opened, by key."""
        return [CellFolder(path.parent) for path in sorted(self.root.glob("*/manifest.json"))]

    def weights(self, key: str) -> Path:
        """The folder of one training."""
        return self.root / "weights" / key

    def check_writable(self) -> None:
        """Refuse a folder that cannot be written, before any work is done.

        Raises:
            StoreError: It cannot.
        """
        probe = self.root / f".writable-{os.getpid()}"
        write_atomically(probe, b"")
        probe.unlink()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is either there whole or not at all: temporary file, fsync, rename.

    Raises:
        StoreError: The folder cannot be written, or the disk is full.
    """
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to fill, which takes its name when it is whole, and leaves nothing where it fails.

    Raises:
        StoreError: The folder cannot be written, or the disk is full.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with _opened(part, os.O_TRUNC) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            _sync_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)


def checked_lines(content: bytes, *, cell: str, name: str) -> list[str] | None:
    """The lines of a shard file but the last, if that one confirms them.

    Args:
        content: Of the file.
        cell: Key of the cell that it must be of; older files do not say.
        name: Shard that it must be, the same.
    """
    try:
        *lines, end = content.decode("utf-8").removesuffix("\n").split("\n")
        told = json.loads(end)
        is_own = told.get("cell", cell) == cell and told.get("shard", name) == name
        return lines if is_own and told["sha256"] == _hash(lines) else None
    except (ValueError, KeyError, AttributeError):
        return None


def _hash(lines: list[str]) -> str:
    return hashing.of_bytes("".join(f"{line}\n" for line in lines).encode())


def _samples(lines: list[str]) -> set[int]:
    return {_sample(line) for line in lines}


def _sample(line: str) -> int:
    """The id in a line of canonical JSON: four times as fast as parsing all of it.

    The key is the last of its name, and no string holds it, since quotes in strings are escaped.
    """
    _, _, rest = line.rpartition(SAMPLE)
    return int(rest.partition(",")[0].removesuffix("}"))


def _opened(path: Path, flags: int) -> Any:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o644), "wb")


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # not every file system lets folders be synced
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class _explained:  # noqa: N801 - reads as a verb where it is used
    """Turn an operating system's error into one that says what is safe and what to do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise StoreError(
                f"cannot write {self.path}: {error.strerror}; what is finished is safe: "
                "make room or choose another --out, and run the same command again"
            ) from error


def _parsed(text: bytes, path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise StoreError(
            f"{path}: not JSON: {error}; delete this one file and run again: its shards are kept"
        ) from error
    if content.get("schema") != SCHEMA:
        raise StoreError(f"{path}: schema {content.get('schema')!r}, this harness reads {SCHEMA}")
    return content

"""The run folder: plain files, complete only by rename, safe against a kill at any moment."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness import hashing
from harness.errors import StoreError
from harness.flags import Checks
from harness.records import Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

SCHEMA = 1
CHECKS_SCHEMA = 1
"""Raised when the checks change, so that the next run makes them again."""


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
        """The shard is finished, and as it was written."""
        return self._content(shard) is not None

    def read(self, shard: Shard) -> list[Record]:
        """The records of a finished shard.

        Raises:
            StoreError: It is not finished, or was altered.
        """
        lines = self._content(shard)
        if lines is None:
            raise StoreError(f"{self._file(shard)}: missing or altered; run the suite again")
        return [Record.from_json(json.loads(line)) for line in lines]

    def write(self, shard: Shard, records: Iterable[Record]) -> None:
        """Finish a shard; a finished one is left alone, and must be equal.

        Raises:
            StoreError: The folder cannot be written.
        """
        body = "".join(hashing.canonical_json(record.to_json()) + "\n" for record in records)
        end = {"count": body.count("\n"), "sha256": hashing.of_bytes(body.encode())}
        content = (body + hashing.canonical_json(end) + "\n").encode()
        path = self._file(shard)
        if _checked(path) is None:
            write_atomically(path, content)
        elif path.read_bytes() != content:
            self.log("non-determinism", shard=shard.name, sha256=hashing.of_bytes(content))

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

    def _file(self, shard: Shard) -> Path:
        return self.path / "shards" / f"{shard.name}.jsonl"

    def _content(self, shard: Shard) -> list[str] | None:
        """The record lines of a complete and unaltered shard, or of the whole one it is part of."""
        own = _checked(self._file(shard))
        if own is not None or shard.is_whole:
            return own
        whole = _checked(self.path / "shards" / f"{shard.index:05d}.jsonl")
        if whole is None:
            return None
        wanted = set(shard.ids)
        return [line for line in whole if json.loads(line)["sample"] in wanted]


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
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with _opened(part, os.O_TRUNC) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            _sync_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)


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


def _checked(path: Path) -> list[str] | None:
    """The lines of a shard file but the last, if that one confirms them."""
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    body, _, end = text.removesuffix("\n").rpartition("\n")
    try:
        told = json.loads(end)["sha256"]
    except (ValueError, KeyError, TypeError):
        return None
    if told != hashing.of_bytes((body + "\n" if body else "").encode()):
        return None
    return body.split("\n") if body else []


def _parsed(text: bytes, path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise StoreError(
            f"{path}: not JSON: {error}; move the folder away and run again"
        ) from error
    if content.get("schema") != SCHEMA:
        raise StoreError(f"{path}: schema {content.get('schema')!r}, this harness reads {SCHEMA}")
    return content

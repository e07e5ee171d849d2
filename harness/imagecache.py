"""Decoded images on disk: built once, read as a memory map, noticed when altered."""

from __future__ import annotations

import io
import json
import os
import shutil
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from filelock import FileLock

from harness import hashing
from harness.decoding import draw
from harness.errors import DataError
from harness.store import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from harness.api import ImageRows
    from harness.decoding import Choice

    Bytes = np.ndarray[Any, np.dtype[np.uint8]]
    Integers = np.ndarray[Any, np.dtype[np.int64]]

VERSION = 1
"""Raised when the same choice of the same source is drawn otherwise."""
CHUNK = 512
"""Images that are hashed at once: memory stays flat."""
ALWAYS_HASHED = 2**30
"""Bytes up to which every use hashes the pixels; a larger file is trusted while its size and time
of change stay as they were when it was written."""
SPARE = 2**26
"""Bytes that are left free on the disk."""


@dataclass(frozen=True)
class Stored:
    """Decoded images.

    Attributes:
        pixels: uint8 (image, channel, height, width), a memory map where they are kept on disk.
        labels, ids: int64, one for each image.
        fingerprint: See `fingerprint`.
        is_partial: The source has fewer images than the card says, and all of them are here.
    """

    pixels: Bytes
    labels: Integers
    ids: Integers
    fingerprint: str
    is_partial: bool


def fingerprint(pixels: Bytes, labels: Integers) -> str:
    """The sha256 of shape, labels (int64, little-endian) and pixels, in order."""
    digest = sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(labels, dtype="<i8").tobytes())
    for start in range(0, len(pixels), CHUNK):
        digest.update(np.ascontiguousarray(pixels[start : start + CHUNK]).data)
    return digest.hexdigest()


def folder_of(source: ImageRows, choice: Choice, cache_dir: Path) -> Path:
    """Where the chosen samples of a source are kept."""
    identity = {
        "version": VERSION,
        "source": source.identity,
        "canvas": list(vars(choice.canvas).values()),
        "columns": [choice.card.image_column, choice.card.label_column],
        "card": [choice.card.num_classes, choice.card.id_pattern, choice.expected],
        "ids": hashing.of_value(choice.ids),
    }
    name = "".join(letter if letter.isalnum() else "-" for letter in choice.where)
    return cache_dir / f"{name[-60:]}-{hashing.of_value(identity)[:16]}"


def header(folder: Path) -> dict[str, Any] | None:
    """What a finished folder holds; None where there is none, or it cannot be read."""
    try:
        found = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def stored(source: ImageRows, choice: Choice, cache_dir: Path) -> Stored:
    """The chosen samples, decoded now where nobody has kept them, or where they were altered.

    Raises:
        DataError: The source is not what its card says, or there is no room on the disk.
    """
    if not source.identity:
        return _in_memory(source, choice)
    folder = folder_of(source, choice, cache_dir)
    found = read(folder)
    if found is not None:
        return found
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            found = read(folder)
            return found if found is not None else _built(source, choice, folder)
    except OSError as error:
        raise DataError(
            f"{choice.where}: decoded images cannot be kept in {cache_dir}: {error}; "
            "name another folder with --cache or HARNESS_CACHE"
        ) from error


def read(folder: Path) -> Stored | None:
    """What a folder holds; None where it is missing, truncated or altered."""
    told = header(folder)
    if told is None:
        return None
    try:
        shape = tuple(told["shape"])
        path = folder / "pixels.bin"
        labels, ids = np.load(folder / "labels.npy"), np.load(folder / "ids.npy")
        if path.stat().st_size != int(np.prod(shape)) or _table_hash(labels, ids) != told["table"]:
            return None
        pixels = np.memmap(path, np.uint8, "r", shape=shape)
        is_small = path.stat().st_size <= ALWAYS_HASHED
        is_touched = path.stat().st_mtime_ns != told["written"]
        if (is_small or is_touched) and fingerprint(pixels, labels) != told["fingerprint"]:
            return None
        return Stored(pixels, labels, ids, told["fingerprint"], told["is_partial"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _in_memory(source: ImageRows, choice: Choice) -> Stored:
    buffer = io.BytesIO()
    labels, ids = _written(buffer, source, choice)
    shape = (len(ids), *choice.canvas.image_shape)
    pixels = np.frombuffer(bytearray(buffer.getbuffer()), np.uint8).reshape(shape)
    return Stored(pixels, labels, ids, fingerprint(pixels, labels), _is_partial(choice, len(ids)))


def _built(source: ImageRows, choice: Choice, folder: Path) -> Stored:
    """Decode into a folder of its own, which takes its name when it is complete.

    Only the holder of the lock builds, so what other builders left behind is nobody's.
    """
    for left in folder.parent.glob(f"{folder.name}.*.part"):
        shutil.rmtree(left)
    _refuse_full_disk(choice, folder.parent)
    draft = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    draft.mkdir()
    try:
        _write_folder(draft, source, choice)
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    built = read(folder)
    if built is None:
        raise DataError(f"{choice.where}: {folder} changes while it is written; run again")
    return built


def _write_folder(draft: Path, source: ImageRows, choice: Choice) -> None:
    path = draft / "pixels.bin"
    with path.open("wb") as file:
        labels, ids = _written(file, source, choice)
        file.flush()
        os.fsync(file.fileno())
    shape = (len(ids), *choice.canvas.image_shape)
    np.save(draft / "labels.npy", labels)
    np.save(draft / "ids.npy", ids)
    told = {
        "where": source.where,
        "shape": shape,
        "fingerprint": fingerprint(np.memmap(path, np.uint8, "r", shape=shape), labels),
        "table": _table_hash(labels, ids),
        "is_partial": _is_partial(choice, len(ids)),
        "written": path.stat().st_mtime_ns,
    }
    write_atomically(draft / "card.json", (json.dumps(told, indent=1) + "\n").encode())


def _table_hash(labels: Integers, ids: Integers) -> str:
    """The sha256 of labels and ids: small, and so always checked."""
    return hashing.of_bytes(labels.astype("<i8").tobytes() + ids.astype("<i8").tobytes())


def _is_partial(choice: Choice, drawn: int) -> bool:
    """The source had fewer images than the card says, known before or found out by now."""
    return choice.is_partial or (not choice.ids and drawn < choice.expected)


def _written(file: BinaryIO, source: ImageRows, choice: Choice) -> tuple[Integers, Integers]:
    """Write each image at its place; labels and ids in that order."""
    places = {sample: place for place, sample in enumerate(choice.ids)}
    found: dict[int, tuple[int, int]] = {}
    for item in draw(source, choice):
        if item.pixels is not None:
            place = places[item.sample] if places else len(found)
            file.seek(place * item.pixels.size)
            file.write(item.pixels.tobytes())
            found[place] = (item.label, item.sample)
    if not found:
        raise DataError(f"{choice.where}: {source.where} holds no image")
    if not choice.ids and len(found) > choice.expected:
        raise DataError(
            f"{choice.where}: {source.where} holds {len(found)} images where the card says "
            f"{choice.expected}; is it the split that the suite means?"
        )
    table = np.array([found[place] for place in range(len(found))], np.int64)
    return table[:, 0].copy(), table[:, 1].copy()


def _refuse_full_disk(choice: Choice, folder: Path) -> None:
    needed = choice.expected * int(np.prod(choice.canvas.image_shape)) + SPARE
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"{choice.where}: decoded images need {needed / 2**30:.1f} GiB in {folder}, where "
            f"{free / 2**30:.1f} GiB are free; make room, or name another folder with --cache "
            "or HARNESS_CACHE"
        )

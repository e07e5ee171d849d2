"""Hashes of files and of plain values."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def canonical_json(value: Any) -> str:
    """JSON that is the same for equal values: sorted keys, no spaces, NaN refused."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def of_bytes(content: bytes) -> str:
    """The sha256 of bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def of_value(value: Any) -> str:
    """The sha256 of a plain value's canonical JSON."""
    return of_bytes(canonical_json(value).encode())


def of_file(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_sources(root: Path, paths: Iterable[Path]) -> str:
    """The sha256 of several files with their names below `root`."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        digest.update(of_file(path).encode())
    return digest.hexdigest()

"""Parameters by their flax paths, read from npz files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from harness.api import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

PREFIX = "params/"
REMEDY = (
    "restore the checkpoint with the code that wrote it, and save its parameters alone: "
    "numpy.savez(FILE, **flax.traverse_util.flatten_dict(params, sep='/'))"
)
"""What to do with msgpack shards and other folders of a checkpoint."""


def read_npz(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The parameters of an npz file, each by its path, such as "head/kernel".

    Where some arrays lie under `params/`, these are the parameters and the others are not read.
    A pickle is never opened.

    Raises:
        CheckpointError: No npz file, or one that holds other things than numbers.
    """
    try:
        with path.open("rb") as file:
            return _parameters(np.load(file, allow_pickle=False), path)
    except (OSError, ValueError, BadZipFile, EOFError) as error:
        raise CheckpointError(f"{path}: no npz file: {REMEDY}") from error


def _parameters(opened: object, path: Path) -> dict[str, np.ndarray[Any, Any]]:
    if not isinstance(opened, np.lib.npyio.NpzFile):
        raise CheckpointError(f"{path}: a single array, no npz file: {REMEDY}")
    below = [name for name in opened.files if name.startswith(PREFIX)]
    return {name.removeprefix(PREFIX): _array(opened, name, path) for name in below or opened.files}


def _array(opened: np.lib.npyio.NpzFile[Any], name: str, path: Path) -> np.ndarray[Any, Any]:
    try:
        array: np.ndarray[Any, Any] = opened[name]
    except (ValueError, BadZipFile, EOFError) as error:
        raise CheckpointError(f"{path}: {name} is damaged, or no array of numbers") from error
    if array.dtype not in (np.float16, np.float32, np.float64):
        raise CheckpointError(
            f"{path}: {name} is of type {array.dtype}; save the parameters alone, as float32"
        )
    return array

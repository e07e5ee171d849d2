"""The npz files of clean and adversarial images: as a run keeps them, and read again by sample."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from harness.errors import DataError
from harness.tensors import Images, Samples

GALLERY = "gallery"
"""Stem of the file with the few images that every cell keeps: some of a shard, once more."""
ABSENT = "no saved image of this sample"
"""Why nothing can be shown for a sample."""
_WRONG = (OSError, EOFError, ValueError, TypeError, AttributeError, KeyError, BadZipFile)
"""What numpy raises on a file that is something else."""


def member(attack: str, epsilon: str) -> str:
    """The name of an attack's images in a file.

    >>> member("pgd", "8/255")
    'pgd@8_255'
    """
    return f"{attack}@{epsilon.replace('/', '_')}"


def packed(samples: Samples, adversarial: Mapping[tuple[str, str], Images], count: int) -> bytes:
    """An npz of the first images: ids, labels, clean, and one array an attack and epsilon."""
    arrays: dict[str, Any] = {
        "ids": samples.ids[:count].cpu().numpy(),
        "labels": samples.labels[:count].cpu().numpy(),
        "clean": samples.images[:count].cpu().numpy(),
    }
    for (attack, epsilon), images in adversarial.items():
        arrays[member(attack, epsilon)] = images[:count].cpu().numpy()
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def members(files: Iterable[Path]) -> list[str]:
    """The names of all arrays in some files.

    Raises:
        DataError: A file is no npz.
    """
    names: dict[str, None] = {}
    for file in files:
        with _opened(file) as arrays:
            names |= dict.fromkeys(arrays.files)
    return list(names)


@dataclass(frozen=True)
class Library:
    """The arrays of some files, by sample; those read last are kept.

    Attributes:
        places: File and row of each sample.
    """

    places: Mapping[int, tuple[Path, int]]
    _kept: dict[tuple[Path, str], Any] = field(default_factory=dict)

    @classmethod
    def of(cls, files: Iterable[Path]) -> Library:
        """Some files; where two hold a sample, the first counts.

        Raises:
            DataError: A file holds something else.
        """
        places: dict[int, tuple[Path, int]] = {}
        for file in files:
            for row, sample in enumerate(_read(file, "ids").tolist()):
                places.setdefault(sample, (file, row))
        return cls(places)

    def images(self, name: str, samples: Sequence[int]) -> Images:
        """The rows of an array, sample by sample, on the CPU.

        Raises:
            LookupError: No file has this sample, or its file has no such array.
            DataError: A file holds something else.
        """
        rows = []
        for sample in samples:
            file, row = self.file_and_row(sample)
            rows.append(self._array(file, name)[row])
        return torch.from_numpy(np.stack(rows).astype(np.float32, copy=False))

    def file_and_row(self, sample: int) -> tuple[Path, int]:
        """Where a sample is.

        Raises:
            LookupError: No file has it.
        """
        if sample not in self.places:
            raise LookupError(ABSENT)
        return self.places[sample]

    def _array(self, file: Path, name: str) -> Any:
        if (file, name) not in self._kept:
            if len(self._kept) > 1:  # the clean images, and those of one attack
                self._kept.clear()
            self._kept[file, name] = _read(file, name)
        return self._kept[file, name]


def _read(file: Path, name: str) -> Any:
    with _opened(file) as arrays:
        if "@" in name and name not in arrays.files:  # this attack was not run on these images
            raise LookupError(ABSENT)
        return arrays[name]


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with file.open("rb") as stream, np.load(stream) as arrays:
            yield arrays
    except _WRONG as error:
        raise DataError(
            f"{file}: no npz of adversarial images, with ids, labels, clean and attack@epsilon: "
            f"{error}; run the source again with --save-adversarial"
        ) from error

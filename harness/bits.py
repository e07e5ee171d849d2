"""Bits of samples as text, and runs of their ids: what entries are small by."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from harness.errors import EntryError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Bits = NDArray[np.bool_]

MOST_DIGITS = 12
"""Digits of a sample id: Python itself refuses thousands of them."""
MOST_SAMPLES = 2_000_000
"""Samples that an entry may have: more than any data set of images here."""


def pack(bits: Sequence[bool] | Bits) -> str:
    """Bits as base64, most significant first, padded with zeros to whole bytes.

    >>> pack([True, False, True])
    'oA=='
    """
    return base64.b64encode(np.packbits(np.asarray(bits, dtype=bool)).tobytes()).decode()


def unpack(text: str, count: int) -> Bits:
    """The bits that `pack` wrote.

    Raises:
        EntryError: They are not base64, or not as many as samples.

    >>> unpack('oA==', 3).tolist()
    [True, False, True]
    """
    try:
        content = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    except (binascii.Error, ValueError) as error:
        raise EntryError(f"bits are not base64: {error}") from error
    if len(content) != -(-count // 8):
        raise EntryError(f"bits for {8 * len(content)} samples where there are {count}")
    bits = np.unpackbits(content).astype(bool)
    if bits[count:].any():
        raise EntryError("bits beyond the last sample are set")
    return bits[:count]


def as_runs(ids: Iterable[int]) -> str:
    """Ids in their order, neighbours joined.

    >>> as_runs([0, 1, 2, 7, 5, 6])
    '0-2,7,5-6'
    """
    runs: list[list[int]] = []
    for sample in ids:
        if runs and sample == runs[-1][1] + 1:
            runs[-1][1] = sample
        else:
            runs.append([sample, sample])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)


def from_runs(text: str) -> tuple[int, ...]:
    """The ids that `as_runs` wrote.

    Raises:
        EntryError: They are no such text, or too many, or one stands twice.

    >>> from_runs('0-2,7')
    (0, 1, 2, 7)
    """
    found: list[int] = []
    for run in text.split(",") if text else []:
        first, _, last = run.partition("-")
        if not (_is_id(first) and (not last or _is_id(last))):
            told = run if len(run) <= 2 * MOST_DIGITS else f"{run[: 2 * MOST_DIGITS]}..."
            raise EntryError(f"sample ids {told!r} are no number and no run such as '0-127'")
        length = int(last or first) - int(first) + 1
        if length < 1 or len(found) + length > MOST_SAMPLES:
            raise EntryError(f"sample ids {run!r} are too many, or run backwards")
        found += range(int(first), int(first) + length)
    if len(set(found)) < len(found):
        raise EntryError("a sample id stands twice")
    return tuple(found)


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= MOST_DIGITS

"""Numbers of official code: the full files beside the data, else the subset of tests/golden."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SUBSET = ROOT / "tests" / "golden"
LEFT_OUT = "left_out"
"""The array of a file in tests/golden that names those that only the full file holds."""


class Arrays(dict):
    """The arrays of a file by name; a test that asks for one that was left out is skipped.

    Attributes:
        left_out: Names that only the full file holds; none of a full file.
    """

    def __init__(self, arrays, left_out=()):
        super().__init__(arrays)
        self.left_out = frozenset(left_out)

    def __missing__(self, name):
        if name not in self.left_out:
            raise KeyError(name)
        pytest.skip(f"{name} is not in tests/golden, and no golden files lie beside the data")

    def __or__(self, other):
        """Both, the other's first; what the other leaves out is not filled from here."""
        kept = {name: array for name, array in self.items() if name not in other.left_out}
        return Arrays({**kept, **other}, (self.left_out - set(other)) | other.left_out)

    def under(self, prefix):
        """The arrays whose names begin so, by the rest of their names."""
        for name in self.left_out:
            if name.startswith(prefix):
                self[name]
        return {
            name.removeprefix(prefix): array
            for name, array in self.items()
            if name.startswith(prefix)
        }


def golden_file(family, name):
    """The path of a golden file; a test that needs one that is nowhere is skipped."""
    given = os.environ.get("HARNESS_DATA")
    data = Path(given) if given else ROOT.parent / "shared" / "data"
    places = [folder / family / name for folder in (data.parent / "golden", SUBSET)]
    found = [path for path in places if path.is_file()]
    if not found:
        pytest.skip(f"{family}/{name} is neither beside the data nor in tests/golden")
    return found[0]


def golden_arrays(family, name):
    """All that a golden file holds."""
    with np.load(golden_file(family, name)) as file:
        arrays = dict(file)
    return Arrays(arrays, arrays.pop(LEFT_OUT, np.array([], str)).tolist())

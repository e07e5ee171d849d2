"""The handwritten digits that come with scikit-learn, as a Hugging Face data set."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from harness.api import DataContext, ImageRows

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

BRIGHTEST = 16
SPLITS = {"test": (0, 500), "validation": (500, 700), "train": (700, 1797)}
"""Places in the shuffled order of ids."""


def load(context: DataContext) -> ImageRows:
    """One split, with columns `image` (8x8, grey) and `label`; nothing to look up."""
    first, last = SPLITS[context.split]
    where = f"scikit-learn {version('scikit-learn')}"
    identity = f"{where}: {context.split}"
    return ImageRows(partial(_rows, first, last), where, identity, last - first)


def _rows(first: int, last: int) -> Dataset:
    """Some places of the shuffled order.

    Pixels 0 to 16 become bytes 0 to 255, rounded. The split is fixed: ids are put into the order
    of a multiplicative hash, which scatters each writer's digits over all splits.
    """
    import numpy as np
    from datasets import ClassLabel, Dataset, Features, Image
    from PIL import Image as Picture
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    ids = _shuffled(len(digits.target))[first:last]
    pixels = np.rint(digits.images[ids] * (255 / BRIGHTEST)).astype(np.uint8)
    return Dataset.from_dict(
        {
            "image": [Picture.fromarray(image) for image in pixels],
            "label": digits.target[ids].tolist(),
        },
        features=Features(
            {"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])}
        ),
    )


def _shuffled(count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The ids in the order of Knuth's multiplicative hash, the same for ever."""
    import numpy as np

    hashes = (np.arange(count, dtype=np.uint64) * np.uint64(2654435761)) % np.uint64(2**32)
    return np.argsort(hashes, kind="stable")

"""Images of a data set: decoded once to bytes, fingerprinted, chosen by id."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from harness.errors import DataError
from harness.tensors import Labels, Pixels, Rows, Samples

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.cards import DatasetCard
    from harness.plugins import Entry, Registry


@dataclass(frozen=True)
class ImageData:
    """All images of one split.

    Attributes:
        name, split: Which data these are.
        pixels: As stored.
        labels: Correct classes.
        fingerprint: sha256 of shape, labels and pixels, in order.
        card: Facts about the data set.
    """

    name: str
    split: str
    pixels: Pixels
    labels: Labels
    fingerprint: str
    card: DatasetCard

    def samples(self, ids: Rows) -> Samples:
        """The images of some ids, in [0, 1], and their labels.

        Raises:
            DataError: An id that the split does not have.
        """
        if len(ids) > 0 and int(ids.max()) >= len(self.labels):
            raise DataError(
                f"{self.name}/{self.split} has {len(self.labels)} images; "
                f"there is no sample {int(ids.max())}"
            )
        return Samples(ids, to_images(self.pixels[ids]), self.labels[ids])


def to_images(pixels: Pixels) -> torch.Tensor:
    """The stored bytes as float32 in [0, 1]."""
    return pixels.to(torch.float32) / 255


def load_images(
    registry: Registry, name: str, split: str, *, data_dir: Path | None = None
) -> ImageData:
    """All images of one split of a registered data set.

    Raises:
        DataError: The data are missing, or not what the card says.
    """
    entry = registry.find("datasets", name)
    card: DatasetCard = entry.card
    where = f"{name}/{split}"
    if split not in card.splits:
        raise DataError(f"{where}: no such split; there are {', '.join(card.splits)}")
    rows = _loaded(entry, split, data_dir, where)
    _check_columns(rows, card, where)
    labels = _labels(rows[card.label_column], card, where)
    pixels = np.stack(
        [
            _bytes(image, card, f"{where}: image {number}")
            for number, image in enumerate(rows[card.image_column])
        ]
    )
    return ImageData(
        name,
        split,
        torch.from_numpy(pixels),
        torch.from_numpy(labels),
        fingerprint(pixels, labels),
        card,
    )


def _loaded(entry: Entry, split: str, data_dir: Path | None, where: str) -> Any:
    try:
        return entry.load()(split, data_dir=data_dir, **entry.defaults)
    except OSError as error:
        raise DataError(f"{where}: cannot be read: {error}") from error


def fingerprint(pixels: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> str:
    """The sha256 of shape, labels (int64, little-endian) and pixels, in order."""
    digest = sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(labels, dtype="<i8").tobytes())
    digest.update(np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()


def _check_columns(rows: Any, card: DatasetCard, where: str) -> None:
    for column in (card.image_column, card.label_column):
        if column not in rows.column_names:
            raise DataError(
                f"{where}: no column {column!r}; there are {', '.join(rows.column_names)}"
            )


def _labels(column: Sequence[int], card: DatasetCard, where: str) -> np.ndarray[Any, Any]:
    labels = np.asarray(column, dtype=np.int64)
    if labels.size and not 0 <= labels.min() <= labels.max() < card.num_classes:
        raise DataError(
            f"{where}: labels from {labels.min()} to {labels.max()} "
            f"where the card says {card.num_classes} classes"
        )
    return labels


def _bytes(image: Any, card: DatasetCard, where: str) -> np.ndarray[Any, Any]:
    """One image as uint8 (channel, height, width)."""
    channels, height, width = card.image_shape
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    if pixels.shape[:2] != (height, width):
        raise DataError(
            f"{where} has {pixels.shape[0]}x{pixels.shape[1]} pixels, not {height}x{width}"
        )
    return pixels.reshape(height, width, channels).transpose(2, 0, 1)

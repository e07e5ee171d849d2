"""Images of a suite: found through its data set, decoded once, chosen by id."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from harness.errors import DataError
from harness.imagecache import stored
from harness.labelsets import read_label_sets, with_labels
from harness.sources import Place, located
from harness.tensors import Accepted, Labels, Pixels, Rows, Samples

if TYPE_CHECKING:
    from harness.cards import DatasetCard
    from harness.registry import Registry
    from harness.suite import DataSpec


@dataclass(frozen=True)
class ImageData:
    """All chosen images of one split.

    Attributes:
        name, split: Which data these are.
        pixels: As stored; a memory map where they are kept on disk.
        labels: Correct classes.
        ids: Sample of each place, in the order of the suite.
        fingerprint: sha256 of shape, labels and pixels, in order.
        is_partial: A copy with fewer images than the card says, used as it is.
        card: Facts about the data set.
        accepted: All correct classes of each place, where a file gives several.
        is_prefix: Only the first samples were read: the fingerprint speaks of them alone.
    """

    name: str
    split: str
    pixels: Pixels
    labels: Labels
    ids: Rows
    fingerprint: str
    is_partial: bool
    card: DatasetCard
    accepted: Accepted | None = None
    is_prefix: bool = False

    def samples(self, ids: Rows) -> Samples:
        """The images of some ids, in [0, 1], and their labels.

        Raises:
            DataError: An id that the split does not have.
        """
        order = self.ids.argsort()
        places = torch.searchsorted(self.ids[order], ids).clamp(max=len(order) - 1)
        rows = order[places]
        absent = ids[self.ids[rows] != ids]
        if len(absent) > 0:
            raise DataError(
                f"{self.name}/{self.split} has {len(self.labels)} images here; "
                f"there is no sample {int(absent[0])}"
            )
        accepted = None if self.accepted is None else self.accepted[rows]
        return Samples(ids, to_images(self.pixels[rows]), self.labels[rows], accepted)

    def usable(self) -> tuple[int, ...]:
        """The ids of all images that have a correct class, in their order."""
        if self.accepted is None:
            return tuple(self.ids.tolist())
        return tuple(self.ids[self.accepted.any(dim=1)].tolist())

    def unlabelled(self) -> tuple[int, ...]:
        """The ids of the images that have no correct class."""
        if self.accepted is None:
            return ()
        return tuple(self.ids[~self.accepted.any(dim=1)].tolist())


def to_images(pixels: Pixels) -> torch.Tensor:
    """The stored bytes as float32 in [0, 1]."""
    return pixels.to(torch.float32) / 255


def load_images(registry: Registry, spec: DataSpec, split: str, place: Place) -> ImageData:
    """The images of a suite's split: the frozen samples of the evaluated one, else all.

    Raises:
        DataError: The data are missing, or not what the card says.
    """
    source, choice = located(registry, spec, split, place)
    found = stored(source, choice, place.cache_dir)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the pixels are a read-only map, and are only read
        pixels = torch.from_numpy(found.pixels)
    data = ImageData(
        spec.name,
        split,
        pixels,
        torch.from_numpy(found.labels),
        torch.from_numpy(found.ids),
        found.fingerprint,
        found.is_partial,
        choice.card,
        is_prefix=source.is_prefix,
    )
    if spec.labels == "sets" and split == spec.split:
        return _with_label_sets(data, place)
    return data


def _with_label_sets(data: ImageData, place: Place) -> ImageData:
    """The same images with all correct classes of each, from the file that somebody gave."""
    where = f"{data.name}/{data.split}"
    if place.labels is None:
        raise DataError(
            f"{where}: the suite needs a file with all correct classes of each image: give it "
            "with --labels, such as real.json of https://github.com/google-research/"
            "reassessed-imagenet"
        )
    sets = read_label_sets(place.labels, data.card.num_classes)
    if data.is_partial and data.card.id_pattern and max(sets, default=0) >= len(data.ids):
        raise DataError(
            f"{where}: --labels {place.labels} speaks of the whole split, but this copy has "
            f"{len(data.ids)} images, numbered by their places: give a file for these"
        )
    accepted = torch.zeros(len(data.ids), data.card.num_classes, dtype=torch.bool)
    for row, sample in enumerate(data.ids.tolist()):
        accepted[row, list(sets.get(sample, ()))] = True
    if not accepted.any():
        raise DataError(f"{where}: --labels {place.labels} has no class for any of the images")
    first = accepted.to(torch.uint8).argmax(dim=1)
    is_kept = accepted.gather(1, data.labels[:, None])[:, 0]
    return replace(
        data,
        labels=torch.where(is_kept, data.labels, first),
        accepted=accepted,
        fingerprint=with_labels(data.fingerprint, place.labels),
    )

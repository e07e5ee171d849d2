"""Where the images of a suite are, and which of them count: found without reading one."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api import DataContext, ImageRows
from harness.decoding import Choice
from harness.errors import DataError
from harness.imagecache import folder_of, header

if TYPE_CHECKING:
    from harness.cards import DatasetCard
    from harness.registry import Registry
    from harness.suite import DataSpec


def default_cache() -> Path:
    """Where decoded images are kept unless somebody names another folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("HARNESS_CACHE") or Path(cache) / "moe-robustness-harness")


@dataclass(frozen=True)
class Place:
    """Where images may come from, and where decoded ones are kept.

    Attributes:
        data_dir: Folder with local copies of data sets, laid out as on the hub.
        cache_dir: Of decoded images.
        is_offline: Nothing may touch the network.
        is_fetching: Missing files are downloaded into `data_dir`.
        limit: No more than the first samples of a suite are needed; None for all.
        labels: File with all correct classes of each sample; None where there is one class.
    """

    data_dir: Path | None = None
    cache_dir: Path = field(default_factory=default_cache)
    is_offline: bool = False
    is_fetching: bool = False
    limit: int | None = None
    labels: Path | None = None


def located(
    registry: Registry, spec: DataSpec, split: str, place: Place
) -> tuple[ImageRows, Choice]:
    """Where the images of a split are, and which of them count, without reading one.

    Raises:
        DataError: They are not here and cannot be had.
    """
    entry = registry.find("datasets", spec.name)
    card: DatasetCard = entry.card
    where = f"{spec.name}/{split}"
    if split not in card.splits:
        raise DataError(f"{where}: no such split; there are {', '.join(card.splits)}")
    is_evaluated = split == spec.split  # a limit cuts no training images
    ids = spec.samples if is_evaluated else ()
    limit = place.limit if is_evaluated else None
    needed = (ids or tuple(range(card.splits[split])))[:limit] if limit else None
    context = DataContext(split, card, place.data_dir, place.is_offline, place.is_fetching, needed)
    try:
        source: ImageRows = entry.load()(context, **entry.defaults)
    except OSError as error:
        raise DataError(f"{where}: cannot be read: {error}") from error
    if source.is_prefix and needed:
        return source, Choice(where, card, spec.canvas, len(needed), needed)
    expected = card.splits[split]
    if source.count is not None and source.count < expected:
        return source, Choice(where, card, spec.canvas, source.count, is_partial=True)
    return source, Choice(where, card, spec.canvas, len(ids) or expected, ids)


def known_fingerprint(registry: Registry, spec: DataSpec, split: str, place: Place) -> str:
    """The fingerprint of images that an earlier run decoded; else that of the card's copy."""
    kept: dict[str, Any] | None = None
    with suppress(DataError):
        source, choice = located(registry, spec, split, place)
        kept = header(folder_of(source, choice, place.cache_dir)) if source.identity else None
    card: DatasetCard = registry.find("datasets", spec.name).card
    return str((kept or {}).get("fingerprint") or card.fingerprints.get(split, ""))

"""The rows of a data set, drawn on a canvas: nothing is dropped, and what is broken is named."""

from __future__ import annotations

import io
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.canvas import WrongSize
from harness.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np

    from harness.api import ImageRows
    from harness.canvas import Canvas
    from harness.cards import DatasetCard

BATCH = 256
"""Rows that are read and decoded at once."""
THREADS = 2
"""Threads that decode; Pillow lets others work meanwhile."""
NAMED = 10
"""Broken images that a message names."""


@dataclass(frozen=True)
class Choice:
    """Which samples of a split are drawn, and onto what.

    Attributes:
        where: Data set and split, for messages.
        card: Facts about the data set.
        canvas: Onto what.
        expected: How many they are, as far as the card knows.
        ids: Samples in their order; empty for all, in the order of the rows.
        is_partial: The source has fewer images than the card says, so that all are drawn.
    """

    where: str
    card: DatasetCard
    canvas: Canvas
    expected: int
    ids: tuple[int, ...] = ()
    is_partial: bool = False


class Drawn(NamedTuple):
    """One sample: its pixels, or why there are none."""

    sample: int
    pixels: np.ndarray[Any, np.dtype[np.uint8]] | None
    label: int
    problem: str = ""


def draw(source: ImageRows, choice: Choice) -> Iterator[Drawn]:
    """The chosen samples, in the order of the rows.

    Raises:
        DataError: Columns, labels or label order are not the card's; images that cannot be
            decoded, each named by its id; samples that are not there.
    """
    card, wanted = choice.card, frozenset(choice.ids)
    rows = _opened(source, choice)
    broken: dict[int, str] = {}
    seen, count = 0, 0
    with ThreadPoolExecutor(THREADS) as pool:
        for batch in rows.iter(batch_size=BATCH):
            numbered = [
                (_sample_id(image, place, card), image, label)
                for place, (image, label) in enumerate(
                    zip(batch[card.image_column], batch[card.label_column], strict=True), count
                )
            ]
            count += len(numbered)
            chosen = [row for row in numbered if not wanted or row[0] in wanted]
            for drawn in pool.map(partial(_drawn, choice), chosen):
                seen += 1
                if drawn.pixels is None:
                    broken[drawn.sample] = drawn.problem
                yield drawn
            if source.is_prefix and wanted and seen >= len(wanted):
                break
    _refuse_missing(choice, broken, seen)


def _opened(source: ImageRows, choice: Choice) -> Any:
    """The rows with images as files, not pixels; columns and label order checked."""
    from datasets import Image  # noqa: PLC0415 - half a second

    try:
        rows = source.open()
    except OSError as error:
        raise DataError(f"{choice.where}: {source.where} cannot be read: {error}") from error
    card = choice.card
    for column in (card.image_column, card.label_column):
        if column not in rows.column_names:
            raise DataError(
                f"{choice.where}: {source.where} has no column {column!r}; "
                f"there are {', '.join(rows.column_names)}"
            )
    _check_names(getattr(rows.features[card.label_column], "names", None), source, choice)
    return rows.select_columns([card.image_column, card.label_column]).cast_column(
        card.image_column, Image(decode=False)
    )


def _check_names(names: Sequence[str] | None, source: ImageRows, choice: Choice) -> None:
    """Refuse classes in another order than the card's: every label would mean another thing."""
    known = choice.card.label_names
    if not names or not known:
        return
    labels: dict[str, set[int]] = {}
    for label, written in enumerate(known):
        for alias in {written, *written.split(" ", 1)}:
            labels.setdefault(alias, set()).add(label)
    for label, name in enumerate(names):
        if label not in labels.get(name, {label}):
            raise DataError(
                f"{choice.where}: label {label} is {name!r} in {source.where}, but "
                f"{known[label]!r} on the card: the labels are in another order"
            )
    if len(names) != len(known):
        raise DataError(
            f"{choice.where}: {source.where} has {len(names)} classes, the card {len(known)}"
        )


def _sample_id(image: Any, place: int, card: DatasetCard) -> int:
    """The number in the file's name where the card says how; else the place in the split."""
    found = card.id_pattern and re.search(card.id_pattern, image.get("path") or "")
    return int(found[1]) - 1 if found else place


def _drawn(choice: Choice, row: tuple[int, Any, Any]) -> Drawn:
    """One sample, drawn on the canvas."""
    from PIL import Image as Picture  # noqa: PLC0415 - plans draw nothing

    sample, image, label = row
    if not isinstance(label, int) or not 0 <= label < choice.card.num_classes:
        raise DataError(
            f"{choice.where}: image {sample} has the label {label!r} "
            f"where the card says {choice.card.num_classes} classes"
        )
    try:
        content = image["bytes"]
        with Picture.open(image["path"] if content is None else io.BytesIO(content)) as picture:
            return Drawn(sample, choice.canvas.draw(picture), label)
    except WrongSize as error:
        return Drawn(sample, None, label, str(error))
    except Exception as error:  # noqa: BLE001 - a broken file may make Pillow raise anything
        return Drawn(sample, None, label, f"cannot be decoded ({error})")


def _refuse_missing(choice: Choice, broken: Mapping[int, str], seen: int) -> None:
    if broken:
        told = [f"image {sample} {why}" for sample, why in list(broken.items())[:NAMED]]
        raise DataError(
            f"{choice.where}: {len(broken)} of {seen} images cannot be used: "
            f"{'; '.join(told)}{' ...' if len(broken) > NAMED else ''}. Nothing is left "
            "out silently: restore the files ('harness fetch' checks them)"
        )
    if choice.ids and seen < len(choice.ids):
        raise DataError(
            f"{choice.where}: only {seen} of the {len(choice.ids)} samples of the suite are "
            "there; is it the split that the suite means?"
        )

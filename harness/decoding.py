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
    wanted = frozenset(choice.ids)
    broken: dict[int, str] = {}
    seen: set[int] = set()
    with ThreadPoolExecutor(THREADS) as pool:
        for rows in _numbered(source, choice):
            chosen = [row for row in rows if not wanted or row.sample in wanted]
            for drawn in pool.map(partial(_drawn, choice), chosen):
                if drawn.sample in seen:
                    raise DataError(
                        f"{choice.where}: two images have the id {drawn.sample}; "
                        f"{source.where} is no copy of one split"
                    )
                seen.add(drawn.sample)
                if drawn.pixels is None:
                    broken[drawn.sample] = drawn.problem
                yield drawn
            if source.is_prefix and wanted and len(seen) >= len(wanted):
                break
    _refuse_missing(choice, broken, len(seen))


class _Row(NamedTuple):
    sample: int
    image: Any  # the file, as bytes or a path
    label: Any


def _numbered(source: ImageRows, choice: Choice) -> Iterator[list[_Row]]:
    """The rows with their ids, some at a time.

    Raises:
        DataError: They cannot be read.
    """
    card, count = choice.card, 0
    try:
        for batch in _opened(source, choice).iter(batch_size=BATCH):
            pairs = zip(batch[card.image_column], batch[card.label_column], strict=True)
            rows = [
                _Row(_sample_id(image, place, choice), image, label)
                for place, (image, label) in enumerate(pairs, count)
            ]
            yield rows
            count += len(rows)
    except (DataError, GeneratorExit):
        raise
    except Exception as error:  # a damaged file may make its reader raise anything
        raise DataError(
            f"{choice.where}: {source.where} cannot be read: {error}; restore it, or fetch it again"
        ) from error


def _opened(source: ImageRows, choice: Choice) -> Any:
    """The rows with images as files, not pixels; columns and label order checked."""
    from datasets import Image  # noqa: PLC0415 - half a second

    rows = source.open()
    card = choice.card
    columns = rows.column_names or ()
    for column in (card.image_column, card.label_column):
        if column not in columns:
            raise DataError(
                f"{choice.where}: {source.where} has no column {column!r}; "
                f"there are {', '.join(columns)}"
            )
    kinds = rows.features or {}
    _check_names(getattr(kinds.get(card.label_column), "names", None), source, choice)
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


def _sample_id(image: Any, place: int, choice: Choice) -> int:
    """The number in the file's name where the card says how; else the place in the split.

    Raises:
        DataError: The name says no number, so that nobody knows which of the suite's it is.
    """
    pattern = choice.card.id_pattern
    if not pattern:
        return place
    name = image.get("path") or ""
    found = re.search(pattern, name)
    if found:
        return int(found[1]) - 1
    if choice.ids:
        raise DataError(
            f"{choice.where}: the image at place {place} is called {name!r}, which says no number "
            f"({pattern}): the samples of the suite cannot be told apart in this copy"
        )
    return place


def _drawn(choice: Choice, row: _Row) -> Drawn:
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

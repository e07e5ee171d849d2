"""Several correct classes for one image, from a file such as ImageNet's reassessed labels."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from harness import hashing
from harness.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def read_label_sets(path: Path, num_classes: int) -> dict[int, tuple[int, ...]]:
    """The classes of each sample id that has any.

    The file is JSON: a list with the classes of each sample in the order of the ids, as in
    `real.json` (Beyer et al., 2020, https://arxiv.org/abs/2006.07159), or an object from id to
    classes. A sample without classes is in no set: nobody can say what is right for it.

    Raises:
        DataError: The file cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"--labels {path}: cannot be read: {error}") from error
    found: Mapping[Any, Any] | None = None
    if isinstance(content, list):
        found = dict(enumerate(content))
    elif isinstance(content, dict):
        found = content
    if found is None:
        raise DataError(f"--labels {path}: must be a JSON list of lists of classes, or an object")
    try:
        sets = {int(key): _classes(found[key], path, num_classes) for key in found}
    except ValueError as error:
        raise DataError(f"--labels {path}: a key is no sample id: {error}") from error
    return {sample: classes for sample, classes in sets.items() if classes}


def with_labels(fingerprint: str, path: Path) -> str:
    """The fingerprint of images together with their label sets."""
    return hashing.of_value([fingerprint, hashing.of_file(path)])


def _classes(written: Any, path: Path, num_classes: int) -> tuple[int, ...]:
    legal = isinstance(written, list) and all(
        type(item) is int and 0 <= item < num_classes for item in written
    )
    if not legal:
        raise DataError(
            f"--labels {path}: {written!r} is no list of classes from 0 to {num_classes - 1}"
        )
    if len(set(written)) == num_classes:
        raise DataError(f"--labels {path}: an image has every class: nothing could fool a model")
    return tuple(sorted(set(written)))

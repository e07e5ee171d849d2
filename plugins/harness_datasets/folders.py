"""Folders of one's own: images in a folder for each class, or Parquet and Arrow files."""

from __future__ import annotations

import json
import re
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api import DataContext, DataError, DatasetCard, ImageRows

if TYPE_CHECKING:
    from collections.abc import Sequence

SPLITS = ("train", "validation", "valid", "val", "test")
IMAGES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp"})


def describe_image_folder(path: str) -> DatasetCard:
    """The card of a folder of `class/image` or `split/class/image`; classes in sorted order.

    Raises:
        DataError: No such folder, no images, or splits with different classes.
    """
    root = _existing(path)
    splits = _split_folders(root)
    classes = {name: _classes(folder) for name, folder in splits.items()}
    names = next(iter(classes.values()))
    for split, found in classes.items():
        if found != names:
            odd = sorted(set(found) ^ set(names))
            raise DataError(f"{root}: the classes of {split} differ: {', '.join(odd[:5])}")
    return DatasetCard(
        summary=f"The images of {root.name}, a folder for each class.",
        num_classes=len(names),
        image_shape=(3, 0, 0),
        splits={name: len(_images(folder)) for name, folder in splits.items()},
        label_names=names,
    )


def load_image_folder(context: DataContext, *, name: str) -> ImageRows:
    """The images of one split, sorted by class and file name."""
    folder = _split_folders(_existing(name))[context.split]
    files = _images(folder)
    labels = [context.card.label_names.index(path.parent.name) for path in files]
    opened = partial(_from_paths, [str(path) for path in files], labels, context.card.label_names)
    return ImageRows(opened, str(folder), _identity(files), len(files))


def describe_files(path: str) -> DatasetCard:
    """The card of a folder of Parquet or Arrow files, `split.parquet` or `split-*.parquet`.

    Which column holds images and which the labels is read from the features that Hugging Face
    `datasets` writes into such files.

    Raises:
        DataError: No such folder or files, or files that do not say their features.
    """
    root = _existing(path)
    splits = _split_files(root)
    features = _features(next(iter(splits.values()))[0])
    image = [name for name, kind in features.items() if kind.get("_type") == "Image"]
    label = [name for name, kind in features.items() if kind.get("_type") == "ClassLabel"]
    if not image or not label:
        raise DataError(
            f"{root}: the files name no Image and no ClassLabel column; write them with "
            "datasets.Dataset.to_parquet after casting the columns"
        )
    names = tuple(features[label[0]]["names"])
    return DatasetCard(
        summary=f"The Parquet or Arrow files of {root.name}.",
        num_classes=len(names),
        image_shape=(3, 0, 0),
        splits={split: _count(files) for split, files in splits.items()},
        label_names=names,
        image_column=image[0],
        label_column=label[0],
    )


def load_files(context: DataContext, *, name: str) -> ImageRows:
    """The rows of one split, file by file in the order of their names."""
    root = _existing(name)
    files = _split_files(root)[context.split]
    opened = partial(_from_files, [str(path) for path in files], context.split)
    return ImageRows(opened, str(root), _identity(files), context.card.splits[context.split])


def _existing(path: str) -> Path:
    root = Path(path).expanduser()
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    return root


def _split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split; without any, all images are the split "test"."""
    found = {name: root / name for name in SPLITS if (root / name).is_dir()}
    return found or {"test": root}


def _classes(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(path.name for path in _shown(folder) if path.is_dir()))
    if not names:
        raise DataError(f"{folder}: holds no folder for each class")
    return names


def _images(folder: Path) -> list[Path]:
    """The pictures of all classes.

    Raises:
        DataError: A class holds something else, which would be left out silently.
    """
    files = [path for part in _shown(folder) if part.is_dir() for path in _shown(part)]
    for path in files:
        if path.is_dir() or path.suffix.lower() not in IMAGES:
            raise DataError(f"{path}: is no picture; the folder of a class holds nothing else")
    return sorted(files)


def _shown(folder: Path) -> list[Path]:
    """What is in a folder, but for hidden files."""
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def _from_paths(files: Sequence[str], labels: Sequence[int], names: Sequence[str]) -> Any:
    from datasets import ClassLabel, Dataset, Features, Image

    features = Features({"image": Image(), "label": ClassLabel(names=list(names))})
    return Dataset.from_dict({"image": list(files), "label": list(labels)}, features=features)


def _split_files(root: Path) -> dict[str, list[Path]]:
    """The files of each split, by the first word of their names."""
    found: dict[str, list[Path]] = {}
    for path in sorted([*root.rglob("*.parquet"), *root.rglob("*.arrow")]):
        word = re.match(r"[A-Za-z]+", path.name)
        if word and not any(part.startswith(".") for part in path.relative_to(root).parts):
            # save_to_disk calls every file "data" and puts each split into a folder of its name
            split = path.parent.name if word[0] == "data" and path.parent != root else word[0]
            found.setdefault(split, []).append(path)
    for split, files in found.items():
        if len({path.suffix for path in files}) > 1:
            raise DataError(f"{root}: split {split} is there as .parquet and as .arrow; keep one")
    if not found:
        raise DataError(f"{root}: holds no .parquet or .arrow file, such as test.parquet")
    return found


def _features(path: Path) -> dict[str, Any]:
    """What `datasets` wrote into a file about its columns."""
    told = (_schema(path).metadata or {}).get(b"huggingface", b"{}")
    features: dict[str, Any] = json.loads(told).get("info", {}).get("features", {})
    return features


def _schema(path: Path) -> Any:
    import pyarrow as pa
    from pyarrow.parquet import read_schema

    try:
        if path.suffix == ".parquet":
            return read_schema(path)
        with pa.memory_map(str(path)) as file:
            return pa.ipc.open_stream(file).schema
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _count(files: Sequence[Path]) -> int:
    from pyarrow.parquet import read_metadata

    if files[0].suffix == ".parquet":
        return sum(read_metadata(path).num_rows for path in files)
    return len(_from_files([str(path) for path in files], ""))


def _from_files(files: Sequence[str], split: str) -> Any:
    from datasets import Dataset, concatenate_datasets, load_dataset

    if files[0].endswith(".parquet"):
        wanted = {split: list(files)}
        return load_dataset("parquet", data_files=wanted, split=split, streaming=True)
    return concatenate_datasets([Dataset.from_file(file) for file in files])


def _identity(files: Sequence[Path]) -> str:
    """Changes when a file is added, removed, renamed or written."""
    digest = sha256()
    for path in files:
        stat = path.stat()
        digest.update(f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()

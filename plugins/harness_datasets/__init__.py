"""Data sets, all through Hugging Face `datasets`: embedded, from the hub, and one's own folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.api import DatasetCard, hookimpl
from harness_datasets.folders import describe_files, describe_image_folder

if TYPE_CHECKING:
    from harness.api import Register

CIFAR10 = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


@hookimpl
def register_datasets(register: Register) -> None:
    """Bring the embedded digits, four data sets of the hub, and two families of folders."""
    register("digits", "harness_datasets.digits:load", card=_digits())
    for name, card in _of_the_hub().items():
        register(name, "harness_datasets.hub:load", card=card)
    register(
        "imagefolder/<name>",
        "harness_datasets.folders:load_image_folder",
        card=_family("A folder of class/image or split/class/image.", describe_image_folder),
    )
    register(
        "files/<name>",
        "harness_datasets.folders:load_files",
        card=_family("A folder of Parquet or Arrow files, one or more a split.", describe_files),
    )


def _digits() -> DatasetCard:
    return DatasetCard(
        summary="1,797 handwritten digits of 8x8 pixels in 17 shades of grey.",
        source="UCI Optical Recognition of Handwritten Digits (Alpaydin & Kaynak, 1998, "
        "https://doi.org/10.24432/C50P49), as packaged in scikit-learn",
        licence="CC BY 4.0",
        num_classes=10,
        image_shape=(1, 8, 8),
        splits={"train": 1097, "validation": 200, "test": 500},
        fingerprints={
            "train": "24073fe562b21824eb8b4b9f41728455d965270101b8c9c2212ab7c83988e019",
            "validation": "07ab174112c06f66cc6a6d226ea44fddd5725c56e7d009a64eb817819b253d63",
            "test": "2c4a809dbba36b72114f38ab4c53c3a2eaaa01903dae1ffc4698871e2d2d8959",
        },
        label_names=tuple("0123456789"),
    )


def _of_the_hub() -> dict[str, DatasetCard]:
    """Files, columns and label order as the hub's pages of these data sets state them."""
    return {
        "cifar10": DatasetCard(
            summary="60,000 colour images of 32x32 pixels in 10 classes.",
            source="Krizhevsky, 2009, https://www.cs.toronto.edu/~kriz/cifar.html",
            num_classes=10,
            image_shape=(3, 32, 32),
            splits={"train": 50_000, "test": 10_000},
            label_names=CIFAR10,
            image_column="img",
            hub_id="uoft-cs/cifar10",
            files=_files("plain_text", "train", "test"),
        ),
        "cifar100": DatasetCard(
            summary="60,000 colour images of 32x32 pixels in 100 fine classes.",
            source="Krizhevsky, 2009, https://www.cs.toronto.edu/~kriz/cifar.html",
            num_classes=100,
            image_shape=(3, 32, 32),
            splits={"train": 50_000, "test": 10_000},
            label_names=_labels("cifar100"),
            image_column="img",
            label_column="fine_label",
            hub_id="uoft-cs/cifar100",
            files=_files("cifar100", "train", "test"),
        ),
        "tiny-imagenet": DatasetCard(
            summary="110,000 colour images of 64x64 pixels in 200 classes of ImageNet.",
            source="Le & Yang, 2015, Stanford CS 231N; the labels of its test split are secret",
            num_classes=200,
            image_shape=(3, 64, 64),
            splits={"train": 100_000, "valid": 10_000},
            label_names=_labels("tiny-imagenet"),
            hub_id="zh-plus/tiny-imagenet",
            files=_files("data", "train", "valid"),
        ),
        "imagenet": DatasetCard(
            summary="1.3 million photographs of many sizes in 1,000 classes.",
            source="Russakovsky et al., 2015, https://arxiv.org/abs/1409.0575 (ILSVRC 2012)",
            licence="research and teaching only, see https://image-net.org/download",
            num_classes=1000,
            image_shape=(3, 0, 0),
            splits={"train": 1_281_167, "validation": 50_000},
            label_names=_labels("imagenet"),
            hub_id="ILSVRC/imagenet-1k",
            files=_files("data", "train", "validation"),
            access="accept its terms at https://huggingface.co/datasets/ILSVRC/imagenet-1k, make "
            "a token at https://huggingface.co/settings/tokens, and log in with 'hf auth login' "
            "or set HF_TOKEN",
            id_pattern=r"ILSVRC2012_val_(\d{8})",
        ),
    }


def _files(folder: str, *splits: str) -> dict[str, str]:
    return {split: f"{folder}/{split}-*.parquet" for split in splits}


def _labels(name: str) -> tuple[str, ...]:
    """Names of classes, one a line; what follows the first space is another name of the class."""
    path = Path(__file__).with_name("labels") / f"{name}.txt"
    return tuple(path.read_text(encoding="utf-8").splitlines())


def _family(summary: str, describe: object) -> DatasetCard:
    return DatasetCard(summary, 0, (3, 0, 0), {}, describe=describe)  # type: ignore[arg-type]

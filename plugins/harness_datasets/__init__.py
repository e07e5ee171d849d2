"""Data sets, all through Hugging Face `datasets`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api import DatasetCard, hookimpl

if TYPE_CHECKING:
    from harness.api import Register


@hookimpl
def register_datasets(register: Register) -> None:
    """Bring the embedded digits."""
    register(
        "digits",
        "harness_datasets.digits:load",
        card=DatasetCard(
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
        ),
    )

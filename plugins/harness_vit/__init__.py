"""Dense vision transformers: a small one for the digits, and every model of timm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api import ModelCard, hookimpl

if TYPE_CHECKING:
    from harness.api import Register


@hookimpl
def register_models(register: Register) -> None:
    """Bring the small ViT and the family `timm/<name>`."""
    register(
        "vit/digits",
        "harness_vit.models:vision_transformer",
        card=ModelCard(
            summary="A small vision transformer for 8x8 images: 16 patches of 2x2 pixels.",
            source="Dosovitskiy et al., 2021, https://arxiv.org/abs/2010.11929, in timm's form",
            sizes=(8,),
        ),
        defaults={"patch_size": 2, "width": 48, "depth": 3, "heads": 4},
    )
    register(
        "timm/<name>",
        "harness_vit.models:from_timm",
        card=ModelCard(
            summary="Any model of timm by its name; weights from a file, or by a recipe.",
            source="https://github.com/huggingface/pytorch-image-models",
        ),
    )

"""Dense convolutional networks for small images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api import ModelCard, hookimpl

if TYPE_CHECKING:
    from harness.api import Register


@hookimpl
def register_models(register: Register) -> None:
    """Bring the small ResNet."""
    register(
        "cnn/digits",
        "harness_cnn.resnet:resnet",
        card=ModelCard(
            summary="A small residual network for 8x8 images: one block at each of 3 widths.",
            source="He et al., 2016, https://arxiv.org/abs/1512.03385 (basic blocks, CIFAR stem)",
            sizes=(8,),
        ),
        defaults={"widths": (16, 32, 64), "blocks": (1, 1, 1)},
    )

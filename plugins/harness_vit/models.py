"""Vision transformers, through timm (Dosovitskiy et al., 2021, arXiv 2010.11929)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import timm
import torch
from timm.data.config import resolve_data_config
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from harness.api import ModelContext, ModelError, did_you_mean

if TYPE_CHECKING:
    from harness.tensors import Images, Logits


class Normalised(nn.Module):
    """A classifier of images in [0, 1] around one that wants them normalised and resized.

    Attributes:
        size: (height, width) that the inner model wants.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        inner: nn.Module,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        size: tuple[int, int],
    ) -> None:
        super().__init__()
        self.inner = inner
        self.size = size
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Images) -> Logits:
        """Resize where needed, normalise, classify."""
        if images.shape[2:] != self.size:
            images = functional.interpolate(
                images, self.size, mode="bicubic", align_corners=False, antialias=True
            )
        logits: Tensor = self.inner((images - self.mean) / self.std)
        return logits


def vision_transformer(
    context: ModelContext, *, patch_size: int, width: int, depth: int, heads: int
) -> nn.Module:
    """A ViT for the suite's canvas, with mean pixel 0.5 and spread 0.5 taken off inside.

    Unlike the paper, the head reads the mean of the tokens, not a class token: on few images
    it learns faster (Beyer et al., 2022, https://arxiv.org/abs/2205.01580).

    Args:
        context: Classes and canvas.
        patch_size: Pixels of a patch's side.
        width: Length of a token.
        depth: Blocks.
        heads: Attention heads of a block.
    """
    channels, height, canvas_width = context.image_shape
    inner = VisionTransformer(
        img_size=(height, canvas_width),
        patch_size=patch_size,
        in_chans=channels,
        num_classes=context.num_classes,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        class_token=False,
        global_pool="avg",
    )
    return Normalised(
        inner, mean=(0.5,) * channels, std=(0.5,) * channels, size=(height, canvas_width)
    )


def from_timm(context: ModelContext, *, name: str) -> nn.Module:
    """A model of timm, untrained, with its own normalisation and input size inside.

    Args:
        context: Classes and channels.
        name: As timm knows it.

    Raises:
        ModelError: timm does not know the name.
    """
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        known = timm.list_models()
        raise ModelError(f"timm has no model {name!r}{did_you_mean(architecture, known)}")
    channels = context.image_shape[0]
    inner = timm.create_model(name, num_classes=context.num_classes, in_chans=channels)
    config = resolve_data_config({}, model=inner)
    return Normalised(
        inner,
        mean=tuple(config["mean"][:channels]),
        std=tuple(config["std"][:channels]),
        size=tuple(config["input_size"][1:]),
    )

"""Vision transformers, through timm (Dosovitskiy et al., 2021, arXiv 2010.11929)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.data.config import resolve_data_config
from timm.models import get_pretrained_cfg
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from harness.api import ModelContext, ModelError, did_you_mean

if TYPE_CHECKING:
    from harness.tensors import Images, Logits


class Normalised(nn.Module):
    """A classifier of images in [0, 1] around one that wants them normalised and resized.

    It loads its own state and that of the inner model, whose keys lack our `inner.`.

    Attributes:
        input_size: (height, width) that the inner model wants; read only.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        inner: nn.Module,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        input_size: tuple[int, int],
    ) -> None:
        super().__init__()
        self.inner = inner
        self._input_size = input_size
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        self.register_load_state_dict_pre_hook(_name_as_inner)  # type: ignore[no-untyped-call]

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) that images are resized to."""
        return self._input_size

    def forward(self, images: Images) -> Logits:
        """Resize where needed, normalise, classify."""
        if images.shape[2:] != self.input_size:
            images = functional.interpolate(
                images, self.input_size, mode="bicubic", align_corners=False, antialias=True
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
        inner, mean=(0.5,) * channels, std=(0.5,) * channels, input_size=(height, canvas_width)
    )


def from_timm(context: ModelContext, *, name: str, pretrained: bool) -> nn.Module:
    """A model of timm with its own normalisation and input size inside.

    Args:
        context: Classes and channels.
        name: As timm knows it.
        pretrained: Load timm's weights from the hub; else the model is untrained.

    Raises:
        ModelError: timm does not know the name, or has no weights for it that fit or can be had.
    """
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        known = timm.list_models()
        raise ModelError(f"timm has no model {name!r}{did_you_mean(architecture, known)}")
    if pretrained:
        _check_weights(name, context.num_classes)
    channels = context.image_shape[0]
    inner = _created(name, context.num_classes, channels, pretrained=pretrained)
    config = resolve_data_config({}, model=inner)
    return Normalised(
        inner,
        mean=tuple(config["mean"][:channels]),
        std=tuple(config["std"][:channels]),
        input_size=tuple(config["input_size"][1:]),
    )


def _check_weights(name: str, num_classes: int) -> None:
    """Refuse a model whose weights timm does not have, or has for other classes."""
    config = get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise ModelError(
            f"timm has no weights for {name!r}; leave pretrained out and give --weights FILE, "
            "or train it by a recipe"
        )
    if config.num_classes != num_classes:
        raise ModelError(
            f"timm's weights for {name!r} know {config.num_classes} classes, the data set has "
            f"{num_classes}; take a data set of {config.num_classes} classes, "
            "or leave pretrained out and train a new head by a recipe"
        )


def _created(name: str, num_classes: int, channels: int, *, pretrained: bool) -> nn.Module:
    try:
        return timm.create_model(
            name, pretrained=pretrained, num_classes=num_classes, in_chans=channels
        )
    except Exception as error:  # the hub and what it is reached with raise many kinds
        if not pretrained:
            raise
        raise ModelError(
            f"the weights of {name!r} cannot be fetched: {type(error).__name__}: {error}; "
            "without a network, or with HF_HUB_OFFLINE set, download the weights elsewhere, "
            "leave pretrained out and give --weights FILE"
        ) from error


def _name_as_inner(_module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Put `inner.` before the keys of a state that is the inner model's own."""
    own = f"{prefix}inner."
    keys = [key for key in state if key.startswith(prefix)]
    if any(key.startswith(own) for key in keys):
        return
    for key in keys:
        state[own + key.removeprefix(prefix)] = state.pop(key)

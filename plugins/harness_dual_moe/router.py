"""Routers that look at a whole image and rank the experts for it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from harness.api import ModelError, did_you_mean
from harness.tensors import Images

WIDTHS = (16, 32)
"""Channels of the two convolutions of `ConvolutionalRouter`, which has no published source."""


class LinearRouter(nn.Module):
    """One linear layer on all pixels, as in Robust-MoE-Dual-Model's released code."""

    def __init__(self, image_shape: tuple[int, int, int], num_experts: int) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.linear = nn.Linear(channels * height * width, num_experts)

    def forward(self, images: Images) -> Tensor:
        """Gate logits (batch, expert) of normalised images."""
        gate_logits: Tensor = self.linear(images.flatten(1))
        return gate_logits


class ConvolutionalRouter(nn.Module):
    """Two convolutions that halve the image, mean over space, linear head: for images of any size.

    It has no batch norm: a router that sees clean and attacked images in turn would have to
    choose whose statistics it keeps.
    """

    def __init__(self, image_shape: tuple[int, int, int], num_experts: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(image_shape[0], WIDTHS[0], 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(WIDTHS[0], WIDTHS[1], 3, stride=2, padding=1)
        self.linear = nn.Linear(WIDTHS[1], num_experts)

    def forward(self, images: Images) -> Tensor:
        """Gate logits (batch, expert) of normalised images."""
        features = functional.relu(self.conv2(functional.relu(self.conv1(images))))
        gate_logits: Tensor = self.linear(features.mean(dim=(2, 3)))
        return gate_logits


ROUTERS = {"linear": LinearRouter, "convolutional": ConvolutionalRouter}


def router_of(name: str, image_shape: tuple[int, int, int], num_experts: int) -> nn.Module:
    """A new router.

    Raises:
        ModelError: There is none of that name.
    """
    if name not in ROUTERS:
        raise ModelError(f"router {name!r} is not known{did_you_mean(name, ROUTERS)}")
    return ROUTERS[name](image_shape, num_experts)

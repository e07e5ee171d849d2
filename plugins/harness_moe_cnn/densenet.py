"""Densely connected networks of MoE convolutions (AdvMoE, Zhang et al., 2023, 2308.10110).

The released code cannot build this backbone; this one is put together as its others are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness_moe_cnn.convolution import Chain, MoEConv, scaled
from harness_moe_cnn.network import with_routers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.api import ModelContext
    from harness.tensors import Images, Logits
    from harness_moe_cnn.convolution import Guide

GROWTH = 12
"""Channels that a layer adds (k)."""

STAGES, LAYERS = 3, 6
"""3 * 6 layers of two convolutions, a stem, two transitions and a head are 40."""

BOTTLENECK = 4
"""A layer's 1x1 convolution gives that many times its growth."""


class DenseLayer(nn.Module):
    """BatchNorm, ReLU and MoE convolution, 1x1 then 3x3, appended to what it read."""

    def __init__(self, inputs: int, growth: int, num_experts: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = MoEConv(inputs, BOTTLENECK * growth, 1, num_experts=num_experts)
        self.bn2 = nn.BatchNorm2d(BOTTLENECK * growth)
        self.conv2 = MoEConv(BOTTLENECK * growth, growth, 3, num_experts=num_experts)

    def forward(self, features: Tensor, guide: Guide) -> Tensor:
        """The features and `growth` new ones."""
        read = functional.relu(self.bn1(features))
        narrow = functional.relu(self.bn2(self.conv1(read, guide(read))))
        return torch.cat([features, self.conv2(narrow, guide(narrow))], dim=1)


class Transition(nn.Module):
    """Half the channels by a dense 1x1 convolution and half the side by a mean."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, inputs // 2, 1, bias=False)

    def forward(self, features: Tensor, guide: Guide) -> Tensor:  # noqa: ARG002 - nothing to route
        """The features, compressed."""
        return functional.avg_pool2d(self.conv(functional.relu(self.bn(features))), 2)


class MoEDenseNet(nn.Module):
    """A dense 3x3 stem, stages of layers with transitions between, mean over space, linear head."""

    def __init__(self, context: ModelContext, *, stem: int, growth: int, num_experts: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(context.image_shape[0], stem, 3, padding=1, bias=False)
        self.blocks = Chain(_blocks(stem, growth, num_experts))
        outputs = _outputs(stem, growth)
        self.bn = nn.BatchNorm2d(outputs)
        self.head = nn.Linear(outputs, context.num_classes)

    def forward(self, images: Images, guide: Guide) -> Logits:
        """Logits of images in [0, 1]."""
        features = functional.relu(self.bn(self.blocks(self.stem(images), guide)))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


def densenet40(context: ModelContext, *, ratio: float, num_experts: int, router: str) -> nn.Module:
    """DenseNet-BC-40 of growth 12 as MoE, with a stem of twice the growth and half compression.

    Args:
        context: Classes and channels.
        ratio: Of the growth and of the stem, so that a pathway is the narrowed dense network.
        num_experts: Of each MoE convolution.
        router: "global" or "layer".
    """
    growth, stem = scaled(GROWTH, ratio), scaled(2 * GROWTH, ratio)
    backbone = MoEDenseNet(context, stem=stem, growth=growth, num_experts=num_experts)
    return with_routers(backbone, context, router=router)


def _blocks(stem: int, growth: int, num_experts: int) -> Iterator[nn.Module]:
    inputs = stem
    for stage in range(STAGES):
        if stage > 0:
            yield Transition(inputs)
            inputs //= 2
        for _ in range(LAYERS):
            yield DenseLayer(inputs, growth, num_experts)
            inputs += growth


def _outputs(stem: int, growth: int) -> int:
    outputs = stem
    for stage in range(STAGES):
        outputs = (outputs // 2 if stage > 0 else outputs) + LAYERS * growth
    return outputs

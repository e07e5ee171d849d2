"""Densely connected networks, DenseNet-BC (Huang et al., 2017, arXiv 1608.06993)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness_cnn.initial import initialise, scaled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.api import ModelContext
    from harness.tensors import Images, Logits

GROWTH = 12
"""Channels that a layer adds (k)."""

STAGES, LAYERS = 3, 6
"""3 * 6 layers of two convolutions, a stem, two transitions and a head are 40."""

BOTTLENECK = 4
"""A layer's 1x1 convolution gives that many times its growth (section 3, bottleneck layers)."""


class DenseLayer(nn.Module):
    """BatchNorm, ReLU and convolution, 1x1 then 3x3, appended to what it read."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, BOTTLENECK * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(BOTTLENECK * growth)
        self.conv2 = nn.Conv2d(BOTTLENECK * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """The features and `growth` new ones."""
        narrow = self.conv1(functional.relu(self.bn1(features)))
        new = self.conv2(functional.relu(self.bn2(narrow)))
        return torch.cat([features, new], dim=1)


class Transition(nn.Module):
    """Half the channels by a 1x1 convolution and half the side by a mean."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, inputs // 2, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """The features, compressed."""
        return functional.avg_pool2d(self.conv(functional.relu(self.bn(features))), 2)


class DenseNet(nn.Module):
    """A 3x3 stem, stages of dense layers with transitions between, mean over space, linear head."""

    def __init__(self, channels: int, num_classes: int, *, stem: int, growth: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, stem, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*_stages(stem, growth))
        outputs = _outputs(stem, growth)
        self.bn = nn.BatchNorm2d(outputs)
        self.head = nn.Linear(outputs, num_classes)

    def forward(self, images: Images) -> Logits:
        """Logits of images in [0, 1], centred inside."""
        features = functional.relu(self.bn(self.blocks(self.stem(2 * images - 1))))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


def densenet40(context: ModelContext, *, ratio: float) -> nn.Module:
    """DenseNet-BC-40 of growth 12, with a stem of twice the growth and half compression.

    Args:
        context: Classes and channels.
        ratio: Of the growth and of the stem, and so of the channels of every layer.
    """
    growth, stem = scaled(GROWTH, ratio), scaled(2 * GROWTH, ratio)
    model = DenseNet(context.image_shape[0], context.num_classes, stem=stem, growth=growth)
    initialise(model)
    return model


def _stages(stem: int, growth: int) -> Iterator[nn.Module]:
    inputs = stem
    for stage in range(STAGES):
        if stage > 0:
            yield Transition(inputs)
            inputs //= 2
        for _ in range(LAYERS):
            yield DenseLayer(inputs, growth)
            inputs += growth


def _outputs(stem: int, growth: int) -> int:
    outputs = stem
    for stage in range(STAGES):
        outputs = (outputs // 2 if stage > 0 else outputs) + LAYERS * growth
    return outputs

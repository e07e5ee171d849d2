"""Routers that send whole images to experts: AdvMoE's residual network, and a mean with a linear.

(Zhang et al., 2023, https://arxiv.org/abs/2308.10110)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.api import Routing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.tensors import Images

WIDTHS = (16, 32, 64)
"""Channels of the three stages of ResNet-20 for CIFAR (He et al., 2016, section 4.2)."""

SMALL_WIDTHS = (8, 16, 32)
"""Half of them, so that the router of a small network does not outweigh it."""


class RouterBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm around a shortcut without parameters."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.padding = (width - inputs) // 2
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, features: Tensor) -> Tensor:
        """The features, changed by what the convolutions learnt."""
        change = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(features)))))
        return functional.relu(change + self._shortcut(features))

    def _shortcut(self, features: Tensor) -> Tensor:
        """Every other pixel, and channels of zeros on both sides: option A of the paper."""
        if self.stride == 1:
            return features
        sides = (0, 0, 0, 0, self.padding, self.padding)
        return functional.pad(features[:, :, :: self.stride, :: self.stride], sides)


class ImageRouter(nn.Module):
    """A residual network that gives gate logits from the image itself, with torch's own weights."""

    def __init__(
        self, channels: int, num_experts: int, *, widths: Sequence[int], blocks: int
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        self.stages = nn.Sequential(*_stages(widths, blocks))
        self.head = nn.Linear(widths[-1], num_experts)

    def forward(self, images: Images) -> Tensor:
        """Gate logits (batch, expert)."""
        features = self.stages(functional.relu(self.bn(self.stem(images))))
        gate_logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return gate_logits


class LayerRouter(nn.Module):
    """A linear map from the mean over space of what a layer reads."""

    def __init__(self, inputs: int, num_experts: int) -> None:
        super().__init__()
        self.head = nn.Linear(inputs, num_experts)

    def forward(self, features: Tensor) -> Tensor:
        """Gate logits (batch, expert)."""
        means = features.mean(dim=(2, 3))
        # a matrix product rounds by the place of a row where widths are odd; a choice must not
        gate_logits: Tensor = (means[:, None] * self.head.weight).sum(dim=2) + self.head.bias
        return gate_logits


def hard_routing(gate_logits: Tensor) -> Routing:
    """The likeliest expert for each image, which is the one token; ties go to the first."""
    scores = gate_logits[:, None]
    experts = scores.argmax(dim=2, keepdim=True)
    kept = torch.ones_like(experts, dtype=torch.bool)
    return Routing(scores, scores.softmax(dim=2), experts, kept)


def _stages(widths: Sequence[int], blocks: int) -> Iterator[nn.Module]:
    inputs = widths[0]
    for stage, width in enumerate(widths):
        first = RouterBlock(inputs, width, stride=2 if stage > 0 else 1)
        yield nn.Sequential(first, *(RouterBlock(width, width, 1) for _ in range(1, blocks)))
        inputs = width

"""Wide residual networks with pre-activation (Zagoruyko and Komodakis, 2016, arXiv 1605.07146)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional

from harness_cnn.initial import initialise, scaled

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.api import ModelContext
    from harness.tensors import Images, Logits

WIDTHS = (16, 32, 64)
"""Channels of the three stages before widening (table 1 of the paper)."""


class WideBlock(nn.Module):
    """BatchNorm and ReLU before each of two 3x3 convolutions, around a shortcut.

    Where the shape changes, the shortcut is a 1x1 convolution that reads the activated features
    as the first convolution does.
    """

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or inputs != width:
            self.shortcut = nn.Conv2d(inputs, width, 1, stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """The features, changed by what the convolutions learnt."""
        active = functional.relu(self.bn1(features))
        kept = features if self.shortcut is None else self.shortcut(active)
        change: Tensor = self.conv2(functional.relu(self.bn2(self.conv1(active))))
        return kept + change


class WideResNet(nn.Module):
    """A 3x3 stem, stages of wide blocks that halve the image, mean over space, linear head."""

    def __init__(
        self, channels: int, num_classes: int, *, stem: int, widths: Sequence[int], blocks: int
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, stem, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*_stages(stem, widths, blocks))
        self.bn = nn.BatchNorm2d(widths[-1])
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, images: Images) -> Logits:
        """Logits of images in [0, 1], centred inside."""
        features = functional.relu(self.bn(self.blocks(self.stem(2 * images - 1))))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


def wrn28_10(context: ModelContext, *, ratio: float) -> nn.Module:
    """WRN-28-10: 28 = 6 * 4 + 4 layers, 10 times the widths; without dropout.

    Args:
        context: Classes and channels.
        ratio: Of the channels of every layer, stem included.
    """
    model = WideResNet(
        context.image_shape[0],
        context.num_classes,
        stem=scaled(WIDTHS[0], ratio),
        widths=[scaled(10 * width, ratio) for width in WIDTHS],
        blocks=4,
    )
    initialise(model)
    return model


def _stages(stem: int, widths: Sequence[int], blocks: int) -> Iterator[nn.Module]:
    inputs = stem
    for stage, width in enumerate(widths):
        for block in range(blocks):
            yield WideBlock(inputs, width, stride=2 if stage > 0 and block == 0 else 1)
            inputs = width

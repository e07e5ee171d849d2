"""Residual networks of basic blocks for small images (He et al., 2016, arXiv 1512.03385)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional

from harness_cnn.initial import initialise, scaled

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.api import ModelContext
    from harness.tensors import Images, Logits


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm around a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, features: Tensor) -> Tensor:
        """The features, changed by what the convolutions learnt."""
        change = functional.relu(self.bn1(self.conv1(features)))
        return functional.relu(self.bn2(self.conv2(change)) + self.shortcut(features))


class ResNet(nn.Module):
    """A 3x3 stem, groups of basic blocks that halve the image, mean over space, linear head."""

    def __init__(
        self, channels: int, num_classes: int, *, widths: Sequence[int], blocks: Sequence[int]
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        self.blocks = nn.Sequential(*_stages(widths, blocks))
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, images: Images) -> Logits:
        """Logits of images in [0, 1], centred inside."""
        features = functional.relu(self.bn(self.stem(2 * images - 1)))
        logits: Tensor = self.head(self.blocks(features).mean(dim=(2, 3)))
        return logits


def resnet(context: ModelContext, *, widths: Sequence[int], blocks: Sequence[int]) -> nn.Module:
    """A residual network for the suite's canvas.

    Args:
        context: Classes and channels.
        widths: Channels of each stage; all but the first halve the image.
        blocks: Basic blocks of each stage.
    """
    return ResNet(context.image_shape[0], context.num_classes, widths=widths, blocks=blocks)


def resnet18(context: ModelContext, *, ratio: float) -> nn.Module:
    """ResNet-18 with the stem for small images: a 3x3 convolution and no max-pool.

    Args:
        context: Classes and channels.
        ratio: Of the channels of every layer, stem included.
    """
    widths = [scaled(width, ratio) for width in (64, 128, 256, 512)]
    model = resnet(context, widths=widths, blocks=(2, 2, 2, 2))
    initialise(model)
    return model


def _stages(widths: Sequence[int], blocks: Sequence[int]) -> Iterator[nn.Module]:
    inputs = widths[0]
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        for block in range(count):
            yield BasicBlock(inputs, width, stride=2 if stage > 0 and block == 0 else 1)
            inputs = width

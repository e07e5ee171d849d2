"""A 14-layer residual network for runs on a CPU (blocks of He et al., 2016, arXiv 1512.03385).

Its state-dict keys are those of the weights file `resnet14w24_cifar10_at.safetensors`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from harness.api import ModelContext
    from harness.tensors import Images, Logits

MEAN, SPREAD = 0.4734, 0.2516
"""Of the pixels of CIFAR-10, over all channels: part of what the weights were trained on."""


class SmallBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm around a shortcut, which is called `short`."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.short: nn.Module = nn.Identity()
        if stride != 1 or inputs != width:
            self.short = nn.Sequential(
                nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, features: Tensor) -> Tensor:
        """The features, changed by what the convolutions learnt."""
        change = functional.relu(self.bn1(self.conv1(features)))
        return functional.relu(self.bn2(self.conv2(change)) + self.short(features))


class SmallResNet(nn.Module):
    """A 3x3 stem, three stages of two blocks, mean over space, linear head."""

    def __init__(self, channels: int, num_classes: int, *, width: int, stem_stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, stride=1)
        self.layer2 = _stage(width, 2 * width, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, stride=2)
        self.linear = nn.Linear(4 * width, num_classes)

    def forward(self, images: Images) -> Logits:
        """Logits of images in [0, 1], normalised inside."""
        features = functional.relu(self.bn1(self.conv1((images - MEAN) / SPREAD)))
        features = self.layer3(self.layer2(self.layer1(features)))
        logits: Tensor = self.linear(features.mean(dim=(2, 3)))
        return logits


def resnet14(context: ModelContext, *, width: int, stem_stride: int) -> nn.Module:
    """A residual network of 14 layers with weights drawn as torch does by default.

    Args:
        context: Classes and channels.
        width: Channels of the first stage; the others have two and four times as many.
        stem_stride: Of the first convolution; 2 makes a 64-pixel image cost what a 32-pixel one
            does.
    """
    return SmallResNet(
        context.image_shape[0], context.num_classes, width=width, stem_stride=stem_stride
    )


def _stage(inputs: int, width: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(SmallBlock(inputs, width, stride), SmallBlock(width, width, 1))

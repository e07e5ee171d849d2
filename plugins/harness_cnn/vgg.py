"""VGG-16 with BatchNorm for small images (Simonyan and Zisserman, 2015, arXiv 1409.1556)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from harness_cnn.initial import initialise, scaled

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.api import ModelContext
    from harness.tensors import Images, Logits

GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of the 3x3 convolutions; a max-pool stands between two groups (column D, table 1)."""

SIDE = 2
"""Features a side that the classifier reads, whatever the size of the images."""

HIDDEN = 256
"""Width of the classifier's two hidden layers, 4096 in the paper, at every width ratio."""


class VGG(nn.Module):
    """Groups of 3x3 convolutions with max-pools between, a mean to 2x2, and a small classifier."""

    def __init__(self, channels: int, num_classes: int, *, groups: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.features = nn.Sequential(*_layers(channels, groups), nn.AdaptiveAvgPool2d(SIDE))
        self.classifier = nn.Sequential(
            nn.Linear(groups[-1][-1] * SIDE * SIDE, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, num_classes),
        )

    def forward(self, images: Images) -> Logits:
        """Logits of images in [0, 1], centred inside."""
        logits: Tensor = self.classifier(self.features(2 * images - 1).flatten(1))
        return logits


def vgg16(context: ModelContext, *, ratio: float) -> nn.Module:
    """VGG-16-BN without dropout.

    Unlike the paper, it has no fifth max-pool, which would leave one feature a side of 32 pixels,
    and hidden layers of 256.

    Args:
        context: Classes and channels.
        ratio: Of the channels of every convolution.
    """
    groups = [[scaled(width, ratio) for width in group] for group in GROUPS]
    model = VGG(context.image_shape[0], context.num_classes, groups=groups)
    initialise(model)
    return model


def _layers(channels: int, groups: Sequence[Sequence[int]]) -> Iterator[nn.Module]:
    inputs = channels
    for place, group in enumerate(groups):
        if place > 0:
            yield nn.MaxPool2d(2)
        for width in group:
            yield nn.Conv2d(inputs, width, 3, padding=1, bias=False)
            yield nn.BatchNorm2d(width)
            yield nn.ReLU()
            inputs = width

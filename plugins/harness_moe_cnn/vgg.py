"""VGG-16 with BatchNorm and MoE convolutions (AdvMoE, Zhang et al., 2023, 2308.10110)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from harness_moe_cnn.convolution import MoEConv, scaled
from harness_moe_cnn.network import with_routers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.api import ModelContext
    from harness.tensors import Images, Logits
    from harness_moe_cnn.convolution import Guide

GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of the 3x3 convolutions; a max-pool stands between two groups."""

SIDE = 2
"""Features a side that the classifier reads, whatever the size of the images."""

HIDDEN = 256
"""Width of the classifier's two hidden layers at every width ratio."""


class MoEVGG(nn.Module):
    """Groups of 3x3 convolutions, all but the first MoE, a mean to 2x2, and a small classifier."""

    def __init__(
        self, context: ModelContext, *, groups: Sequence[Sequence[int]], num_experts: int
    ) -> None:
        super().__init__()
        self.features = nn.ModuleList(_layers(context.image_shape[0], groups, num_experts))
        self.pool = nn.AdaptiveAvgPool2d(SIDE)
        self.classifier = nn.Sequential(
            nn.Linear(groups[-1][-1] * SIDE * SIDE, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, context.num_classes),
        )

    def forward(self, images: Images, guide: Guide) -> Logits:
        """Logits of images in [0, 1]."""
        features = images
        for layer in self.features:
            is_routed = isinstance(layer, MoEConv)
            features = layer(features, guide(features)) if is_routed else layer(features)
        logits: Tensor = self.classifier(self.pool(features).flatten(1))
        return logits


def vgg16(context: ModelContext, *, ratio: float, num_experts: int, router: str) -> nn.Module:
    """VGG-16-BN as MoE, without dropout and without the fifth max-pool.

    Args:
        context: Classes and channels.
        ratio: Of the width of each expert, and of the first convolution.
        num_experts: Of each MoE convolution.
        router: "global" or "layer".
    """
    groups = [[scaled(width, ratio) for width in group] for group in GROUPS]
    backbone = MoEVGG(context, groups=groups, num_experts=num_experts)
    return with_routers(backbone, context, router=router)


def _layers(
    channels: int, groups: Sequence[Sequence[int]], num_experts: int
) -> Iterator[nn.Module]:
    yield nn.Conv2d(channels, groups[0][0], 3, padding=1, bias=False)
    inputs = 0
    for place, group in enumerate(groups):
        if place > 0:
            yield nn.MaxPool2d(2)
        for width in group:
            if inputs > 0:  # the first convolution is dense
                yield MoEConv(inputs, width, 3, num_experts=num_experts)
            yield nn.BatchNorm2d(width)
            yield nn.ReLU()
            inputs = width

"""Wide residual networks of MoE convolutions (AdvMoE, Zhang et al., 2023, 2308.10110)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional

from harness_moe_cnn.convolution import Chain, MoEConv, scaled
from harness_moe_cnn.network import with_routers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.api import ModelContext
    from harness.tensors import Images, Logits
    from harness_moe_cnn.convolution import Guide

WIDTHS = (16, 32, 64)
"""Channels of the three stages before widening (Zagoruyko and Komodakis, 2016, table 1)."""


class WideBlock(nn.Module):
    """BatchNorm and ReLU before each of two MoE convolutions, around a shortcut.

    Attributes:
        is_activated: The first convolution and the shortcut read what BatchNorm and ReLU give.
            Where the shape changes, AdvMoE's code lets them read the features as they are, so
            that the first BatchNorm is never used.
    """

    def __init__(
        self, inputs: int, width: int, stride: int, num_experts: int, *, repaired: bool
    ) -> None:
        super().__init__()
        changes = stride != 1 or inputs != width
        self.is_activated = repaired or not changes
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = MoEConv(inputs, width, 3, num_experts=num_experts, stride=stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = MoEConv(width, width, 3, num_experts=num_experts)
        self.shortcut: MoEConv | None = None
        if changes:
            self.shortcut = MoEConv(inputs, width, 1, num_experts=num_experts, stride=stride)

    def forward(self, features: Tensor, guide: Guide) -> Tensor:
        """The features, changed by what the experts learnt."""
        read = functional.relu(self.bn1(features)) if self.is_activated else features
        change = functional.relu(self.bn2(self.conv1(read, guide(read))))
        change = self.conv2(change, guide(change))
        kept = features if self.shortcut is None else self.shortcut(read, guide(read))
        total: Tensor = kept + change
        return total


class MoEWideResNet(nn.Module):
    """A dense 3x3 stem, stages of wide blocks that halve the image, mean over space, linear head.

    Args:
        context: Classes and channels.
        stem: Channels of the stem.
        widths: Channels of one expert in each stage.
        blocks: Of each stage.
        num_experts: Of each MoE convolution.
        repaired: Every block activates what it reads, as in the dense network.
    """

    def __init__(
        self,
        context: ModelContext,
        *,
        stem: int,
        widths: Sequence[int],
        blocks: int,
        num_experts: int,
        repaired: bool = False,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(context.image_shape[0], stem, 3, padding=1, bias=False)
        self.stages = Chain(_stages(stem, widths, blocks, num_experts, repaired=repaired))
        self.bn = nn.BatchNorm2d(widths[-1])
        self.head = nn.Linear(widths[-1], context.num_classes)

    def forward(self, images: Images, guide: Guide) -> Logits:
        """Logits of images in [0, 1]."""
        features = functional.relu(self.bn(self.stages(self.stem(images), guide)))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


def wrn28_10(
    context: ModelContext, *, ratio: float, num_experts: int, router: str, repaired: bool
) -> nn.Module:
    """WRN-28-10 as MoE: 28 = 6 * 4 + 4 layers, 10 times the widths; without dropout.

    Args:
        context: Classes and channels.
        ratio: Of the width of each expert, and of the stem.
        num_experts: Of each MoE convolution.
        router: "global" or "layer".
        repaired: Activate before every convolution, as the dense network does.
    """
    backbone = MoEWideResNet(
        context,
        stem=scaled(WIDTHS[0], ratio),
        widths=[scaled(10 * width, ratio) for width in WIDTHS],
        blocks=4,
        num_experts=num_experts,
        repaired=repaired,
    )
    return with_routers(backbone, context, router=router)


def _stages(
    stem: int, widths: Sequence[int], blocks: int, num_experts: int, *, repaired: bool
) -> Iterator[nn.Module]:
    inputs = stem
    for stage, width in enumerate(widths):
        yield Chain(
            WideBlock(
                width if block > 0 else inputs,
                width,
                2 if stage > 0 and block == 0 else 1,
                num_experts,
                repaired=repaired,
            )
            for block in range(blocks)
        )
        inputs = width

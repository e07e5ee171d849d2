"""Residual networks whose blocks are MoE convolutions (AdvMoE, Zhang et al., 2023, 2308.10110)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional

from harness_moe_cnn.convolution import Chain, MoEConv, scaled
from harness_moe_cnn.network import SMALL, with_routers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.api import ModelContext
    from harness.tensors import Images, Logits
    from harness_moe_cnn.convolution import Guide


class BasicBlock(nn.Module):
    """Two MoE convolutions around a dense shortcut; all experts share the BatchNorms."""

    def __init__(self, inputs: int, width: int, stride: int, num_experts: int) -> None:
        super().__init__()
        self.conv1 = MoEConv(inputs, width, 3, num_experts=num_experts, stride=stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = MoEConv(width, width, 3, num_experts=num_experts)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, features: Tensor, guide: Guide) -> Tensor:
        """The features, changed by what the experts learnt."""
        change = functional.relu(self.bn1(self.conv1(features, guide(features))))
        change = self.bn2(self.conv2(change, guide(change)))
        return functional.relu(change + self.shortcut(features))


class MoEResNet(nn.Module):
    """A dense 3x3 stem, stages of blocks that halve the image, mean over space, linear head."""

    def __init__(
        self,
        context: ModelContext,
        *,
        stem: int,
        widths: Sequence[int],
        blocks: Sequence[int],
        num_experts: int,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(context.image_shape[0], stem, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(stem)
        self.stages = Chain(_stages(stem, widths, blocks, num_experts))
        self.head = nn.Linear(widths[-1], context.num_classes)

    def forward(self, images: Images, guide: Guide) -> Logits:
        """Logits of images in [0, 1]."""
        features = self.stages(functional.relu(self.bn(self.stem(images))), guide)
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


def resnet18(context: ModelContext, *, ratio: float, num_experts: int, router: str) -> nn.Module:
    """ResNet-18 with a 3x3 stem of 64 channels and no max-pool, as MoE.

    Args:
        context: Classes and channels.
        ratio: Of the width of each expert; the stem keeps its own.
        num_experts: Of each MoE convolution.
        router: "global" or "layer".
    """
    backbone = _backbone(
        context, (64, 128, 256, 512), (2, 2, 2, 2), ratio=ratio, num_experts=num_experts
    )
    return with_routers(backbone, context, router=router)


def small_resnet(
    context: ModelContext,
    *,
    widths: Sequence[int],
    blocks: Sequence[int],
    ratio: float,
    num_experts: int,
    router: str,
) -> nn.Module:
    """A small residual network as MoE, with a router that is small too.

    Args:
        context: Classes and channels.
        widths: Channels of each stage at ratio 1, the first being the stem's at any ratio.
        blocks: Basic blocks of each stage.
        ratio: Of the width of each expert.
        num_experts: Of each MoE convolution.
        router: "global" or "layer".
    """
    backbone = _backbone(context, widths, blocks, ratio=ratio, num_experts=num_experts)
    return with_routers(backbone, context, router=router, size=SMALL)


def _backbone(
    context: ModelContext,
    widths: Sequence[int],
    blocks: Sequence[int],
    *,
    ratio: float,
    num_experts: int,
) -> MoEResNet:
    return MoEResNet(
        context,
        stem=widths[0],
        widths=[scaled(width, ratio) for width in widths],
        blocks=blocks,
        num_experts=num_experts,
    )


def _stages(
    stem: int, widths: Sequence[int], blocks: Sequence[int], num_experts: int
) -> Iterator[nn.Module]:
    inputs = stem
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        first = BasicBlock(inputs, width, 2 if stage > 0 else 1, num_experts)
        others = (BasicBlock(width, width, 1, num_experts) for _ in range(1, count))
        yield Chain([first, *others])
        inputs = width

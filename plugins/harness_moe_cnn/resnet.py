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


class Shortcut(nn.Module):
    """A 1x1 convolution, dense or MoE, with BatchNorm, where a block changes the shape."""

    def __init__(self, convolution: nn.Module, width: int) -> None:
        super().__init__()
        self.conv = convolution
        self.bn = nn.BatchNorm2d(width)

    def forward(self, features: Tensor, guide: Guide) -> Tensor:
        """The features in the new shape."""
        is_routed = isinstance(self.conv, MoEConv)
        moved = self.conv(features, guide(features)) if is_routed else self.conv(features)
        reached: Tensor = self.bn(moved)
        return reached


class BasicBlock(nn.Module):
    """Two MoE convolutions around a shortcut; all experts share the BatchNorms.

    Args:
        inputs: Channels that it reads.
        width: Channels of one expert.
        stride: Of the first convolution.
        num_experts: Of each MoE convolution.
        routed: The shortcut is MoE too.
    """

    def __init__(
        self, inputs: int, width: int, stride: int, num_experts: int, *, routed: bool
    ) -> None:
        super().__init__()
        self.conv1 = MoEConv(inputs, width, 3, num_experts=num_experts, stride=stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = MoEConv(width, width, 3, num_experts=num_experts)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: Shortcut | None = None
        if stride == 1 and inputs == width:
            return
        if routed:
            moved: nn.Module = MoEConv(inputs, width, 1, num_experts=num_experts, stride=stride)
        else:
            moved = nn.Conv2d(inputs, width, 1, stride, bias=False)
        self.shortcut = Shortcut(moved, width)

    def forward(self, features: Tensor, guide: Guide) -> Tensor:
        """The features, changed by what the experts learnt."""
        change = functional.relu(self.bn1(self.conv1(features, guide(features))))
        change = self.bn2(self.conv2(change, guide(change)))
        kept = features if self.shortcut is None else self.shortcut(features, guide)
        return functional.relu(change + kept)


class MoEResNet(nn.Module):
    """A dense stem, stages of blocks that halve the image, mean over space, linear head.

    Args:
        context: Classes and channels.
        stem: Channels of the stem.
        widths: Channels of one expert in each stage.
        blocks: Of each stage.
        num_experts: Of each MoE convolution.
        large: For large images: a 7x7 stem and a max-pool quarter them, and shortcuts are MoE.
    """

    def __init__(
        self,
        context: ModelContext,
        *,
        stem: int,
        widths: Sequence[int],
        blocks: Sequence[int],
        num_experts: int,
        large: bool = False,
    ) -> None:
        super().__init__()
        size, stride = (7, 2) if large else (3, 1)
        self.stem = nn.Conv2d(
            context.image_shape[0], stem, size, stride, padding=size // 2, bias=False
        )
        self.bn = nn.BatchNorm2d(stem)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if large else nn.Identity()
        self.stages = Chain(_stages(stem, widths, blocks, num_experts, routed=large))
        self.head = nn.Linear(widths[-1], context.num_classes)

    def forward(self, images: Images, guide: Guide) -> Logits:
        """Logits of images in [0, 1]."""
        features = self.pool(functional.relu(self.bn(self.stem(images))))
        features = self.stages(features, guide)
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


def resnet18_large(
    context: ModelContext, *, ratio: float, num_experts: int, router: str
) -> nn.Module:
    """ResNet-18 with a 7x7 stem and max-pool as MoE, its 1x1 shortcuts too.

    Args:
        context: Classes and channels.
        ratio: Of the width of each expert, and of the stem.
        num_experts: Of each MoE convolution.
        router: "global" or "layer".
    """
    widths = [scaled(width, ratio) for width in (64, 128, 256, 512)]
    backbone = MoEResNet(
        context,
        stem=widths[0],
        widths=widths,
        blocks=(2, 2, 2, 2),
        num_experts=num_experts,
        large=True,
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
    stem: int, widths: Sequence[int], blocks: Sequence[int], num_experts: int, *, routed: bool
) -> Iterator[nn.Module]:
    inputs = stem
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        first = BasicBlock(inputs, width, 2 if stage > 0 else 1, num_experts, routed=routed)
        others = (BasicBlock(width, width, 1, num_experts, routed=routed) for _ in range(1, count))
        yield Chain([first, *others])
        inputs = width

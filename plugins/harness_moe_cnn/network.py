"""A backbone of MoE convolutions with its routers: what all models of this family have in common.

(AdvMoE, Zhang et al., 2023, https://arxiv.org/abs/2308.10110)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from harness.api import ModelContext, ModelError, Routing, did_you_mean
from harness.tensors import Images, Logits, Routed
from harness_moe_cnn.convolution import Assignment, MoEConv, assigned
from harness_moe_cnn.router import SMALL_WIDTHS, WIDTHS, ImageRouter, LayerRouter, hard_routing

ROUTERS = ("global", "layer")


class RouterSize(NamedTuple):
    """How large a router that reads the image is."""

    widths: tuple[int, ...] = WIDTHS
    blocks: int = 3  # of each stage


PUBLISHED = RouterSize()
SMALL = RouterSize(SMALL_WIDTHS, 1)


class MoENetwork(nn.Module):
    """A classifier whose convolutions each let one expert work for an image.

    Images are read as they are, in [0, 1], as AdvMoE's code does by default.

    Attributes:
        backbone: Called with images and a `Guide`.
        routers: One that reads the image and decides for all layers at once, so that there is one
            `Routing` for the whole network; or one for each MoE convolution, in the order of the
            calls, each with a `Routing` of its own.
        is_global: There is one for all.
    """

    def __init__(
        self, backbone: nn.Module, routers: Sequence[nn.Module], *, is_global: bool
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.routers = nn.ModuleList(routers)
        self.is_global = is_global

    def forward(self, images: Images) -> Logits:
        """The logits alone."""
        return self.routed(images).logits

    def routed(
        self,
        images: Images,
        *,
        routes: tuple[Routing, ...] | None = None,
        relaxed: bool = False,
        detach_router: bool = False,
    ) -> Routed:
        """The logits with the routes that led to them; see `RoutedClassifier`.

        Nothing balances the experts' loads: the auxiliary loss is zero for each image.
        """
        taken: list[Routing] = []
        assignments: list[Assignment] = []

        def guide(features: Tensor) -> Assignment:
            if self.is_global and taken:
                return assignments[0]
            layer = len(taken)
            read = images if self.is_global else features
            taken.append(routes[layer] if routes else hard_routing(self.routers[layer](read)))
            assignments.append(
                assigned(
                    taken[-1], relaxed=relaxed, detached=detach_router, padded=not self.training
                )
            )
            return assignments[-1]

        logits = self.backbone(images, guide)
        return Routed(logits, tuple(taken), logits.new_zeros(len(logits)))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters of the routers, of the experts, and all others."""
        experts = [layer.weight for layer in moe_layers(self.backbone)]
        known = {id(weight) for weight in experts}
        other = [weight for weight in self.backbone.parameters() if id(weight) not in known]
        return {"router": list(self.routers.parameters()), "experts": experts, "other": other}

    def active_parameters(self) -> int:
        """Those that work for one image: one expert of each layer, and everything else."""
        total = sum(parameter.numel() for parameter in self.parameters())
        return total - sum(layer.unused() for layer in moe_layers(self.backbone))


def with_routers(
    backbone: nn.Module, context: ModelContext, *, router: str, size: RouterSize = PUBLISHED
) -> MoENetwork:
    """The network of a backbone, its weights drawn anew, and routers with torch's own weights.

    Args:
        backbone: Made of MoE convolutions with equal numbers of experts.
        context: Channels of the images.
        router: "global", one that reads the image, as released; or "layer", one for each MoE
            convolution, a linear map of the mean of what it reads, which is our own.
        size: Of the global one.

    Raises:
        ModelError: Another word.
    """
    if router not in ROUTERS:
        raise ModelError(f"router {router!r} is not known{did_you_mean(router, ROUTERS)}")
    _initialise(backbone)
    layers = moe_layers(backbone)
    if router == "layer":
        own = [LayerRouter(layer.weight.shape[1], layer.num_experts) for layer in layers]
        return MoENetwork(backbone, own, is_global=False)
    shared = ImageRouter(
        context.image_shape[0], layers[0].num_experts, widths=size.widths, blocks=size.blocks
    )
    return MoENetwork(backbone, [shared], is_global=True)


def moe_layers(backbone: nn.Module) -> list[MoEConv]:
    """The MoE convolutions in the order of their definition, which is that of their calls."""
    return [module for module in backbone.modules() if isinstance(module, MoEConv)]


def _initialise(backbone: nn.Module) -> None:
    """Weights as AdvMoE's code draws them; those of MoE convolutions are their own."""
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)

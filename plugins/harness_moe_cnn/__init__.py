"""Convolutional networks for small images whose experts each take a whole image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from harness.api import ModelCard, hookimpl
from harness_moe_cnn.recipe_list import (
    register_converters,
    register_objectives,
    register_recipes,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.api import Register

__all__ = ["register_converters", "register_models", "register_objectives", "register_recipes"]

ADVMOE = "AdvMoE, Zhang et al., 2023, https://arxiv.org/abs/2308.10110"
RELEASED = "with one router for all layers, as its released code"
OWN_ROUTERS = "with a linear router for each layer, which is our own"
RATIO, EXPERTS = 0.5, 2
"""As published: each expert has half the width, and there are two."""

COUNTS = {2: "two", 3: "three", 4: "four", 5: "five"}
WIDTHS = {0.25: "a quarter of", 0.5: "half", 0.75: "three quarters of"}


class _Backbone(NamedTuple):
    """A network, registered with one router for all layers and with one for each."""

    name: str
    target: str
    summary: str
    sizes: tuple[int, ...] = (32, 64)
    parameters: Mapping[str, Any] = {}
    note: str = ""


BACKBONES = (
    _Backbone(
        "moe-cnn/digits",
        "harness_moe_cnn.resnet:small_resnet",
        "A small residual MoE for 8x8 images",
        sizes=(8,),
        parameters={"widths": (16, 32, 64), "blocks": (1, 1, 1)},
        note="a smaller network and router",
    ),
    _Backbone(
        "moe-cnn/resnet14w24",
        "harness_moe_cnn.resnet:small_resnet",
        "A residual MoE of 14 layers that runs 32 pixels on a CPU",
        parameters={"widths": (24, 48, 96), "blocks": (2, 2, 2)},
        note="a smaller network and router",
    ),
    _Backbone("moe-cnn/resnet18", "harness_moe_cnn.resnet:resnet18", "ResNet-18 as MoE"),
    _Backbone(
        "moe-cnn/resnet18-large",
        "harness_moe_cnn.resnet:resnet18_large",
        "ResNet-18 with a 7x7 stem and max-pool as MoE",
        sizes=(224,),
        note="its router costs more than the network at this size",
    ),
    _Backbone(
        "moe-cnn/wrn28-10",
        "harness_moe_cnn.wide_resnet:wrn28_10",
        "WRN-28-10 as MoE",
        parameters={"repaired": False},
        note="blocks that change the shape read features without BatchNorm and ReLU",
    ),
    _Backbone("moe-cnn/vgg16", "harness_moe_cnn.vgg:vgg16", "VGG-16 with BatchNorm as MoE"),
    _Backbone(
        "moe-cnn/densenet40",
        "harness_moe_cnn.densenet:densenet40",
        "DenseNet-BC of 40 layers, growth 12, as MoE",
        note="its code cannot build this one, whose growth and stem are narrowed here",
    ),
)


SWEPT = ("moe-cnn/digits", "moe-cnn/resnet14w24")
"""Small ones, registered with other numbers of experts, and with experts of other widths."""

SWEEP: tuple[tuple[str, dict[str, Any]], ...] = (
    *((f"-e{count}", {"num_experts": count}) for count in (3, 4, 5)),
    *((f"-r{round(100 * ratio)}", {"ratio": ratio}) for ratio in (0.25, 0.75)),
)
"""What differs from two experts at half the width; a suffix gives the ratio in percent."""


@hookimpl
def register_models(register: Register) -> None:
    """Bring AdvMoE's four networks and two small ones, with one router or one for each layer."""
    for backbone in BACKBONES:
        _register(register, backbone, "")
        _register(register, backbone, "-layer", router="layer")
        for suffix, changed in SWEEP if backbone.name in SWEPT else ():
            _register(register, backbone, suffix, **changed)


def _register(
    register: Register,
    backbone: _Backbone,
    suffix: str,
    *,
    router: str = "global",
    num_experts: int = EXPERTS,
    ratio: float = RATIO,
) -> None:
    is_global = router == "global"
    source = f"{ADVMOE}, {RELEASED if is_global else OWN_ROUTERS}"
    register(
        f"{backbone.name}{suffix}",
        backbone.target,
        card=ModelCard(
            summary=f"{backbone.summary}, {COUNTS[num_experts]} experts at {WIDTHS[ratio]} the "
            f"width, {'one router' if is_global else 'a router for each layer'}.",
            source="; ".join(filter(None, (source, backbone.note))),
            sizes=backbone.sizes,
            num_experts=num_experts,
            num_selected=1,
            router_gradient="straight-through",
        ),
        defaults={
            **backbone.parameters,
            "ratio": ratio,
            "num_experts": num_experts,
            "router": router,
        },
    )

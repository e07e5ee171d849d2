"""Dense convolutional networks for small images."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from harness.api import ModelCard, hookimpl

if TYPE_CHECKING:
    from harness.api import Register

SIZES = (32, 64)


class _Standard(NamedTuple):
    """A network of the literature, registered at its full and at half its width."""

    name: str
    target: str
    summary: str
    source: str


STANDARD = (
    _Standard(
        "cnn/resnet18",
        "harness_cnn.resnet:resnet18",
        "ResNet-18 with a 3x3 stem and no max-pool",
        "He et al., 2016, https://arxiv.org/abs/1512.03385 (basic blocks, CIFAR stem)",
    ),
    _Standard(
        "cnn/wrn28-10",
        "harness_cnn.wide_resnet:wrn28_10",
        "WRN-28-10 without dropout",
        "Zagoruyko and Komodakis, 2016, https://arxiv.org/abs/1605.07146 (table 1)",
    ),
    _Standard(
        "cnn/vgg16",
        "harness_cnn.vgg:vgg16",
        "VGG-16 with BatchNorm, four max-pools and two hidden layers of 256",
        "Simonyan and Zisserman, 2015, https://arxiv.org/abs/1409.1556 (column D, smaller head)",
    ),
    _Standard(
        "cnn/densenet40",
        "harness_cnn.densenet:densenet40",
        "DenseNet-BC of 40 layers, growth 12",
        "Huang et al., 2017, https://arxiv.org/abs/1608.06993 (bottlenecks, half compression)",
    ),
)


NARROW = (("", 1.0, ""), ("-half", 0.5, ", at half the width"))
NARROWER = (
    *NARROW,
    ("-r25", 0.25, ", at a quarter of the width"),
    ("-r75", 0.75, ", at three quarters of the width"),
)
"""Twins of a single expert of the MoE networks: suffix, ratio of all widths, and how it is told."""


@hookimpl
def register_models(register: Register) -> None:
    """Bring the ResNet for digits, ResNet-14 and the standard networks, with narrower twins."""
    for suffix, ratio, told in NARROWER:
        register(
            f"cnn/digits{suffix}",
            "harness_cnn.resnet:resnet",
            card=ModelCard(
                summary=f"A small residual network for 8x8 images: one block at each of 3 widths"
                f"{told}.",
                source="He et al., 2016, https://arxiv.org/abs/1512.03385 (basic blocks, CIFAR "
                "stem)",
                sizes=(8,),
            ),
            defaults={
                "widths": tuple(int(width * ratio) for width in (16, 32, 64)),
                "blocks": (1, 1, 1),
            },
        )
    for name, target, summary, source in STANDARD:
        for suffix, ratio, told in NARROW:
            card = ModelCard(summary=f"{summary}{told}.", source=source, sizes=SIZES)
            register(f"{name}{suffix}", target, card=card, defaults={"ratio": ratio})
    for suffix, ratio, told in NARROWER:
        _register_small(register, suffix, told, width=int(24 * ratio), stride=1)
    _register_small(register, "-s2", "", width=24, stride=2)


def _register_small(register: Register, suffix: str, told: str, *, width: int, stride: int) -> None:
    widths = ", ".join(str(width * factor) for factor in (1, 2, 4))
    register(
        f"cnn/resnet14w24{suffix}",
        "harness_cnn.small_resnet:resnet14",
        card=ModelCard(
            summary=f"A residual network of 14 layers that runs {32 * stride} pixels on a CPU"
            f"{told}.",
            source=f"He et al., 2016, https://arxiv.org/abs/1512.03385, with widths {widths}",
            sizes=SIZES,
        ),
        defaults={"width": width, "stem_stride": stride},
    )

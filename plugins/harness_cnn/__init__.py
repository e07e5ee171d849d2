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


@hookimpl
def register_models(register: Register) -> None:
    """Bring the ResNet for digits, the standard networks with their half-width twins, ResNet-14."""
    register(
        "cnn/digits",
        "harness_cnn.resnet:resnet",
        card=ModelCard(
            summary="A small residual network for 8x8 images: one block at each of 3 widths.",
            source="He et al., 2016, https://arxiv.org/abs/1512.03385 (basic blocks, CIFAR stem)",
            sizes=(8,),
        ),
        defaults={"widths": (16, 32, 64), "blocks": (1, 1, 1)},
    )
    for name, target, summary, source in STANDARD:
        card = ModelCard(summary=f"{summary}.", source=source, sizes=SIZES)
        register(name, target, card=card, defaults={"ratio": 1.0})
        half = ModelCard(summary=f"{summary}, at half the width.", source=source, sizes=SIZES)
        register(f"{name}-half", target, card=half, defaults={"ratio": 0.5})
    for name, stride, size in (("cnn/resnet14w24", 1, 32), ("cnn/resnet14w24-s2", 2, 64)):
        register(
            name,
            "harness_cnn.small_resnet:resnet14",
            card=ModelCard(
                summary=f"A residual network of 14 layers that runs {size} pixels on a CPU.",
                source="He et al., 2016, https://arxiv.org/abs/1512.03385, with widths 24, 48, 96",
                sizes=SIZES,
            ),
            defaults={"width": 24, "stem_stride": stride},
        )

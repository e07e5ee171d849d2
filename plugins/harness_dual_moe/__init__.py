"""Mixtures of complete classifiers, and dual models of a standard and a robust half."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.api import AttackCard, Card, MetricCard, ModelCard, ProbeCard, hookimpl
from harness_dual_moe.presets import PRESETS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.api import Register

SOURCE = "Zhang et al., 2025, https://arxiv.org/abs/2502.06832"
RELEASED = f"{SOURCE}, as released: TIML-Group/Robust-MoE-Dual-Model at 30ef94d"

CIFAR_MEAN = (125.307 / 255, 122.961 / 255, 113.8575 / 255)
CIFAR_STD = (51.5865 / 255, 50.847 / 255, 51.255 / 255)
"""Of the released code, there of pixels from 0 to 255."""

NUM_EXPERTS = 4
ALPHA = 0.7
"""Default of the released scripts."""

CIFAR: Mapping[str, Any] = {"mean": CIFAR_MEAN, "std": CIFAR_STD, "expert_input": "images"}
READ_NORMALISED: Mapping[str, Any] = {**CIFAR, "expert_input": "normalised"}
GREY: Mapping[str, Any] = {"mean": (0.5,), "std": (0.5,), "expert_input": "images"}
HARD: Mapping[str, Any] = {
    "num_selected": 1,
    "router_gradient": "none",
    "router_trainable": False,
}
TOP_2: Mapping[str, Any] = {
    "num_selected": 2,
    "router_gradient": "soft",
    "router_trainable": True,
}
SOFT: Mapping[str, Any] = {**TOP_2, "num_selected": NUM_EXPERTS}


class _Family(NamedTuple):
    """Mixtures of one kind of expert."""

    name: str
    expert: str
    told: str  # as the cards call it
    data: Mapping[str, Any]
    router: str
    sizes: tuple[int, ...]


FAMILIES = (
    _Family("resnet18-e4", "cnn/resnet18", "ResNet-18s", READ_NORMALISED, "linear", (32, 64)),
    _Family("resnet14w24-e4", "cnn/resnet14w24", "small ResNets", CIFAR, "linear", (32, 64)),
    _Family("digits", "cnn/digits", "small ResNets", GREY, "linear", (8,)),
)
WAYS = (
    ("", HARD, "of which a router that is never trained chooses one", RELEASED),
    ("-top2", TOP_2, "of which the two with the largest gates are mixed", SOURCE),
    ("-soft", SOFT, "all mixed by their gates", f"{SOURCE}, its formula"),
)


class _Dual(NamedTuple):
    """A dual model of two halves of one kind."""

    name: str
    half: str
    sizes: tuple[int, ...]


DUALS = (
    _Dual("dual/resnet18", "moe/resnet18-e4", (32, 64)),
    _Dual("dual/resnet14w24", "moe/resnet14w24-e4", (32, 64)),
    _Dual("dual/digits", "moe/digits", (8,)),
)
ALPHAS = (0, 25, 50, 75, 100)
"""Weights of the robust half in per cent, with which a trained dual model is evaluated again."""


@hookimpl
def register_models(register: Register) -> None:
    """Bring mixtures of three kinds of expert, each mixed in three ways, and three dual models."""
    for family in FAMILIES:
        for suffix, way, told, source in WAYS:
            _register_mixture(register, family, f"moe/{family.name}{suffix}", way, told, source)
    for dual in DUALS:
        _register_dual(register, dual.name, dual, alpha=ALPHA)
        for percent in ALPHAS:
            name = f"{dual.name}-a{percent:03}"
            _register_dual(register, name, dual, alpha=percent / 100, trained_as=dual.name)


@hookimpl
def register_recipes(register: Register) -> None:
    """Bring standard and adversarial training of mixtures, RT-ER, and what trains dual models."""
    for preset in PRESETS:
        register(preset.name, preset.target, card=preset.card, defaults=preset.defaults)


@hookimpl
def register_probes(register: Register) -> None:
    """Bring what the weights say of each clean image."""
    register(
        "certified-radius",
        "harness_dual_moe.probes:certified_radius",
        card=ProbeCard(
            "The distance within which the weights prove that the prediction stays.",
            source=f"{SOURCE}, theorems 5.4 and 5.5",
            note="pair-wise, with upper bounds of all slopes; docs/certificates.md",
            on="clean",
        ),
    )
    register(
        "router-radius",
        "harness_dual_moe.probes:router_radius",
        card=ProbeCard(
            "The least Linf distance at which hard affine routers can choose experts that have "
            "the clean image wrong.",
            on="clean",
        ),
    )


@hookimpl
def register_metrics(register: Register) -> None:
    """Bring what needs no attack."""
    register(
        "certified-accuracy",
        "harness_dual_moe.metrics:certified_accuracy",
        card=MetricCard(
            "Share of all images that are right and whose certified radius is above epsilon.",
            title="certified",
            by_epsilon=True,
        ),
    )
    register(
        "ra-router-exact",
        "harness_dual_moe.metrics:exact_robust_accuracy_of_router",
        card=MetricCard(
            "Share of all images that stay right wherever a perturbation below epsilon may send "
            "them, the experts seeing the clean image: ra-router without an attack.",
            title="ra-router exact",
            by_epsilon=True,
        ),
    )


@hookimpl
def register_attacks(register: Register) -> None:
    """Bring the attack on one half of a dual model."""
    register(
        "part-alone",
        "harness_dual_moe.attacks:part_alone",
        card=AttackCard(
            "Attacks on one part of a model alone, such as the robust half of a dual one, judged "
            "by the whole.",
            members="attacks",
            needs_routes=True,
        ),
        defaults={"part": "", "attacks": ("apgd",)},
    )


@hookimpl
def register_suites(register: Register) -> None:
    """Bring the sweep over the weight of the robust half, and the comparison of recipes."""
    register(
        "dual-alpha",
        str(Path(__file__).with_name("dual-alpha.toml")),
        card=Card("One dual model of digits, trained once, at five weights of its robust half."),
    )
    register(
        "rt-er-digits",
        str(Path(__file__).with_name("rt-er-digits.toml")),
        card=Card("RT-ER and joint training beside what they are compared with, on digits."),
    )


def _register_dual(
    register: Register, name: str, dual: _Dual, *, alpha: float, trained_as: str = ""
) -> None:
    told = f", the robust ones weighted by {alpha:g}" if trained_as else ""
    register(
        name,
        "harness_dual_moe.dual:dual",
        card=ModelCard(
            summary=f"A standard and a robust {dual.half}, whose logits are added up{told}.",
            source=RELEASED,
            sizes=dual.sizes,
            num_experts=NUM_EXPERTS,
            num_selected=1,
            router_gradient="none",
            trained_as=trained_as,
        ),
        defaults={
            "standard": dual.half,
            "robust": dual.half,
            "standard_parameters": {},
            "robust_parameters": {},
            "alpha": alpha,
            "combine": "logits",
        },
    )


@hookimpl
def register_converters(register: Register) -> None:
    """Bring the reader of the released mixtures' and dual models' checkpoints."""
    register(
        "rt-er-released",
        "harness_dual_moe.convert:convert",
        card=Card(
            "State dicts of the released mixtures of ResNet-18s and of dual models of two.",
            source=RELEASED,
            note="for moe/resnet18-e4 and dual/resnet18; experts of ViT are not converted",
        ),
    )


def _register_mixture(
    register: Register,
    family: _Family,
    name: str,
    way: Mapping[str, Any],
    told: str,
    source: str,
) -> None:
    register(
        name,
        "harness_dual_moe.mixture:mixture",
        card=ModelCard(
            summary=f"{NUM_EXPERTS} {family.told}, {told}.",
            source=source,
            sizes=family.sizes,
            num_experts=NUM_EXPERTS,
            num_selected=way["num_selected"],
            router_gradient=way["router_gradient"],
        ),
        defaults={
            "expert": family.expert,
            "expert_parameters": {},
            "num_experts": NUM_EXPERTS,
            "router": family.router,
            **way,
            **family.data,
        },
    )

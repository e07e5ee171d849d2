"""The recipes of AdvMoE, what they climb, and the converter: names, cards and every parameter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api import Card, ObjectiveCard, hookimpl

if TYPE_CHECKING:
    from harness.api import Register

SOURCE = "Zhang et al., 2023, https://arxiv.org/abs/2308.10110"
CODE = "OPTML-Group/Robust-MoE-CNN, commit c50796f"

REDUCED = {
    "epochs": 30,
    "batch_size": 128,
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 1e-4,
    "schedule": "cosine",
    "warm_up": 0.1,
    "translate": 0,
    "crop": 4,
    "flip": True,
    "cutout": 0,
    "norm": "linf",
    "epsilon": "8/255",
    "attack": "pgd",
    "steps": 2,
    "relative_step_size": 0.625,
    "beta": 6.0,
}
"""Two steps of 5/255, as in the released code; the rest is for a short training."""

PUBLISHED = {
    **REDUCED,
    "epochs": 100,
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "weight_decay": 5e-4,
    "warm_up": 0.0,
}
"""Defaults of the released code, which has no others."""

ATTACKS = (
    "attacks begin anywhere in the ball, where the released code begins 0.001 N(0, 1) off the "
    "image, and divergences are taken from logarithms, so that no gradient of them is NaN"
)
QUICK = "AdamW and 30 epochs in place of SGD and 100"
PUBLISHED_NOTE = (
    "the rate falls at every step, not every epoch; random crops are mirrored at the edges, where "
    "the released code pads with black; the last checkpoint counts, not the best on test images"
)
LEFT_OUT = (
    "left out as plain bugs: divergences from probabilities, whose NaN ends the routing; targets "
    "of the attacks in training mode; passes that only move BatchNorm's statistics; starts "
    "outside the range of pixels"
)


@hookimpl
def register_recipes(register: Register) -> None:
    """Bring AdvMoE's three ways to train router and experts, short and with its settings."""
    for suffix, settings, note in (("", REDUCED, QUICK), ("-full", PUBLISHED, PUBLISHED_NOTE)):
        rate = {"router_learning_rate": settings["learning_rate"]}
        register(
            f"moe-trades{suffix}",
            "harness_moe_cnn.recipes:moe_trades",
            card=Card(
                "TRADES of router and experts together: AdvMoE's baseline.",
                source=f"{SOURCE}; TRADES as its dense baselines",
                note=f"the released code has no script for it; {ATTACKS}; {note}",
            ),
            defaults={**settings, "view": "full"},
        )
        register(
            f"advmoe-alternating{suffix}",
            "harness_moe_cnn.recipes:advmoe_alternating",
            card=Card(
                "Experts and router in turn, each on the TRADES loss of the whole network.",
                source=f"our reading of the abstract of {SOURCE}",
                note=f"not the paper's equations, which we have not seen; {ATTACKS}; {note}",
            ),
            defaults={**settings, **rate, "reuses_batch": False},
        )
        register(
            f"advmoe-released{suffix}",
            "harness_moe_cnn.recipes:advmoe_released",
            card=Card(
                "Experts by TRADES and a router taught `label mod experts`, in turn on each batch.",
                source=f"{SOURCE}; {CODE}",
                note=f"{LEFT_OUT}; {ATTACKS}; {note}",
            ),
            defaults={**settings, **rate, "alpha": 6.0},
        )


@hookimpl
def register_objectives(register: Register) -> None:
    """Bring what the attacks of AdvMoE's training climb."""
    register(
        "joint-kl",
        "harness_moe_cnn.losses:joint_divergence",
        card=ObjectiveCard(
            "Divergence of prediction and gates of the clean image from the attacked one's.",
            source=f"{CODE}, its attack in training",
            note="taken from logarithms, so that no gradient is NaN; it is 0, with no gradient, "
            "at the clean image: begin at random",
            needs_routes=True,
        ),
    )


@hookimpl
def register_converters(register: Register) -> None:
    """Bring the converter of the released code's checkpoints."""
    register(
        "advmoe-released",
        "harness_moe_cnn.convert:convert",
        card=Card(
            "State dicts of AdvMoE's ResNet-18, WRN, VGG-16 and DenseNet-40 for small images, for "
            "`moe-cnn/...` with one router.",
            source=CODE,
            note="its WRN has BatchNorms that are never used: load it into a network that is not "
            "repaired",
        ),
    )

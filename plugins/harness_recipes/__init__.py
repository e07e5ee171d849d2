"""Training recipes for every model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api import Card, hookimpl

if TYPE_CHECKING:
    from harness.api import Register

COMMON = {
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
    "crop": 0,
    "flip": False,
    "cutout": 0,
}

ADVERSARIAL = {
    **COMMON,
    "norm": "linf",
    "epsilon": "8/255",
    "attack": "pgd",
    "steps": 7,
    "relative_step_size": 0.25,
}
MADRY = "Madry et al., 2018, https://arxiv.org/abs/1706.06083 (eq. 2.1)"
DIFFERENT = (
    "the model is attacked in evaluation mode, so that BatchNorm statistics come from the "
    "training pass alone; AdamW and a cosine instead of SGD and steps"
)


@hookimpl
def register_recipes(register: Register) -> None:
    """Bring standard and adversarial training."""
    register(
        "standard",
        "harness_recipes.standard:standard",
        card=Card("Cross-entropy on clean images, AdamW, a warm-up and half a cosine."),
        defaults=COMMON,
    )
    register(
        "pgd-adversarial",
        "harness_recipes.adversarial:pgd_adversarial",
        card=Card(
            "Cross-entropy on images that PGD attacks at every step, on nothing else.",
            source=MADRY,
            note=DIFFERENT,
        ),
        defaults=ADVERSARIAL,
    )
    register(
        "pgd-adversarial-quick",
        "harness_recipes.adversarial:pgd_adversarial",
        card=Card(
            "The same with two long steps of PGD and six epochs: for one CPU core.",
            source=MADRY,
            note=DIFFERENT,
        ),
        defaults={
            **ADVERSARIAL,
            "epochs": 6,
            "learning_rate": 2e-3,
            "steps": 2,
            "relative_step_size": 0.625,
            "crop": 4,
            "flip": True,
        },
    )

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
PUBLISHED = {
    **ADVERSARIAL,
    "epochs": 100,
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "weight_decay": 5e-4,
    "warm_up": 0.0,
    "steps": 2,
    "relative_step_size": 0.625,
    "crop": 4,
    "flip": True,
}
"""Settings of AdvMoE's code for its dense baselines and all its networks on CIFAR."""

MADRY = "Madry et al., 2018, https://arxiv.org/abs/1706.06083 (eq. 2.1)"
TRADES = "Zhang et al., 2019, https://arxiv.org/abs/1901.08573 (eq. 5)"
ADVMOE = "Zhang et al., 2023, https://arxiv.org/abs/2308.10110"
HAN = "Han et al., 2015, https://arxiv.org/abs/1506.02626"
PRUNED = "for dense models; which method AdvMoE's sparse baseline took is not known to us"
ALIKE = (
    "the attack begins anywhere in the ball, where the released code begins 0.001 N(0, 1) off the "
    "image; the divergence is taken from logarithms, so that no gradient of it is NaN"
)
CROPS = "random crops are mirrored at the edges, where the released code pads with black"
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
    register(
        "trades",
        "harness_recipes.trades:trades",
        card=Card(
            "Cross-entropy on clean images, plus beta times their divergence from images that "
            "PGD drives away from them.",
            source=TRADES,
            note=f"{ALIKE}; AdamW and a cosine instead of SGD and steps",
        ),
        defaults={**ADVERSARIAL, "beta": 6.0, "steps": 10},
    )
    register(
        "trades-full",
        "harness_recipes.trades:trades",
        card=Card(
            "TRADES with two long steps, SGD, 100 epochs: how AdvMoE trains its dense baselines.",
            source=f"{TRADES}; settings of the released code of {ADVMOE}",
            note=f"{ALIKE}; {CROPS}; the rate falls at every step, not every epoch",
        ),
        defaults={**PUBLISHED, "beta": 6.0},
    )
    for name, settings, note in (
        ("sparse-robust", ADVERSARIAL, f"{DIFFERENT}; {PRUNED}"),
        ("sparse-robust-full", PUBLISHED, f"{CROPS}; {PRUNED}"),
    ):
        register(
            name,
            "harness_recipes.sparse:sparse_robust",
            card=Card(
                "Adversarial training whose smallest convolution weights become zero on the way "
                "and stay so.",
                source=f"{HAN}, with {MADRY}",
                note=note,
            ),
            defaults={**settings, "density": 0.5, "prune_at": 0.5},
        )

"""The recipes of this family: names, cards and defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from harness.api import Card

if TYPE_CHECKING:
    from collections.abc import Mapping

PAPER = "Zhang et al., 2025, https://arxiv.org/abs/2502.06832"
REPOSITORY = "TIML-Group/Robust-MoE-Dual-Model at 30ef94d"

COMMON: Mapping[str, Any] = {
    "epochs": 30,
    "batch_size": 128,
    "learning_rate": 1e-3,
    "weight_decay": 1e-4,
    "warm_up": 0.1,
    "cycle": 0,
    "translate": 0,
    "crop": 0,
    "flip": False,
    "cutout": 0,
    "norm": "linf",
    "epsilon": "8/255",
    "attack": "pgd",
    "steps": 10,
    "relative_step_size": 0.25,
    "watch_steps": 10,
}
RELEASED: Mapping[str, Any] = {
    **COMMON,
    "epochs": 130,
    "batch_size": 512,
    "learning_rate": 1e-4,
    "weight_decay": 0.0,
    "warm_up": 0.0,
    "cycle": 1000,
    "translate": 2,
    "flip": True,
    "cutout": 8,
}
"""Of the scripts for CIFAR-10; their 200 epochs are 130 in the paper."""

RT_ER: Mapping[str, Any] = {"beta": 6.0, "robustified": "second"}
JTDMOE: Mapping[str, Any] = {"beta": 6.0, "robustified": "all"}
"""The released joint training robustifies every expert on every image."""

MODES = (
    "attacks are made in evaluation mode and losses computed in training mode, from one pass, so "
    "that batch norm has one set of statistics of all images that an expert is given"
)
REPAIRED = (
    f"{MODES}, where the released code leaves evaluation mode on after the first attack and gives "
    "batch norm one image at a time; attacks start anywhere in the ball, not always in its dark "
    "corner; held-out training images are watched, not the test set; float32, not float16"
)

APART = (
    "each half has its own optimiser, so that the standard half's gradient is not applied a second "
    "time in the robust half's step; batch norm of the robust half learns its statistics"
)


class Preset(NamedTuple):
    """One recipe as it is registered."""

    name: str
    target: str
    card: Card
    defaults: Mapping[str, Any]


PRESETS = (
    Preset(
        "moe-standard",
        "harness_dual_moe.recipes:moe_standard",
        Card("Cross-entropy of a mixture on clean images; robust accuracy is watched."),
        COMMON,
    ),
    Preset(
        "moe-adversarial",
        "harness_dual_moe.recipes:moe_adversarial",
        Card(
            "Cross-entropy on images that PGD attacks at the whole mixture.",
            source=f"{PAPER}, which calls it unstable: robust accuracy is told after every epoch",
            note=f"{MODES}; AdamW and a cosine, as the paper's own settings are not known",
        ),
        COMMON,
    ),
    Preset(
        "rt-er",
        "harness_dual_moe.recipes:rt_er",
        Card(
            "Cross-entropy of the attacked mixture, and divergence of the second expert's "
            "prediction when it is attacked alone.",
            source=f"{PAPER}; {REPOSITORY}, cifar10_RT_ER.py",
            note=f"{MODES}; AdamW and a cosine",
        ),
        {**COMMON, **RT_ER},
    ),
    Preset(
        "rt-er-released",
        "harness_dual_moe.recipes:rt_er",
        Card(
            "The same with the released code's settings for CIFAR-10.",
            source=f"{REPOSITORY}, cifar10_RT_ER.py",
            note=f"repaired: {REPAIRED}; the rate's triangle without that of Adam's momentum",
        ),
        {**RELEASED, **RT_ER},
    ),
    Preset(
        "jtdmoe",
        "harness_dual_moe.dual_recipes:jtdmoe",
        Card(
            "Joint training of a dual model: the robust half by RT-ER on all its experts, then the "
            "standard half by the dual model's clean cross-entropy.",
            source=f"{PAPER}; {REPOSITORY}, cifar10_JTDMoE.py",
            note=f"{MODES}; AdamW and a cosine; {APART}",
        ),
        {**COMMON, **JTDMOE},
    ),
    Preset(
        "jtdmoe-released",
        "harness_dual_moe.dual_recipes:jtdmoe",
        Card(
            "The same with the released code's settings for CIFAR-10, both halves from scratch.",
            source=f"{REPOSITORY}, cifar10_JTDMoE.py",
            note=f"repaired: {REPAIRED}; {APART}; the rate's triangle without that of Adam's "
            "momentum",
        ),
        {**RELEASED, **JTDMOE},
    ),
    Preset(
        "dual-separate",
        "harness_dual_moe.dual_recipes:dual_separate",
        Card(
            "A dual model whose halves are trained apart: RT-ER, and clean cross-entropy.",
            note="what joint training is compared with; alpha plays no part",
        ),
        {**COMMON, **RT_ER},
    ),
)

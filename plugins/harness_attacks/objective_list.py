"""The objectives: names and cards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api import ObjectiveCard, hookimpl

if TYPE_CHECKING:
    from harness.api import Register

CROCE = "Croce & Hein, 2020, https://arxiv.org/abs/2003.01690"


@hookimpl
def register_objectives(register: Register) -> None:
    """Bring cross-entropy, the margin and the difference of logits ratio."""
    register(
        "ce",
        "harness_attacks.objectives:cross_entropy",
        card=ObjectiveCard("Cross-entropy of each image, never averaged over the batch."),
    )
    register(
        "margin",
        "harness_attacks.objectives:negative_margin",
        card=ObjectiveCard(
            "The best other logit minus the label's: above 0 the image is fooled.",
            source="Carlini & Wagner, 2017, https://arxiv.org/abs/1608.04644 (f6)",
            note="without their constant kappa",
        ),
    )
    register(
        "dlr",
        "harness_attacks.objectives:difference_of_logits_ratio",
        card=ObjectiveCard(
            "The margin over the largest logit minus the third: no scaling of the logits hides it.",
            source=CROCE,
            note="needs at least 3 classes",
            one_label=True,
        ),
    )
    register(
        "sigmoid-ce",
        "harness_attacks.objectives:sigmoid_cross_entropy",
        card=ObjectiveCard(
            "Binary cross-entropies of all classes, summed: for models with a sigmoid a class.",
            source="google-research/vmoe, sigmoid_xent (arXiv 2210.10253, section 4)",
        ),
    )
    register(
        "trades-kl",
        "harness_attacks.objectives:clean_divergence",
        card=ObjectiveCard(
            "Divergence of the clean prediction from the attacked one: what TRADES climbs.",
            source="Zhang et al., 2019, https://arxiv.org/abs/1901.08573 (eq. 3)",
            note="0 with no gradient at the clean image: begin at random",
        ),
    )
    _register_routed(register)


def _register_routed(register: Register) -> None:
    """Bring what looks at the routes of a Mixture-of-Experts model."""
    register(
        "ce+aux",
        "harness_attacks.routing:cross_entropy_with_auxiliary",
        card=ObjectiveCard(
            "Cross-entropy plus the auxiliary loss, weighted as in training.",
            note="plain cross-entropy on a dense model",
        ),
    )
    register(
        "router-detached",
        "harness_attacks.objectives:cross_entropy",
        card=ObjectiveCard(
            "Cross-entropy with no gradient through the router, which may hide the experts'.",
            note="plain cross-entropy on a dense model",
            view="detached",
        ),
    )
    register(
        "relaxed",
        "harness_attacks.objectives:cross_entropy",
        card=ObjectiveCard(
            "Cross-entropy with all experts mixed by their gates, so that a hard router has a "
            "gradient; judged with the real routes.",
            note="plain cross-entropy on a dense model",
            view="relaxed",
        ),
    )
    register(
        "experts",
        "harness_attacks.objectives:cross_entropy",
        card=ObjectiveCard(
            "Cross-entropy with the routes of the clean image replayed: the experts' robustness.",
            note="judged under those routes: a diagnosis, never part of the headline",
            view="experts",
            needs_routes=True,
        ),
    )
    register(
        "router",
        "harness_attacks.objectives:cross_entropy",
        card=ObjectiveCard(
            "Cross-entropy of the clean content under the routes of the attacked image: the "
            "router's robustness.",
            note="a hard router is climbed with all experts mixed; judged with the routes that "
            "it takes: a diagnosis, never part of the headline",
            view="router",
            needs_routes=True,
        ),
    )
    register(
        "routing-change",
        "harness_attacks.routing:routing_change",
        card=ObjectiveCard(
            "How far the gates have moved off the experts that worked on the clean image.",
            needs_routes=True,
        ),
    )
    register(
        "joint-released",
        "harness_attacks.routing:released_joint_loss",
        card=ObjectiveCard(
            "The loss that AdvMoE's released code climbs to evaluate: for comparison alone.",
            source="OPTML-Group/Robust-MoE-CNN, its evaluation of MoE models",
            note="asks the router for expert `label mod experts`, so that it is weak and not "
            "comparable with an attack on a dense model",
            one_label=True,
            needs_routes=True,
        ),
    )

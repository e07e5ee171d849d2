"""The curves: names, targets and cards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api import MetricCard

if TYPE_CHECKING:
    from collections.abc import Iterator

VMOE_CHANGES = "google-research/vmoe, routing_changes (arXiv 2210.10253, section 4.3)"

CURVES = (
    # name, target, title, unit, summary
    (
        "error-by-attack",
        "curves:error_by_attack",
        "error",
        "share",
        "Share of all images that are wrong under each attack by itself, and on clean images.",
    ),
    (
        "routing-change-executed",
        "routing:executed",
        "routing change, executed",
        "share",
        "One minus the mean overlap of the expert sets that worked, by layer.",
    ),
    (
        "routing-change-intended",
        "routing:intended",
        "routing change, intended",
        "share",
        "One minus the mean overlap of the chosen expert sets before drops, by layer.",
    ),
    (
        "routing-flips",
        "routing:flip_rate",
        "first expert changed",
        "share",
        "Share of tokens whose first expert is another one, by layer.",
    ),
    (
        "gate-kl",
        "routing:gate_kl",
        "divergence of the gates",
        "nats",
        "Kullback-Leibler divergence of the attacked gates from the clean ones, by layer.",
    ),
    (
        "drop-rate",
        "routing:drop_rate",
        "choices dropped",
        "share",
        "Share of choices that capacity dropped, by layer.",
    ),
    (
        "router-margin",
        "routing:router_margin",
        "router margin",
        "logit",
        "Gap between the gate logits of the last chosen expert and the next, by layer.",
    ),
    (
        "load-entropy",
        "loads:entropy",
        "entropy of loads",
        "share",
        "Entropy of the experts' shares of all choices, as a share of its largest value, by layer.",
    ),
    (
        "load-largest",
        "loads:largest_share",
        "load of the busiest expert",
        "share",
        "Share of all choices that the busiest expert takes, by layer.",
    ),
    (
        "load-variation",
        "loads:variation",
        "variation of loads",
        "ratio",
        "Standard deviation of the experts' loads over their mean, by layer.",
    ),
    (
        "expert-shares",
        "loads:expert_shares",
        "share of an expert",
        "share",
        "Share of all choices that each expert takes, by layer.",
    ),
    (
        "mediation",
        "routing:mediation",
        "accuracy by content and routes",
        "share",
        (
            "Share of images right with content (experts), routes (router), both or neither of an "
            "attack, and of noise as large."
        ),
    ),
    (
        "input-gradient",
        "curves:input_gradient",
        "input gradient",
        "norm",
        "Mean size of the gradient of cross-entropy at the image, in the dual norm.",
    ),
)


def curve_cards() -> Iterator[tuple[str, str, MetricCard]]:
    """Each curve: its name, what computes it, its card."""
    for name, target, title, unit, summary in CURVES:
        source = VMOE_CHANGES if name.startswith("routing-change") else ""
        yield name, target, MetricCard(summary, unit, title, is_curve=True, source=source)

"""What AdvMoE's released code minimises and climbs (Zhang et al., 2023, 2308.10110).

(OPTML-Group/Robust-MoE-CNN, commit c50796f; formulas alone, no line of it.)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from harness.api import AttackError
from harness.recipes import divergence
from harness.tensors import Labels, Logits, Outcome, PerImage


def joint_divergence(outcome: Outcome) -> PerImage:
    """How far the prediction and the gates have moved off the clean image's, in nats.

    KL(clean || attacked) of the logits, and of the gate logits of each layer, the mean over its
    tokens; all with weight 1.

    Raises:
        AttackError: The clean logits are not known, or the model has no routes.
    """
    if outcome.clean_logits is None or not outcome.routes:
        raise AttackError(
            "objective 'joint-kl' needs the clean images' logits and routes of a routed model; "
            "take 'trades-kl' for a dense one"
        )
    moved = divergence(outcome.clean_logits, outcome.logits)
    for clean, attacked in zip(outcome.clean_routes, outcome.routes, strict=True):
        tokens = attacked.gate_logits.shape[1]
        apart = divergence(clean.gate_logits.flatten(0, 1), attacked.gate_logits.flatten(0, 1))
        moved = moved + apart.unflatten(0, (-1, tokens)).mean(dim=1)
    return moved


def router_loss(
    clean: Logits, attacked: Logits, labels: Labels, *, alpha: float, beta: float
) -> Tensor:
    """The mean of alpha CE(clean, label mod experts) + beta KL(clean || attacked).

    So a router is taught to send an image to the expert with the number of its label, counted
    round: the loss of the whole network never reaches it.

    Args:
        clean: Gate logits of the clean images (batch, expert).
        attacked: Of the attacked ones.
        labels: Of the images.
        alpha: Weight of the supervision; 0 leaves the divergence alone.
        beta: Weight of the divergence.
    """
    wanted = functional.cross_entropy(clean, labels % clean.shape[1])
    return alpha * wanted + beta * divergence(clean, attacked).mean()


def expert_shares(experts: Tensor, num_experts: int) -> Tensor:
    """The share of all tokens that each expert takes as their first: (expert,), sum 1."""
    return (
        torch.bincount(experts[..., 0].flatten(), minlength=num_experts) / experts[..., 0].numel()
    )

"""Losses that look at the routes of a Mixture-of-Experts model."""

from __future__ import annotations

import torch
from torch.nn import functional

from harness.api import AttackError, Routing
from harness.tensors import Outcome, PerImage
from harness_attacks.objectives import cross_entropy

RELEASED_WEIGHT = 6.0
"""Weight of the router in the evaluation that AdvMoE's code has."""


def cross_entropy_with_auxiliary(outcome: Outcome) -> PerImage:
    """The cross-entropy plus the auxiliary loss, weighted as in training; both are to grow.

    An attack on it also unbalances the experts. A dense model has no auxiliary loss, so that the
    cross-entropy is left.
    """
    loss = cross_entropy(outcome)
    return loss if outcome.auxiliary_loss is None else loss + outcome.auxiliary_loss


def routing_change(outcome: Outcome) -> PerImage:
    """How far gates have moved off the experts that worked on the clean image, in nats.

    Minus the logarithm of the share of the gates that is left to them, the mean over tokens and
    layers: 0 where they have all of it. Unlike a distance between gates, it has a gradient at the
    clean image.

    Raises:
        AttackError: The model has no routes.
    """
    pairs = list(zip(outcome.clean_routes, outcome.routes, strict=True))
    if not pairs:
        raise AttackError("objective 'routing-change' needs a routed model; this one is dense")
    layers = [_left(clean, attacked) for clean, attacked in pairs]
    return torch.stack(layers).mean(dim=0)


def _left(clean: Routing, attacked: Routing) -> PerImage:
    scores = attacked.gate_logits.log_softmax(dim=2)
    worked = torch.zeros_like(scores).bool().scatter(2, clean.experts, clean.kept)
    worked = worked | ~worked.any(dim=2, keepdim=True)  # nobody's token has nothing to lose
    left: PerImage = -scores.masked_fill(~worked, float("-inf")).logsumexp(dim=2).mean(dim=1)
    return left


def router_gap(outcome: Outcome, *, rank: int) -> PerImage:
    """How much the router prefers the expert of this rank on the clean image to all others.

    The gate logit of that expert minus the best other, the smallest over tokens and layers: above
    0 the router sends every token there.

    Raises:
        AttackError: The model has no routes.
    """
    if not outcome.routes:
        raise AttackError("steering needs a routed model; this one is dense")
    pairs = zip(outcome.clean_routes, outcome.routes, strict=True)
    layers = [_preference(clean, attacked, rank) for clean, attacked in pairs]
    return torch.stack(layers).amin(dim=0)


def _preference(clean: Routing, attacked: Routing, rank: int) -> PerImage:
    scores = attacked.gate_logits
    order = clean.gate_logits.argsort(dim=2, descending=True, stable=True)
    place = min(rank, order.shape[2] - 1)
    wanted = order[:, :, place : place + 1]
    others = scores.scatter(2, wanted, float("-inf")).amax(dim=2)
    preference: PerImage = (scores.gather(2, wanted)[:, :, 0] - others).amin(dim=1)
    return preference


def released_joint_loss(outcome: Outcome) -> PerImage:
    """The loss that AdvMoE's released code climbs to evaluate: CE(f) + 6 CE(router, y mod E).

    From OPTML-Group/Robust-MoE-CNN (its evaluation of MoE models): the router is asked to send
    an image to the expert whose number is its label modulo the number of experts, a rule that
    nothing in training makes it follow, so that most of the loss is spent on the router. Not a
    measure of robustness: for comparison with the paper's numbers alone.

    Raises:
        AttackError: The model has no routes.
    """
    if not outcome.routes:
        raise AttackError("objective 'joint-released' needs a routed model; this one is dense")
    layers = [_misrouted(routing, outcome) for routing in outcome.routes]
    return cross_entropy(outcome) + RELEASED_WEIGHT * torch.stack(layers).mean(dim=0)


def _misrouted(routing: Routing, outcome: Outcome) -> PerImage:
    _, tokens, experts = routing.gate_logits.shape
    wanted = (outcome.labels % experts)[:, None].expand(-1, tokens)
    scores = routing.gate_logits.transpose(1, 2)
    loss: PerImage = functional.cross_entropy(scores, wanted, reduction="none").mean(dim=1)
    return loss

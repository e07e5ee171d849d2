"""How far two routings of the same tokens differ, and how far two drawn at random would."""

from __future__ import annotations

from math import comb

import torch

from harness.api import Routing
from harness.tensors import PerImage

MOST_LOADS = 64
"""Experts of all layers together up to which each one's load is written down for each image."""


def chance_change(num_experts: int, num_selected: int) -> float:
    """One minus the expected overlap of two sets of experts that are drawn at random.

    Two sets of K of E experts share j with chance C(K, j) C(E - K, K - j) / C(E, K), and their
    overlap, intersection over union, is then j / (2 K - j).

    >>> round(chance_change(4, 1), 6), chance_change(4, 4)
    (0.75, 0.0)
    """
    overlap = sum(
        comb(num_selected, shared)
        * comb(num_experts - num_selected, num_selected - shared)
        / comb(num_experts, num_selected)
        * shared
        / (2 * num_selected - shared)
        for shared in range(1, num_selected + 1)
    )
    return 1.0 - overlap


def change(before: Routing, after: Routing) -> PerImage:
    """One minus the mean overlap of the tokens' expert sets (google-research/vmoe)."""
    return 1 - before.overlap(after).mean(dim=1)


def flips(before: Routing, after: Routing) -> PerImage:
    """The share of tokens whose first expert is another one."""
    return (before.experts[:, :, 0] != after.experts[:, :, 0]).float().mean(dim=1)


def divergence(before: Routing, after: Routing) -> PerImage:
    """The Kullback-Leibler divergence of the gates after from those before, in nats, by token."""
    first, second = before.gate_logits.log_softmax(2), after.gate_logits.log_softmax(2)
    return (first.exp() * (first - second)).sum(dim=2).mean(dim=1)


def drops(routing: Routing) -> PerImage:
    """The share of choices that capacity dropped."""
    return 1 - routing.kept.float().flatten(1).mean(dim=1)


def decides(routing: Routing) -> bool:
    """There are experts that are not chosen."""
    return routing.gate_logits.shape[2] > routing.experts.shape[2]


def router_margin(routing: Routing) -> PerImage:
    """The K-th largest gate logit minus the next, by token: what a flip has to overcome."""
    return token_margins(routing).mean(dim=1)


def token_margins(routing: Routing) -> torch.Tensor:
    """The same for each token: (batch, token)."""
    num_selected = routing.experts.shape[2]
    best = routing.gate_logits.topk(num_selected + 1, dim=2).values
    return best[:, :, num_selected - 1] - best[:, :, num_selected]


def loads(routing: Routing) -> torch.Tensor:
    """Choices of each image that each expert took: (batch, expert)."""
    count = routing.gate_logits.shape[2]
    empty = routing.gate_logits.new_zeros(len(routing.experts), count)
    taken = routing.kept.to(empty.dtype)
    return empty.scatter_add(1, routing.experts.flatten(1), taken.flatten(1))

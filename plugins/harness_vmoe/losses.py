"""The auxiliary losses that balance the experts (Riquelme et al., 2021, arXiv 2106.05974).

Each gives one number for each group of tokens.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from harness_vmoe.router import Gates, best_experts, noise_spread

PerGroup: TypeAlias = Float[Tensor, "group"]

IMPORTANCE = 0.005
LOAD = 0.005
GSHARD = 0.01
"""Weights of the released configurations: gshard for 2 experts, the other two for more."""


def auxiliary_loss(gate_logits: Gates, noisy: Gates | None, num_selected: int) -> PerGroup:
    """The weighted loss of one layer, one number for each group.

    Args:
        gate_logits: Without noise.
        noisy: The gate logits that routed, in training; None where no noise was drawn, and then
            there is no load loss, as in the official code.
        num_selected: Experts of each token.
    """
    if gate_logits.shape[2] == 2:  # noqa: PLR2004 - the load loss is of no use for two experts
        return GSHARD * gshard_loss((gate_logits if noisy is None else noisy).softmax(dim=2))
    importance = IMPORTANCE * importance_loss(gate_logits)
    if noisy is None:
        return importance
    return importance + LOAD * load_loss(gate_logits, noisy, num_selected)


def importance_loss(gate_logits: Gates) -> PerGroup:
    """How unequal the summed gates of the experts are; from the logits without noise."""
    return _variation(gate_logits.softmax(dim=2).sum(dim=1))


def load_loss(gate_logits: Gates, noisy: Gates, num_selected: int) -> PerGroup:
    """How unequal the chances of the experts are to be chosen if the noise were drawn again."""
    threshold = noisy.topk(num_selected, dim=2).values[:, :, -1:]
    distance = (gate_logits - threshold) / noise_spread(gate_logits.shape[2])
    return _variation(torch.special.ndtr(distance).mean(dim=1))


def gshard_loss(gates: Gates) -> PerGroup:
    """How far the experts' shares of first choices and of gates agree (Lepikhin et al., 2021).

    https://arxiv.org/abs/2006.16668; the gradient comes through the gates alone.
    """
    count = gates.shape[2]
    first = torch.zeros_like(gates).scatter(2, best_experts(gates, 1), 1)
    return count**2 * (first.mean(dim=1) * gates.mean(dim=1)).mean(dim=1)


def _variation(values: Float[Tensor, "group expert"]) -> PerGroup:
    """The squared coefficient of variation of the experts, with the variance of a population.

    Unlike the official code this is the variance over the squared mean, not the square of the
    deviation: the same value and gradient, but 0 where the experts are in balance and not NaN.
    """
    return values.var(dim=1, correction=0) / values.mean(dim=1).square()

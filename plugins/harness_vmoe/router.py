"""The router of V-MoE: noise, gates, choices and capacity (Riquelme et al., 2021, 2106.05974).

Numbers of steps and rounding are those of google-research/vmoe, `NoisyTopExpertsPerItem`.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from harness_vit.vit import start_lecun_normal

Tokens: TypeAlias = Float[Tensor, "group token width"]  # a group is an image, or several
Gates: TypeAlias = Float[Tensor, "group token expert"]
Choices: TypeAlias = Int[Tensor, "group token k"]  # experts, best first
Kept: TypeAlias = Bool[Tensor, "group token k"]  # False where capacity dropped the choice

NOISE = 1.0
"""Spread of the noise of training, to be divided by the number of experts."""

ROUNDING = 4
"""A capacity is rounded up to a multiple of this."""


class Router(nn.Module):
    """A linear map of tokens to one gate logit for each expert, in the precision of its weights."""

    def __init__(self, width: int, num_experts: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, num_experts, bias=False)
        start_lecun_normal(self.dense)

    def forward(self, tokens: Tokens) -> Gates:
        """The gate logits of each token."""
        weight = self.dense.weight
        with _without_autocast(tokens.device.type):
            return functional.linear(tokens.to(weight.dtype), weight)

    def noisy(self, gate_logits: Gates) -> Gates:
        """The gate logits with fresh noise in training, as they are in evaluation."""
        if not self.training:
            return gate_logits
        return gate_logits + noise_spread(gate_logits.shape[-1]) * torch.randn_like(gate_logits)


def noise_spread(num_experts: int) -> float:
    """The standard deviation of the noise on each gate logit."""
    return NOISE / num_experts


def best_experts(gates: Gates, num_selected: int) -> Choices:
    """The experts with the largest gates, best first; of equal gates the lowest index first."""
    order = gates.sort(dim=-1, descending=True, stable=True).indices
    return order[..., :num_selected]


def capacity_of(tokens: int, num_selected: int, num_experts: int, factor: float) -> int:
    """The tokens of a group that one expert takes.

    >>> capacity_of(400, 2, 32, 1.05)  # ceil(26.25) = 27, rounded up
    28
    """
    needed = math.ceil(tokens * num_selected * factor / num_experts)
    return -(-needed // ROUNDING) * ROUNDING


def within_capacity(experts: Choices, gates: Gates, capacity: int, *, batch_priority: bool) -> Kept:
    """Which choices find a free place at their expert.

    All first choices of a group come before all second ones; within a rank tokens come in their
    order, or with batch priority in that of their largest gates.

    Args:
        experts: Chosen by each token.
        gates: By which they were chosen.
        capacity: Places of an expert in each group.
        batch_priority: Let tokens with a large gate come first.
    """
    if not batch_priority:
        return _places(experts, gates.shape[2]) < capacity
    order = gates.amax(dim=2).sort(dim=1, descending=True, stable=True).indices
    order = order[:, :, None].expand_as(experts)
    places = _places(experts.gather(1, order), gates.shape[2])
    return places.new_zeros(places.shape).scatter(1, order, places) < capacity


def _places(experts: Choices, num_experts: int) -> Int[Tensor, "group token k"]:
    """How many earlier choices of the group went to the same expert."""
    queue = experts.transpose(1, 2).flatten(1)
    chosen, order = queue.sort(dim=1, stable=True)
    counts = queue.new_zeros(len(queue), num_experts).scatter_add(1, queue, torch.ones_like(queue))
    first = counts.cumsum(dim=1) - counts
    places = torch.arange(queue.shape[1], device=queue.device) - first.gather(1, chosen)
    places = places.new_zeros(places.shape).scatter(1, order, places)
    return places.view(len(queue), experts.shape[2], -1).transpose(1, 2)


def _without_autocast(device: str) -> AbstractContextManager[object]:
    """A choice of experts in half precision would not be the model's own."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)

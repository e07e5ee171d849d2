"""The sparse layer of V-MoE: a router and its experts (Riquelme et al., 2021, arXiv 2106.05974)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from harness.api import ModelError, Routing, did_you_mean
from harness_vmoe.dispatch import DISPATCHES, Experts
from harness_vmoe.losses import auxiliary_loss
from harness_vmoe.router import (
    Choices,
    Gates,
    Kept,
    Router,
    Tokens,
    best_experts,
    capacity_of,
    within_capacity,
)

Balances: TypeAlias = Float[Tensor, "groups"]  # weighted; of each group, or of each image


@dataclass(frozen=True)
class Sparsity:
    """The numbers that make a sparse layer.

    Attributes:
        num_experts: MLPs of the layer.
        num_selected: Those that work for one token.
        group_size: Images that share the experts' capacity, and a number of the auxiliary loss.
        capacity_factor: Places as a multiple of what balanced tokens need; 0 drops nothing.
        batch_priority: Give the places to the tokens with the largest gates first.
        dispatch: How tokens come to their experts, one of `DISPATCHES`.
        is_rounded: Send tokens and outputs in bfloat16, as the released models do.
    """

    num_experts: int
    num_selected: int
    group_size: int = 1
    capacity_factor: float = 0.0
    batch_priority: bool = False
    dispatch: str = "grouped"
    is_rounded: bool = False

    def layer(self, width: int, hidden: int) -> SparseMlp:
        """A layer of these numbers, for tokens of a width."""
        return SparseMlp(width, hidden, self)

    def __post_init__(self) -> None:
        """Refuse numbers that do not fit each other.

        Raises:
            ModelError: Says which, and what fits.
        """
        if not 1 <= self.num_selected <= self.num_experts:
            raise ModelError(
                f"num_selected={self.num_selected} of {self.num_experts} experts cannot be "
                f"chosen; set it to 1 to {self.num_experts}"
            )
        if self.group_size < 1:
            raise ModelError(f"group_size={self.group_size} images are no group; set 1 or more")
        if self.capacity_factor < 0:
            raise ModelError("capacity_factor is below 0; set 0 to drop nothing")
        if self.dispatch not in DISPATCHES:
            raise ModelError(
                f"dispatch {self.dispatch!r} is not known"
                f"{did_you_mean(self.dispatch, list(DISPATCHES))}"
            )


class Mixed(NamedTuple):
    """What a layer of experts tells of one forward pass."""

    tokens: Tokens
    routing: Routing
    auxiliary_loss: Balances


class Steering(NamedTuple):
    """How a pass departs from the router's own way; see `RoutedClassifier.routed`."""

    replayed: Routing | None = None
    relaxed: bool = False
    detach_router: bool = False


PLAIN = Steering()


@runtime_checkable
class Mixture(Protocol):
    """A layer whose output is mixed of its experts' outputs."""

    router: nn.Module
    experts: nn.Module

    def __call__(self, tokens: Tokens, steering: Steering = PLAIN) -> Mixed:
        """The mixed outputs, the routing that mixed them, and what balances the load."""

    def idle_parameters(self) -> int:
        """Parameters that do not work for a token."""


@runtime_checkable
class MixtureSettings(Protocol):
    """The numbers that make a layer of experts."""

    def layer(self, width: int, hidden: int) -> nn.Module:
        """A `Mixture` of these numbers, for tokens of a width."""


class SparseMlp(nn.Module):
    """An MLP for each token that is a sum of a few experts', weighted by their gates.

    The gates are a softmax over all experts and are not made to sum to 1 over the chosen ones.

    Attributes:
        sparsity: In evaluation, and in training where `share_places` did not say otherwise.
        training_sparsity: In training.
    """

    def __init__(self, width: int, hidden: int, sparsity: Sparsity) -> None:
        super().__init__()
        self.sparsity = self.training_sparsity = sparsity
        self.router = Router(width, sparsity.num_experts)
        self.experts = Experts(sparsity.num_experts, width, hidden)

    def forward(self, tokens: Tokens, steering: Steering = PLAIN) -> Mixed:
        """The mixed outputs; those of a token without a place are 0."""
        routing, noisy = steering.replayed, None
        if routing is None:
            gate_logits = self.router(tokens)
            noisy = self.router.noisy(gate_logits) if self.training else None
            routing = self._routing(gate_logits, gate_logits if noisy is None else noisy)
        if steering.detach_router:
            routing, noisy = _detached(routing), None if noisy is None else noisy.detach()
        outputs = self._outputs(tokens, routing, relaxed=steering.relaxed)
        return Mixed(outputs, routing, self._auxiliary(routing.gate_logits, noisy))

    @property
    def _sparsity(self) -> Sparsity:
        return self.training_sparsity if self.training else self.sparsity

    def idle_parameters(self) -> int:
        """Those of the experts that are not chosen."""
        one = sum(weight[0].numel() for weight in self.experts.parameters())
        return one * (self.sparsity.num_experts - self.sparsity.num_selected)

    def _routing(self, gate_logits: Gates, noisy: Gates) -> Routing:
        gates = noisy.softmax(dim=2)
        experts = best_experts(gates, self.sparsity.num_selected)
        return Routing(gate_logits, gates, experts, self._kept(experts, gates))

    def _kept(self, experts: Choices, gates: Gates) -> Kept:
        if not self._sparsity.capacity_factor:
            return torch.ones_like(experts, dtype=torch.bool)
        parts = zip(self._by_group(experts), self._by_group(gates), strict=True)
        kept = [self._within_capacity(chosen, part) for chosen, part in parts]
        return torch.cat([part.reshape(-1, *experts.shape[1:]) for part in kept])

    def _within_capacity(self, experts: Choices, gates: Gates) -> Kept:
        _, tokens, num_experts = gates.shape
        factor = self._sparsity.capacity_factor
        capacity = capacity_of(tokens, experts.shape[2], num_experts, factor)
        return within_capacity(
            experts, gates, capacity, batch_priority=self._sparsity.batch_priority
        )

    def _outputs(self, tokens: Tokens, routing: Routing, *, relaxed: bool) -> Tokens:
        gates, experts = routing.gates, routing.experts
        weights = gates.gather(2, experts) * routing.kept
        if relaxed:
            experts = torch.arange(gates.shape[2], device=gates.device).expand_as(gates)
            weights = gates
        sent = self._rounded(tokens.flatten(0, 1))
        dispatch = DISPATCHES[self.sparsity.dispatch]
        outputs = self._rounded(dispatch(self.experts, sent, experts.flatten(0, 1)))
        mixed: Tensor = (weights.flatten(0, 1)[:, :, None] * outputs).sum(dim=1)
        return mixed.view_as(tokens)

    def _rounded(self, values: Tensor) -> Tensor:
        return values.bfloat16().to(values.dtype) if self.sparsity.is_rounded else values

    def _auxiliary(self, gate_logits: Gates, noisy: Gates | None) -> Balances:
        """One number for each group, or for each image where the last group is not full."""
        clean = self._by_group(gate_logits)
        noised = [None] * len(clean) if noisy is None else self._by_group(noisy)
        found = [
            auxiliary_loss(*pair, self.sparsity.num_selected)
            for pair in zip(clean, noised, strict=True)
        ]
        if len(found) == 1:
            return found[0]
        tokens = gate_logits.shape[1]
        return torch.cat(
            [
                losses.repeat_interleave(part.shape[1] // tokens)
                for losses, part in zip(found, clean, strict=True)
            ]
        )

    def _by_group(self, values: Tensor) -> list[Tensor]:
        """(batch, token, any) as (group, token, any), the rest of the batch as a smaller group."""
        size = self._sparsity.group_size
        whole = len(values) // size * size
        parts = (
            values[:whole].reshape(-1, size * values.shape[1], values.shape[2]),
            values[whole:].reshape(1, -1, values.shape[2]),
        )
        return [part for part in parts if part.numel()]


def share_places(model: nn.Module, *, group_size: int, capacity_factor: float) -> None:
    """Let groups of images share the experts' places while a model trains.

    Its sparse layers are changed in place; what they do in evaluation stays as it is.

    Args:
        model: With sparse layers, or without any.
        group_size: Consecutive images of a group.
        capacity_factor: Places as a multiple of what balanced tokens need; 0 drops nothing.

    Raises:
        ModelError: No such group, or a negative factor.
    """
    for layer in model.modules():
        if isinstance(layer, SparseMlp):
            layer.training_sparsity = replace(
                layer.sparsity, group_size=group_size, capacity_factor=capacity_factor
            )


def _detached(routing: Routing) -> Routing:
    return replace(routing, gate_logits=routing.gate_logits.detach(), gates=routing.gates.detach())

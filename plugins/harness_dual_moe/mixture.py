"""Mixtures of complete classifiers behind one router (Zhang et al., 2025, arXiv 2502.06832).

The released code has the hard choice of one expert, the paper the sum of all experts' outputs by
gates that are at least 0 and sum to 1; what chooses n experts shares the weight among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from harness.api import ModelContext, ModelError, Routing
from harness.tensors import Images, Logits, Routed
from harness_dual_moe.router import router_of

ROW_GROUP = 8
"""Each expert's group is padded to a multiple of this, so that a row's result does not depend on
how many others were sent to its expert."""

GRADIENTS = ("none", "straight-through", "soft")
EXPERT_INPUTS = ("images", "normalised")


class Mixing(NamedTuple):
    """How the outputs of the experts become one."""

    num_selected: int
    router_gradient: str  # one of GRADIENTS
    expert_input: str  # one of EXPERT_INPUTS


class Mixture(nn.Module):
    """Complete classifiers, of which a router chooses some for each image.

    Args:
        experts: Images in [0, 1] to logits.
        router: Normalised images to gate logits (batch, expert).
        mean: Of each channel, in [0, 1].
        std: Of each channel, in [0, 1].
        mixing: How many experts work, and what they are given.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        experts: Sequence[nn.Module],
        router: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        mixing: Mixing,
    ) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.router = router
        self.mixing = mixing
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Images) -> Logits:
        """The logits alone."""
        return self.routed(images).logits

    def routed(
        self,
        images: Images,
        *,
        routes: tuple[Routing, ...] | None = None,
        relaxed: bool = False,
        detach_router: bool = False,
    ) -> Routed:
        """The logits and the routing of the one layer, of one token; see `RoutedClassifier`."""
        normalised = self._normalised(images)
        routing = self._routing(normalised) if routes is None else routes[0]
        gates = routing.gates[:, 0].detach() if detach_router else routing.gates[:, 0]
        chosen = routing.experts[:, 0]
        if relaxed:
            chosen = torch.arange(len(self.experts), device=images.device).expand_as(gates)
            weights = gates
        else:
            weights = self._weights(gates.gather(1, chosen)) * routing.kept[:, 0]

        # an expert that centres its images as 2x - 1 then reads the normalised ones
        given = images if self.mixing.expert_input == "images" else (normalised + 1) / 2
        outputs = grouped(self.experts, given, chosen, is_padded=not self.training)
        logits = (weights[:, :, None] * outputs).sum(dim=1)
        return Routed(logits, (routing,), logits.new_zeros(len(logits)))

    def routing(self, images: Images) -> Routing:
        """Where the router sends the images, without asking an expert."""
        return self._routing(self._normalised(images))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters of the router, of the experts, and others."""
        return {
            "router": list(self.router.parameters()),
            "experts": list(self.experts.parameters()),
            "other": [],
        }

    def active_parameters(self) -> int:
        """The router and the chosen experts, where these are alike."""
        groups = self.parameter_groups()
        router, experts = (_count(groups[name]) for name in ("router", "experts"))
        return router + experts * self.mixing.num_selected // len(self.experts)

    def _normalised(self, images: Images) -> Tensor:
        return (images - self.mean) / self.std

    def _routing(self, normalised: Tensor) -> Routing:
        call = self.router if self.training else padded(self.router)
        gate_logits = call(normalised)[:, None]
        order = gate_logits.argsort(dim=2, descending=True, stable=True)
        experts = order[:, :, : self.mixing.num_selected]
        return Routing(
            gate_logits, gate_logits.softmax(dim=2), experts, torch.ones_like(experts).bool()
        )

    def _weights(self, gates: Tensor) -> Tensor:
        """The shares of the chosen experts, from their gates (batch, k)."""
        if gates.shape[1] == 1:  # the gate is not multiplied in, as released
            shares = torch.ones_like(gates)
        else:
            shares = gates / gates.sum(dim=1, keepdim=True)
        if self.mixing.router_gradient == "none":
            return shares.detach()
        if self.mixing.router_gradient == "straight-through":
            return shares.detach() + gates - gates.detach()
        return shares


def grouped(experts: nn.ModuleList, images: Images, chosen: Tensor, *, is_padded: bool) -> Tensor:
    """What each chosen expert says of its image: (batch, k, class), from one call an expert.

    Args:
        experts: Images to logits.
        images: What they are given.
        chosen: Numbers of experts, (batch, k).
        is_padded: Fill up each group; not in training, where padding would enter the statistics
            of batch norm.
    """
    places = chosen.flatten()
    order = places.argsort(stable=True)
    rows = torch.arange(len(images), device=images.device)[:, None].expand_as(chosen).flatten()
    groups = images[rows[order]].split(_sizes(places, len(experts)))
    outputs = [
        padded(expert)(group) if is_padded else expert(group)
        for expert, group in zip(experts, groups, strict=True)
        if len(group)
    ]
    by_place: Tensor = torch.cat(outputs)[order.argsort()].unflatten(0, chosen.shape)
    return by_place


def padded(module: nn.Module) -> Callable[[Images], Tensor]:
    """The module, called with whole groups of rows: the last one is repeated."""

    def call(images: Images) -> Tensor:
        missing = -len(images) % ROW_GROUP
        whole = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)])
        found: Tensor = module(whole)[: len(images)]
        return found

    return call


def mixture(  # noqa: PLR0913 - one for each registered parameter
    context: ModelContext,
    *,
    expert: str,
    expert_parameters: Mapping[str, Any],
    expert_input: str,
    num_experts: int,
    num_selected: int,
    router: str,
    router_trainable: bool,
    router_gradient: str,
    mean: Sequence[float],
    std: Sequence[float],
) -> nn.Module:
    """A mixture of registered classifiers, each with weights of its own.

    Args:
        context: Classes and shape of the images.
        expert: Name of a registered model.
        expert_parameters: Its parameters.
        expert_input: "images" in [0, 1] for experts that normalise as they like, "normalised" for
            those that centre images as 2x - 1, which then read (images - mean) / std.
        num_experts: Classifiers behind the router.
        num_selected: Those that work for one image; all of them make the paper's soft mixture.
        router: "linear" or "convolutional".
        router_trainable: False leaves the router as it was drawn, as the released code does
            without saying so.
        router_gradient: "none" cuts it, "straight-through" gives the chosen gates a gradient as
            if they were the weights, "soft" has that of the weights.
        mean: Of each channel of the images that the router reads, in [0, 1].
        std: The same.

    Raises:
        ModelError: A word or a number that has no meaning here.
    """
    _check_words(router_gradient, expert_input)
    _check_numbers(num_experts, num_selected, router_gradient)
    experts = [context.model(expert, **expert_parameters) for _ in range(num_experts)]
    gate = router_of(router, context.image_shape, num_experts)
    gate.requires_grad_(router_trainable)
    mixing = Mixing(num_selected, router_gradient, expert_input)
    return Mixture(experts, gate, mean=mean, std=std, mixing=mixing)


def _check_words(router_gradient: str, expert_input: str) -> None:
    for name, word, known in (
        ("router_gradient", router_gradient, GRADIENTS),
        ("expert_input", expert_input, EXPERT_INPUTS),
    ):
        if word not in known:
            raise ModelError(f"{name} {word!r} is not known; write one of {', '.join(known)}")


def _check_numbers(num_experts: int, num_selected: int, router_gradient: str) -> None:
    if not 1 <= num_selected <= num_experts:
        raise ModelError(
            f"num_selected is {num_selected}; it must lie between 1 and num_experts, {num_experts}"
        )
    if num_selected == 1 < num_experts and router_gradient == "soft":
        raise ModelError(
            "one chosen expert has the weight 1, which has no soft gradient; "
            "set router_gradient to 'none' or 'straight-through', or raise num_selected"
        )


def _sizes(places: Tensor, num_experts: int) -> list[int]:
    """How many images each expert is given; on the meta device the first gets all."""
    if places.is_meta:
        return [len(places)] + [0] * (num_experts - 1)
    sizes: list[int] = places.bincount(minlength=num_experts).tolist()
    return sizes


def _count(parameters: Sequence[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)

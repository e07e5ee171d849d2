"""Convolutions whose output channels belong to experts, one of which works for each image.

The layer of AdvMoE (Zhang et al., 2023, https://arxiv.org/abs/2308.10110), run grouped by expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from harness.api import ModelError, Routing
from harness.tensors import PerImage, Rows

Features: TypeAlias = Float[Tensor, "batch channel height width"]
Outputs: TypeAlias = Float[Tensor, "batch outputs rows columns"]  # of one expert for each image

ROW_GROUP = 8
"""Rows of a group are padded to a multiple of this, as the harness pads batches."""


class Group(NamedTuple):
    """The images that one expert works for."""

    expert: int
    rows: Rows  # the last one repeated where the group is padded
    length: int  # true ones


@dataclass(frozen=True)
class Assignment:
    """Which expert of a layer works for which image.

    Attributes:
        groups: One for each expert that was chosen.
        places: Where each image stands in the outputs of the groups, one after the other.
        entry: (batch,), what multiplies each output: 1, with the router's gradient, or 0 where the
            choice was dropped; None where it is 1 without gradient.
        mixture: (batch, expert), weights of all experts, used in place of the groups.
    """

    groups: tuple[Group, ...]
    places: Rows
    entry: PerImage | None = None
    mixture: Float[Tensor, "batch expert"] | None = None


Guide: TypeAlias = Callable[[Tensor], Assignment]  # from what a layer reads


class MoEConv(nn.Module):
    """A convolution without bias, of which each image uses one block of output channels.

    Attributes:
        num_experts: Blocks of output channels; all read the same input channels.
        weight: (expert * width, inputs, size, size), expert after expert.
    """

    def __init__(
        self, inputs: int, width: int, size: int, *, num_experts: int, stride: int = 1
    ) -> None:
        super().__init__()
        if num_experts < 1:
            raise ModelError(f"num_experts must be at least 1, got {num_experts}")
        self.num_experts = num_experts
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(num_experts * width, inputs, size, size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights that keep the variance of gradients, counted over all experts' outputs.

        So those of one expert are smaller by the root of their number, as in AdvMoE's code.
        """
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, features: Features, assignment: Assignment) -> Outputs:
        """What each image's expert makes of it, or the mixture of what all make of it."""
        if assignment.mixture is not None:
            outputs = self._convolved(features, self.weight).unflatten(1, (self.num_experts, -1))
            mixed: Tensor = (outputs * assignment.mixture[:, :, None, None, None]).sum(dim=1)
            return mixed
        outputs = self._grouped(features, assignment)
        if assignment.entry is None:
            return outputs
        return outputs * assignment.entry.to(outputs.dtype)[:, None, None, None]

    def unused(self) -> int:
        """Parameters that do not work for a given image."""
        return self.weight.numel() // self.num_experts * (self.num_experts - 1)

    def _grouped(self, features: Tensor, assignment: Assignment) -> Tensor:
        blocks = self.weight.chunk(self.num_experts)
        if len(assignment.groups) == 1:
            return self._convolved(features, blocks[assignment.groups[0].expert])
        parts = [
            self._convolved(_picked(features, rows), blocks[expert])[:length]
            for expert, rows, length in assignment.groups
        ]
        return _picked(torch.cat(parts), assignment.places)

    def _convolved(self, features: Tensor, weight: Tensor) -> Tensor:
        return functional.conv2d(features, weight, None, self.stride, weight.shape[2] // 2)


class Chain(nn.ModuleList):
    """Blocks one after the other that read features and ask one guide."""

    def forward(self, features: Tensor, guide: Guide) -> Tensor:
        """What the last block gives."""
        for block in self:
            features = block(features, guide)
        return features


def assigned(
    routing: Routing, *, relaxed: bool = False, detached: bool = False, padded: bool = True
) -> Assignment:
    """What a layer must know of a routing with one token and one choice for each image.

    The choice is straight-through: it is multiplied with a 1 whose gradient, that of the loss
    along the output, goes to the chosen gate logit (AdvMoE's code; no gate value enters).

    Args:
        routing: Replayed or fresh.
        relaxed: Mix all experts by the gates.
        detached: Let no gradient through the router.
        padded: The groups may be padded, where the batch is no odd one itself.
    """
    experts, kept = routing.experts[:, 0, 0], routing.kept[:, 0, 0]
    if relaxed:
        gates = routing.gates[:, 0]
        return Assignment((), experts, mixture=gates.detach() if detached else gates)
    multiple = ROW_GROUP if padded and len(experts) % ROW_GROUP == 0 else 1
    order = experts.argsort(stable=True)
    groups = tuple(_groups(experts, order, routing.gate_logits.shape[2], multiple))
    chosen = routing.gate_logits[:, 0].gather(1, experts[:, None])[:, 0]
    return Assignment(groups, order.argsort(), _entry(chosen, kept, detached=detached))


def scaled(width: int, ratio: float) -> int:
    """The channels of one expert in a layer of that width, rounded down.

    Raises:
        ModelError: No channel is left.
    """
    channels = int(width * ratio)
    if channels < 1:
        raise ModelError(
            f"ratio {ratio} leaves none of {width} channels; it must be at least 1/{width}"
        )
    return channels


def _picked(features: Tensor, rows: Rows) -> Tensor:
    """The features of some images, lying in memory as all do; so does their gradient.

    `index_select` itself undoes channels last, and each layer would put them back.
    """
    if not features.is_contiguous(memory_format=torch.channels_last):
        return features.index_select(0, rows)
    last = features.permute(0, 2, 3, 1)
    flat = last.reshape(len(last), -1).index_select(0, rows)
    return flat.view(len(rows), *last.shape[1:]).permute(0, 3, 1, 2)


def _groups(experts: Rows, order: Rows, num_experts: int, multiple: int) -> Iterator[Group]:
    if experts.is_meta:  # there are no choices to group by: as if all were the first expert
        yield Group(0, order, len(order))
        return
    counts = torch.bincount(experts, minlength=num_experts).tolist()
    for expert, rows in enumerate(order.split(counts)):
        if len(rows) > 0:
            padding = rows[-1:].expand(-len(rows) % multiple)
            yield Group(expert, torch.cat([rows, padding]), len(rows))


def _entry(chosen: Tensor, kept: Tensor, *, detached: bool) -> Tensor | None:
    if detached or not chosen.requires_grad:
        return None if kept.is_meta or bool(kept.all()) else kept.to(chosen.dtype)
    return kept * (1 + chosen - chosen.detach())

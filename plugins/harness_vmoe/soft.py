"""Soft MoE: every slot of an expert is a mixture of all tokens of its image.

Puigcerver et al., 2024, https://arxiv.org/abs/2308.00951. Nothing is chosen and nothing dropped:
dispatch weights sum to 1 over the tokens, combine weights over the slots, and both are smooth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from harness.api import ModelContext, ModelError, Routing
from harness_vit.vit import (
    Architecture,
    input_size_of,
    xavier_dense,
)
from harness_vmoe.dispatch import Experts
from harness_vmoe.model import VMoE
from harness_vmoe.moe import PLAIN, Mixed, Steering
from harness_vmoe.router import Tokens, best_experts

SlotLogits: TypeAlias = Float[Tensor, "batch token slot"]


@dataclass(frozen=True)
class Softness:
    """The numbers that make a soft layer.

    Attributes:
        num_experts: MLPs of the layer.
        slots: Mixtures of tokens that each expert works on.
    """

    num_experts: int
    slots: int

    def layer(self, width: int, hidden: int) -> SoftMlp:
        """A layer of these numbers, for tokens of a width."""
        return SoftMlp(width, hidden, self)

    def __post_init__(self) -> None:
        """Refuse a layer without experts or slots.

        Raises:
            ModelError: Says what to set.
        """
        if self.num_experts < 1 or self.slots < 1:
            raise ModelError(
                f"num_experts={self.num_experts} and slots={self.slots} make no layer; "
                "set 1 or more of each"
            )


class SlotRouter(nn.Module):
    """How much each slot has to do with each token: a scaled cosine."""

    def __init__(self, width: int, num_slots: int) -> None:
        super().__init__()
        self.slots = nn.Parameter(torch.randn(width, num_slots) * width**-0.5)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, tokens: Tokens) -> SlotLogits:
        """The logits of tokens and slots, both of length 1 before the product."""
        slots = self.scale * functional.normalize(self.slots, dim=0)
        logits: Tensor = functional.normalize(tokens, dim=2) @ slots
        return logits


class SoftMlp(nn.Module):
    """An MLP for each token that is a mixture of all slots' outputs.

    The routes that it tells are of slots, expert by expert: the slot `s` is the expert's
    `s // slots`. Its gate logits are those of tokens and slots, its gates the combine weights;
    the dispatch weights follow from the gate logits.
    """

    def __init__(self, width: int, hidden: int, softness: Softness) -> None:
        super().__init__()
        self.softness = softness
        self.router = SlotRouter(width, softness.num_experts * softness.slots)
        self.experts = Experts(softness.num_experts, width, hidden)
        _start_apart(self.experts)

    def forward(self, tokens: Tokens, steering: Steering = PLAIN) -> Mixed:
        """The mixed outputs and the routing that mixed them; nothing needs to be balanced."""
        routing = steering.replayed or self._routing(self.router(tokens))
        if steering.detach_router:
            routing = replace(
                routing, gate_logits=routing.gate_logits.detach(), gates=routing.gates.detach()
            )
        # N image, T token, S slot, D width
        dispatch = routing.gate_logits.softmax(dim=1)
        slots = torch.einsum("nts,ntd->nsd", dispatch, tokens)
        outputs: Tensor = torch.einsum("nts,nsd->ntd", routing.gates, self._worked(slots))
        return Mixed(outputs, routing, outputs.new_zeros(len(outputs)))

    def idle_parameters(self) -> int:
        """None: every expert works for every token."""
        return 0

    def _routing(self, logits: SlotLogits) -> Routing:
        gates = logits.softmax(dim=2)
        everyone = best_experts(gates, gates.shape[2])
        return Routing(logits, gates, everyone, torch.ones_like(everyone, dtype=torch.bool))

    def _worked(self, slots: Tensor) -> Tensor:
        """What each expert makes of its slots."""
        mlp = self.experts
        grouped = slots.unflatten(1, (self.softness.num_experts, -1))
        # N image, E expert, P slot of an expert, D width, F hidden
        hidden = torch.einsum("nepd,edf->nepf", grouped, mlp.hidden.weight)
        hidden = functional.gelu(hidden + mlp.hidden.bias[:, None], approximate="tanh")
        outputs: Tensor = torch.einsum("nepf,efd->nepd", hidden, mlp.out.weight)
        return (outputs + mlp.out.bias[:, None]).flatten(1, 2)


def soft_moe(  # noqa: PLR0913 - what makes the model
    context: ModelContext,
    *,
    patch_size: int,
    width: int,
    depth: int,
    heads: int,
    image_size: int,
    moe_blocks: tuple[int, ...],
    num_experts: int,
    slots: int,
) -> nn.Module:
    """A Soft MoE whose MLPs and experts are four times as wide as a token.

    Unlike the paper's, its head reads a class token, as in our V-MoEs.

    Args:
        context: Classes and canvas.
        patch_size: Pixels of a patch's side.
        width: Length of a token.
        depth: Blocks.
        heads: Attention heads of a block.
        image_size: Side in pixels that images are resized to; 0 takes the canvas as it is.
        moe_blocks: Indices of the blocks with experts.
        num_experts: Experts of each of them.
        slots: Slots of each expert; as many in all as there are tokens cost what a dense MLP does.

    Raises:
        ModelError: Numbers that do not fit each other.
    """
    architecture = Architecture(patch_size, width, depth, heads, 4 * width)
    input_size = input_size_of(context, architecture, image_size)
    if not moe_blocks or not all(0 <= block < depth for block in moe_blocks):
        raise ModelError(f"moe_blocks must name some of the blocks 0 to {depth - 1}")
    return VMoE(
        architecture,
        Softness(num_experts, slots),
        moe_blocks=tuple(moe_blocks),
        channels=context.image_shape[0],
        num_classes=context.num_classes,
        input_size=input_size,
    )


def _start_apart(experts: Experts) -> None:
    """Draw each expert's kernels for itself: no noise will part them later."""
    for dense in (experts.hidden, experts.out):
        count, inputs, outputs = dense.weight.shape
        drawn = [xavier_dense(inputs, outputs).weight.detach().T for _ in range(count)]
        dense.weight = nn.Parameter(torch.stack(drawn))

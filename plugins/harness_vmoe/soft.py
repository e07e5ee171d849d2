"""Soft MoE: every slot of an expert is a mixture of all tokens of its image.

Puigcerver et al., 2024, https://arxiv.org/abs/2308.00951. Nothing is chosen and nothing dropped:
dispatch weights sum to 1 over the tokens, combine weights over the slots, and both are smooth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from harness.api import ModelContext, ModelError, Routing
from harness.tensors import Fitted, Images, Logits, Routed
from harness_vit import transfer
from harness_vit.vit import (
    Architecture,
    Block,
    Head,
    Mlp,
    PatchEmbedding,
    input_size_of,
    xavier_dense,
)
from harness_vmoe.dispatch import Experts
from harness_vmoe.moe import PLAIN, Steering
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

    def forward(self, tokens: Tokens, steering: Steering = PLAIN) -> tuple[Tokens, Routing]:
        """The mixed outputs and the routing that mixed them."""
        routing = steering.replayed or self._routing(self.router(tokens))
        if steering.detach_router:
            routing = replace(
                routing, gate_logits=routing.gate_logits.detach(), gates=routing.gates.detach()
            )
        # N image, T token, S slot, D width
        dispatch = routing.gate_logits.softmax(dim=1)
        slots = torch.einsum("nts,ntd->nsd", dispatch, tokens)
        outputs: Tensor = torch.einsum("nts,nsd->ntd", routing.gates, self._worked(slots))
        return outputs, routing

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


class SoftMoE(nn.Module):
    """A vision transformer in some of whose blocks a soft mixture stands in for the MLP.

    Unlike the paper, the head reads a class token, as in our V-MoEs.

    Args:
        architecture: Of the dense part.
        softness: Of each soft layer.
        moe_blocks: Indices of the blocks with experts.
        channels: Of the images.
        num_classes: Length of the logits.
        input_size: (height, width) that images are resized to.
    """

    def __init__(
        self,
        architecture: Architecture,
        softness: Softness,
        *,
        moe_blocks: tuple[int, ...],
        channels: int,
        num_classes: int,
        input_size: tuple[int, int],
    ) -> None:
        super().__init__()
        width, hidden = architecture.width, architecture.mlp_width
        self.embedding = PatchEmbedding(channels, input_size, architecture.patch_size, width)
        self.blocks = nn.ModuleList(
            Block(
                width,
                architecture.heads,
                SoftMlp(width, hidden, softness) if index in moe_blocks else Mlp(width, hidden),
            )
            for index in range(architecture.depth)
        )
        self.head = Head(width, num_classes, pre_logits=architecture.pre_logits)

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) that images are resized to."""
        return self.embedding.input_size

    def forward(self, images: Images) -> Logits:
        """The logits alone."""
        return self.routed(images).logits

    def routed(
        self,
        images: Images,
        *,
        routes: tuple[Routing, ...] | None = None,
        relaxed: bool = False,  # noqa: ARG002 - all experts are mixed anyway
        detach_router: bool = False,
    ) -> Routed:
        """The logits and the routing of each soft layer; see `RoutedClassifier`."""
        tokens = self.embedding(images)
        found: list[Routing] = []
        for block in self._blocks():
            if not isinstance(block.mlp, SoftMlp):
                tokens = block(tokens)
                continue
            replayed = None if routes is None else routes[len(found)]
            steering = Steering(replayed, detach_router=detach_router)
            tokens = block.attended(tokens)
            mixed, routing = block.mlp(block.mlp_norm(tokens), steering)
            tokens = tokens + mixed
            found.append(routing)
        logits = self.head(tokens)
        return Routed(logits, tuple(found), logits.new_zeros(len(logits)))

    def fitted(self, state: Mapping[str, Tensor]) -> Fitted:
        """Weights of another size or for other classes; see `Fitting`."""
        return transfer.fitted(state, self.state_dict(), self.embedding.grid)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters of the routers, of the experts, and others."""
        layers = [block.mlp for block in self._blocks() if isinstance(block.mlp, SoftMlp)]
        router = [weight for layer in layers for weight in layer.router.parameters()]
        experts = [weight for layer in layers for weight in layer.experts.parameters()]
        known = {id(weight) for weight in (*router, *experts)}
        other = [weight for weight in self.parameters() if id(weight) not in known]
        return {"router": router, "experts": experts, "other": other}

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]


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
    return SoftMoE(
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

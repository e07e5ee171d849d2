"""V-MoE: a vision transformer with sparse layers (Riquelme et al., 2021, arXiv 2106.05974)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from harness.api import ModelContext, ModelError, Routing
from harness.tensors import Fitted, Images, Logits, Routed
from harness_vit import transfer
from harness_vit.vit import Architecture, Block, Head, Mlp, PatchEmbedding, input_size_of
from harness_vmoe.moe import Mixture, MixtureSettings, Sparsity, Steering


class VMoE(nn.Module):
    """A vision transformer in some of whose blocks experts stand in for the MLP.

    Args:
        architecture: Of the dense part.
        settings: Of each layer of experts.
        moe_blocks: Indices of the blocks with experts.
        channels: Of the images.
        num_classes: Length of the logits.
        input_size: (height, width) that images are resized to.
    """

    def __init__(
        self,
        architecture: Architecture,
        settings: MixtureSettings,
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
                settings.layer(width, hidden) if index in moe_blocks else Mlp(width, hidden),
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
        relaxed: bool = False,
        detach_router: bool = False,
    ) -> Routed:
        """The logits and the routing of each layer of experts; see `RoutedClassifier`."""
        tokens = self.embedding(images)
        found: list[Routing] = []
        losses: list[Tensor] = []
        for block in self._blocks():
            if isinstance(block.mlp, Mlp):
                tokens = block(tokens)
                continue
            replayed = None if routes is None else routes[len(found)]
            tokens = block.attended(tokens)
            mixed = block.mlp(block.mlp_norm(tokens), Steering(replayed, relaxed, detach_router))
            tokens = tokens + mixed.tokens
            found.append(mixed.routing)
            losses.append(mixed.auxiliary_loss)
        return Routed(self.head(tokens), tuple(found), torch.stack(losses).sum(dim=0))

    def fitted(self, state: Mapping[str, Tensor]) -> Fitted:
        """Weights of another size or for other classes; see `Fitting`."""
        return transfer.fitted(state, self.state_dict(), self.embedding.grid)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters of the routers, of the experts, and others."""
        layers = self._layers()
        router = [weight for layer in layers for weight in layer.router.parameters()]
        experts = [weight for layer in layers for weight in layer.experts.parameters()]
        known = {id(weight) for weight in (*router, *experts)}
        other = [weight for weight in self.parameters() if id(weight) not in known]
        return {"router": router, "experts": experts, "other": other}

    def active_parameters(self) -> int:
        """All but the experts that do not work for a token."""
        idle = sum(layer.idle_parameters() for layer in self._layers())
        return sum(weight.numel() for weight in self.parameters()) - idle

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def _layers(self) -> list[Mixture]:
        layers = [block.mlp for block in self._blocks() if not isinstance(block.mlp, Mlp)]
        return cast(list[Mixture], layers)


def vmoe(  # noqa: PLR0913 - the columns of the papers' tables
    context: ModelContext,
    *,
    patch_size: int,
    width: int,
    depth: int,
    heads: int,
    pre_logits: bool,
    image_size: int,
    moe_blocks: tuple[int, ...],
    num_experts: int,
    num_selected: int,
    group_size: int,
    capacity_factor: float,
    batch_priority: bool,
    dispatch: str,
) -> nn.Module:
    """A V-MoE whose MLPs and experts are four times as wide as a token.

    Args:
        context: Classes and canvas.
        patch_size: Pixels of a patch's side.
        width: Length of a token.
        depth: Blocks.
        heads: Attention heads of a block.
        pre_logits: Put a dense layer with tanh before the head.
        image_size: Side in pixels that images are resized to; 0 takes the canvas as it is.
        moe_blocks: Indices of the blocks with experts.
        num_experts: Experts of each of them.
        num_selected: Experts that work for one token.
        group_size: Consecutive images that share the experts' capacity.
        capacity_factor: Places as a multiple of what balanced tokens need; 0 drops nothing.
        batch_priority: Give the places to the tokens with the largest gates first.
        dispatch: "grouped", "loop" or "einsum": the same outputs at another speed.

    Raises:
        ModelError: Numbers that do not fit each other.
    """
    architecture = Architecture(patch_size, width, depth, heads, 4 * width, pre_logits=pre_logits)
    input_size = input_size_of(context, architecture, image_size)
    if not moe_blocks or not all(0 <= block < depth for block in moe_blocks):
        raise ModelError(f"moe_blocks must name some of the blocks 0 to {depth - 1}")
    sparsity = Sparsity(
        num_experts, num_selected, group_size, capacity_factor, batch_priority, dispatch
    )
    return VMoE(
        architecture,
        sparsity,
        moe_blocks=tuple(moe_blocks),
        channels=context.image_shape[0],
        num_classes=context.num_classes,
        input_size=input_size,
    )

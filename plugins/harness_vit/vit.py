"""The dense vision transformers of V-MoE (Riquelme et al., 2021, arXiv 2106.05974).

A pre-LayerNorm ViT with a class token, as vit_jax and vmoe build it: GELU in its tanh form,
LayerNorm with 1e-6, a position embedding that covers the class token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.api import ModelContext, ModelError
from harness_vit import transfer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.tensors import Fitted, Images, Logits

NORM_EPSILON = 1e-6
HEAD_SPREAD = 0.01
"""Standard deviation of an untrained head."""


@dataclass(frozen=True)
class Architecture:
    """The numbers that make a vision transformer.

    Attributes:
        patch_size: Pixels of a patch's side.
        width: Length of a token.
        depth: Blocks.
        heads: Attention heads of a block.
        mlp_width: Hidden units of a block's MLP.
        pre_logits: Put a dense layer with tanh before the head.
    """

    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_width: int
    pre_logits: bool = False


class PatchEmbedding(nn.Module):
    """Images cut into patches, each a token, behind a class token, with learnt positions.

    Attributes:
        input_size: (height, width) of the images that it cuts.
        grid: Rows and columns of its patches.
    """

    def __init__(
        self, channels: int, input_size: tuple[int, int], patch_size: int, width: int
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.grid = (input_size[0] // patch_size, input_size[1] // patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, 1 + self.grid[0] * self.grid[1], width))
        self.patches = nn.Conv2d(channels, width, patch_size, stride=patch_size)
        nn.init.normal_(self.positions, std=0.02)
        start_lecun_normal(self.patches)

    def forward(self, images: Images) -> Tensor:
        """Tokens (batch, 1 + patches, width) of images in [0, 1], the class token first."""
        if images.shape[2:] != self.input_size:
            images = functional.interpolate(
                images, self.input_size, mode="bilinear", align_corners=False, antialias=True
            )
        patches = self.patches(2 * images - 1).flatten(2).transpose(1, 2)
        first = self.class_token.expand(len(images), -1, -1)
        return torch.cat([first, patches], dim=1) + self.positions


class Attention(nn.Module):
    """Every token mixed with all others of its image, in several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = xavier_dense(width, width)
        self.key = xavier_dense(width, width)
        self.value = xavier_dense(width, width)
        self.out = xavier_dense(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """What each token takes from the others."""
        query, key, value = (
            dense(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for dense in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        taken: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return taken


class Mlp(nn.Module):
    """Two dense layers around a GELU, the same for each token."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.hidden = xavier_dense(width, hidden)
        self.out = xavier_dense(hidden, width)
        nn.init.normal_(self.hidden.bias, std=1e-6)
        nn.init.normal_(self.out.bias, std=1e-6)

    def forward(self, tokens: Tensor) -> Tensor:
        """The tokens, each transformed by itself."""
        changed: Tensor = self.out(functional.gelu(self.hidden(tokens), approximate="tanh"))
        return changed


class Block(nn.Module):
    """Attention, then an MLP or what takes its place, each behind a norm and around a shortcut."""

    def __init__(self, width: int, heads: int, mlp: nn.Module) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.attention = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.mlp = mlp

    def attended(self, tokens: Tensor) -> Tensor:
        """The tokens after the first half of the block."""
        mixed: Tensor = tokens + self.attention(self.attention_norm(tokens))
        return mixed

    def forward(self, tokens: Tensor) -> Tensor:
        """The tokens after the whole block."""
        tokens = self.attended(tokens)
        changed: Tensor = tokens + self.mlp(self.mlp_norm(tokens))
        return changed


class Head(nn.Module):
    """The class token's logits.

    Unlike the reference, an untrained kernel is drawn with a spread of 0.01 and is not 0: a head
    of zeros gives every image the same logits and attacks no gradient.
    """

    def __init__(self, width: int, num_classes: int, *, pre_logits: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.pre_logits = nn.Linear(width, width) if pre_logits else None
        self.logits = nn.Linear(width, num_classes)
        if self.pre_logits is not None:
            start_lecun_normal(self.pre_logits)
        nn.init.normal_(self.logits.weight, std=HEAD_SPREAD)
        nn.init.constant_(self.logits.bias, -math.log(num_classes))

    def forward(self, tokens: Tensor) -> Logits:
        """Logits of tokens whose first is the class token."""
        token = self.norm(tokens[:, 0])
        if self.pre_logits is not None:
            token = self.pre_logits(token).tanh()
        logits: Tensor = self.logits(token)
        return logits


class DenseViT(nn.Module):
    """A vision transformer whose blocks all have an MLP; images in [0, 1] are scaled inside."""

    def __init__(
        self,
        architecture: Architecture,
        *,
        channels: int,
        num_classes: int,
        input_size: tuple[int, int],
    ) -> None:
        super().__init__()
        width = architecture.width
        self.embedding = PatchEmbedding(channels, input_size, architecture.patch_size, width)
        self.blocks = nn.Sequential(
            *(
                Block(width, architecture.heads, Mlp(width, architecture.mlp_width))
                for _ in range(architecture.depth)
            )
        )
        self.head = Head(width, num_classes, pre_logits=architecture.pre_logits)

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) that images are resized to."""
        return self.embedding.input_size

    def forward(self, images: Images) -> Logits:
        """Resize where needed, cut into patches, classify."""
        logits: Tensor = self.head(self.blocks(self.embedding(images)))
        return logits

    def fitted(self, state: Mapping[str, Tensor]) -> Fitted:
        """Weights of another size or for other classes; see `Fitting`."""
        return transfer.fitted(state, self.state_dict(), self.embedding.grid)


def dense_vit(  # noqa: PLR0913 - the columns of the papers' tables
    context: ModelContext,
    *,
    patch_size: int,
    width: int,
    depth: int,
    heads: int,
    pre_logits: bool,
    image_size: int,
) -> nn.Module:
    """A dense vision transformer whose MLPs are four times as wide as a token.

    Args:
        context: Classes and canvas.
        patch_size: Pixels of a patch's side.
        width: Length of a token.
        depth: Blocks.
        heads: Attention heads of a block.
        pre_logits: Put a dense layer with tanh before the head.
        image_size: Side in pixels that images are resized to; 0 takes the canvas as it is.

    Raises:
        ModelError: The patches do not fill the image, or the heads do not share the width.
    """
    architecture = Architecture(patch_size, width, depth, heads, 4 * width, pre_logits=pre_logits)
    return DenseViT(
        architecture,
        channels=context.image_shape[0],
        num_classes=context.num_classes,
        input_size=input_size_of(context, architecture, image_size),
    )


def input_size_of(
    context: ModelContext, architecture: Architecture, image_size: int
) -> tuple[int, int]:
    """The (height, width) that a transformer resizes images to.

    Args:
        context: Whose canvas is taken where no size is set.
        architecture: Whose patches must fill the images, and whose heads share the width.
        image_size: Side in pixels; 0 takes the canvas as it is.

    Raises:
        ModelError: The patches do not fill the image, or the heads do not share the width.
    """
    _, *canvas = context.image_shape
    height, width = (image_size, image_size) if image_size else canvas
    patch_size, heads = architecture.patch_size, architecture.heads
    if any(side % patch_size or side <= 0 for side in (height, width)):
        raise ModelError(
            f"patches of {patch_size} pixels do not fill images of {height}x{width}; "
            f"set image_size to a multiple of {patch_size}"
        )
    if architecture.width % heads:
        raise ModelError(
            f"{heads} heads do not share a width of {architecture.width}; choose a divisor"
        )
    return height, width


def xavier_dense(inputs: int, outputs: int) -> nn.Linear:
    """A dense layer as attention and MLPs start: Xavier-uniform kernel, no bias yet."""
    dense = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(dense.weight)
    nn.init.zeros_(dense.bias)
    return dense


def start_lecun_normal(layer: nn.Linear | nn.Conv2d) -> None:
    """Start a layer as flax does: bias 0, variance 1 / inputs, cut off at two deviations."""
    # a normal cut off at 2 deviations has 0.8796 of its spread left
    spread = layer.weight[0].numel() ** -0.5 / 0.87962566103423978
    nn.init.trunc_normal_(layer.weight, std=spread, a=-2 * spread, b=2 * spread)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)

"""Weights of a vision transformer for images of another size or for other classes.

As google-research/vmoe fine-tunes: the grid of positions is stretched linearly and the class
token's is kept, the head starts afresh (Dosovitskiy et al., 2021, arXiv 2010.11929, sect. 3.2).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from harness.api import CheckpointError
from harness.tensors import Fitted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

POSITIONS = "embedding.positions"
LOGITS = ("head.logits.weight", "head.logits.bias")
PRE_LOGITS = ("head.pre_logits.weight", "head.pre_logits.bias")


def fitted(state: Mapping[str, Tensor], own: Mapping[str, Tensor], grid: tuple[int, int]) -> Fitted:
    """A state for a transformer of the same blocks.

    Args:
        state: Of the transformer that was trained.
        own: Of the one that takes it.
        grid: Rows and columns of its patches.

    Raises:
        CheckpointError: Positions that are of no square grid.
    """
    taken, changes = dict(state), []
    positions = state.get(POSITIONS)
    if positions is not None and positions.shape[1:] != own[POSITIONS].shape[1:]:
        taken[POSITIONS] = _stretched(positions, grid)
        before, after = positions.shape[1], 1 + grid[0] * grid[1]
        changes.append(f"{POSITIONS}: stretched from {before} to {after} tokens")
    changes += _without_head(taken, own)
    kept = tuple(name for name in (*LOGITS, *PRE_LOGITS) if name in own and name not in taken)
    changes += [f"{name}: the model's own" for name in kept]
    return Fitted(taken, kept, tuple(changes))


def _without_head(taken: dict[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Take out a head for other classes, and a layer before it that the model does not have."""
    changes = []
    if any(name in taken and taken[name].shape != own[name].shape for name in LOGITS):
        classes = len(taken[LOGITS[0]])
        for name in LOGITS:
            taken.pop(name, None)
        changes.append(f"head.logits: dropped, of {classes} classes")
    if PRE_LOGITS[0] in taken and PRE_LOGITS[0] not in own:
        for name in PRE_LOGITS:
            taken.pop(name, None)
        changes.append("head.pre_logits: dropped, the model has none")
    return changes


def _stretched(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Positions (1, 1 + patches, width) for another grid, corner on corner."""
    count = positions.shape[1] - 1
    side = math.isqrt(count)
    if side**2 != count:
        raise CheckpointError(
            f"{POSITIONS}: {count} patches are no square, so that nobody knows their grid; "
            "give weights that were trained on square images"
        )
    patches = positions[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    stretched = functional.interpolate(patches, grid, mode="bilinear", align_corners=True)
    return torch.cat([positions[:, :1], stretched.flatten(2).transpose(1, 2)], dim=1)

"""Parameters of flax's V-MoE under our names and in our layouts (google-research/vmoe)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from harness.api import CheckpointError
from harness_vit.convert import BLOCK
from harness_vit.convert import from_flax as dense_from_flax
from harness_vit.npz import read_npz

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

    import numpy as np
    from torch import Tensor

SPARSE = "/Moe/"
NAMES = {
    "Router/dense/kernel": "router.dense.weight",
    "Mlp/Dense_0/kernel": "experts.hidden.weight",
    "Mlp/Dense_0/bias": "experts.hidden.bias",
    "Mlp/Dense_1/kernel": "experts.out.weight",
    "Mlp/Dense_1/bias": "experts.out.bias",
}
"""Our name for each parameter of a sparse layer."""


def convert(path: Path) -> dict[str, Tensor]:
    """The state dict of a `VMoE` from an npz file of the official parameters by their paths.

    Raises:
        CheckpointError: No npz file, or one of another model.
    """
    return from_flax(read_npz(path))


def from_flax(params: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Tensor]:
    """The state dict of a `VMoE` from flax's parameters.

    Args:
        params: By path, such as "Encoder/encoderblock_1/Moe/Router/dense/kernel".

    Raises:
        CheckpointError: A parameter that a V-MoE does not have, or has twice.
    """
    state = dense_from_flax({path: params[path] for path in params if SPARSE not in path})
    for path, array in params.items():
        if SPARSE in path:
            tensor = torch.tensor(array)
            is_router = path.endswith("Router/dense/kernel")
            state[_name(path)] = tensor.T.contiguous() if is_router else tensor
    return state


def _name(path: str) -> str:
    block, _, part = path.partition(SPARSE)
    if part not in NAMES:
        raise CheckpointError(
            f"{path}: no parameter of a sparse layer; "
            "give the model's parameters alone, without optimiser state"
        )
    return f"blocks.{block.rpartition(BLOCK)[2]}.mlp.{NAMES[part]}"

"""Checkpoints that other code wrote, read without executing any of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path


def torch_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a file that torch saved: at its root, or as "state_dict".

    Raises:
        CheckpointError: No such file, or one that holds more than tensors and plain values, or no
            state dict.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds here
        raise CheckpointError(
            f"{path}: no checkpoint of tensors and plain values; it was not executed: {error}. "
            "Where you trust it, load it yourself and save its state_dict alone"
        ) from error
    state = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(state, dict) or not all(isinstance(part, Tensor) for part in state.values()):
        raise CheckpointError(
            f"{path}: holds no state dict, a table of tensors by name, at its root or as "
            "'state_dict'; save model.state_dict()"
        )
    return state

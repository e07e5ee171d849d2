"""Weights that a training starts from, made to fit where the model knows how."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness import checkpoints
from harness.tensors import Fitted, Fitting

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn


def start_from(model: nn.Module, path: Path, *, sha256: str) -> tuple[str, ...]:
    """Give a model the weights that its training starts from.

    Args:
        model: Changed in place.
        path: safetensors, or a pickle of nothing but tensors.
        sha256: Hash that the file must have.

    Returns:
        What was resized or replaced, for the card.

    Raises:
        CheckpointError: No such file, another hash, or weights that do not fit.
    """
    checkpoints.file_hash(path, sha256)
    return fit(model, checkpoints.read_state(path), path).changes


def fit(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> Fitted:
    """Load as much of a state as the model can use.

    Args:
        model: Changed in place.
        state: Of another size or of other classes, perhaps.
        path: Where it came from, for the message.

    Raises:
        CheckpointError: It does not fit, and the model knows no way.
    """
    found = fitted(model, state)
    own = model.state_dict()
    kept = {name: own[name] for name in found.own}
    checkpoints.fit_state(model, kept | found.state, path)
    return found


def fitted(model: nn.Module, state: Mapping[str, Tensor]) -> Fitted:
    """The state in the model's shapes; as it is where the model knows no way."""
    return model.fitted(state) if isinstance(model, Fitting) else Fitted(dict(state))

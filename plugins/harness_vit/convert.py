"""Parameters of flax's vision transformers under our names and in torch's layouts.

Reads the trees of vit_jax, with the numbering of today and of its published .npz files, and of
vmoe (https://github.com/google-research/vision_transformer, .../vmoe).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from harness.api import CheckpointError
from harness_vit.npz import read_npz

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

    import numpy as np
    from torch import Tensor

BLOCK = "encoderblock_"
WORDS = {
    "Transformer": "",
    "Encoder": "",
    "LayerNorm_0": "attention_norm",
    "MultiHeadDotProductAttention_0": "attention",
    "MultiHeadDotProductAttention_1": "attention",
    "SelfAttention": "attention",
    "query": "query",
    "key": "key",
    "value": "value",
    "out": "out",
    "LayerNorm_1": "mlp_norm",
    "LayerNorm_2": "mlp_norm",
    "MlpBlock_0": "mlp",
    "MlpBlock_3": "mlp",
    "Mlp": "mlp",
    "Dense_0": "hidden",
    "Dense_1": "out",
    "encoder_norm": "head.norm",
    "pre_logits": "head.pre_logits",
    "head": "head.logits",
    "cls": "embedding.class_token",
    "posembed_input": "embedding",
    "pos_embedding": "positions",
    "embedding": "embedding.patches",
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
}
"""Our word for each part of a parameter's path."""


def convert(path: Path) -> dict[str, Tensor]:
    """The state dict of a `DenseViT` from an npz file, such as those that vit_jax publishes.

    Raises:
        CheckpointError: No npz file, or one of another model.
    """
    return from_flax(read_npz(path))


def from_flax(params: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Tensor]:
    """The state dict of a `DenseViT` from flax's parameters.

    Args:
        params: By path, such as "Transformer/encoderblock_0/LayerNorm_0/scale".

    Raises:
        CheckpointError: A parameter that a dense vision transformer does not have, or has twice.
    """
    state: dict[str, Tensor] = {}
    for path, array in params.items():
        name = ".".join(filter(None, (_word(part, path) for part in path.split("/"))))
        if name in state:
            raise CheckpointError(f"{path}: {name} comes twice; give the parameters of one model")
        state[name] = _arranged(name, torch.tensor(array))
    return state


def _word(part: str, path: str) -> str:
    if part.startswith(BLOCK):
        return f"blocks.{part.removeprefix(BLOCK)}"
    if part not in WORDS:
        raise CheckpointError(
            f"{path}: no parameter of a dense vision transformer; "
            "give the model's parameters alone, without experts and optimiser state"
        )
    return WORDS[part]


def _arranged(name: str, tensor: Tensor) -> Tensor:
    """The tensor in torch's layout: kernels (out, in), heads side by side in one axis."""
    if name == "embedding.patches.weight":
        return tensor.permute(3, 2, 0, 1).contiguous()
    if name.endswith(".bias"):
        return tensor.flatten()
    if name.endswith(".out.weight"):
        return tensor.flatten(0, -2).T.contiguous()
    if name.endswith(".weight") and tensor.ndim > 1:
        return tensor.flatten(1).T.contiguous()
    return tensor

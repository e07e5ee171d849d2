"""Parameters of Robust-MoE-Dual-Model's released ResNet mixtures and dual models, under our names.

Read are the names of TIML-Group/Robust-MoE-Dual-Model at 30ef94d.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from harness.api import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

HALVES = {"Smoe": "standard", "Rmoe": "robust"}
LAYERS = {"conv1": "stem", "bn1": "bn", "linear": "head"}
"""Our name of each layer outside the blocks."""

BLOCKS = 2
"""Blocks of a stage of ResNet-18: theirs are numbered by stage, ours from first to last."""

ROUTER = "router.gate."
EXPERT = re.compile(r"experts\.(\d+)\.net\.(.+)")
STAGE = re.compile(r"layer(\d)\.(\d)\.(.+)")


def from_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a `Mixture` of `cnn/resnet18`, or of a dual model of two of them.

    Args:
        state: By released name, such as "Rmoe.experts.0.net.layer1.0.conv1.weight"; "module." in
            front, which torch adds for several GPUs, is taken off.

    Raises:
        CheckpointError: A parameter that such a model does not have.
    """
    return {_renamed(name): tensor for name, tensor in state.items()}


def _renamed(name: str) -> str:
    plain = name.removeprefix("module.")
    half, _, rest = plain.partition(".")
    if half in HALVES:
        return f"{HALVES[half]}.{_of_mixture(rest, name)}"
    return _of_mixture(plain, name)


def _of_mixture(plain: str, name: str) -> str:
    if plain.startswith(ROUTER):
        return f"router.linear.{plain.removeprefix(ROUTER)}"
    expert = EXPERT.fullmatch(plain)
    if expert is None:
        raise CheckpointError(
            f"{name}: no parameter of the released mixture of ResNets; "
            "give the model's state dict alone, without optimiser or epoch"
        )
    return f"experts.{expert[1]}.{_of_resnet(expert[2], name)}"


def _of_resnet(plain: str, name: str) -> str:
    stage = STAGE.fullmatch(plain)
    if stage is not None:
        return f"blocks.{BLOCKS * (int(stage[1]) - 1) + int(stage[2])}.{stage[3]}"
    layer, _, rest = plain.partition(".")
    if layer not in LAYERS:
        raise CheckpointError(
            f"{name}: no parameter of the released ResNet-18; other experts are not converted"
        )
    return f"{LAYERS[layer]}.{rest}"

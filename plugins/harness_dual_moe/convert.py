"""Parameters of Robust-MoE-Dual-Model's released ResNet mixtures and dual models, under our names.

Read are the names of TIML-Group/Robust-MoE-Dual-Model at 30ef94d.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from harness.api import CheckpointError
from harness.foreign import torch_state

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

HALVES = {"Smoe": "standard", "Rmoe": "robust"}
LAYERS = {"conv1": "stem", "bn1": "bn", "linear": "head"}
"""Our name of each layer outside the blocks."""

BLOCKS = 2
"""Blocks of a stage of ResNet-18: theirs are numbered by stage, ours from first to last."""

NUM_STAGES = 4
ROUTER = "router.gate."
EXPERT = re.compile(r"experts\.(\d+)\.net\.(.+)")
STAGE = re.compile(r"layer(\d)\.(\d)\.(.+)")
NORM = ("weight", "bias", "running_mean", "running_var")
COUNTER = "num_batches_tracked"
"""Of batch norm; it says nothing where the momentum is fixed, and files may lack it."""

SHOWN = 3
"""Names that a message tells."""


def convert(path: Path) -> dict[str, Tensor]:
    """The same from a file that torch saved: a state dict, or a table that holds it.

    Raises:
        CheckpointError: No such file, one that holds more than tensors and plain values, or not
            the whole state of such a model.
    """
    return from_released(torch_state(path))


def from_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a `Mixture` of `cnn/resnet18`, or of a dual model of two of them.

    Args:
        state: By released name, such as "Rmoe.experts.0.net.layer1.0.conv1.weight"; "module." in
            front, which torch adds for several GPUs, is taken off.

    Raises:
        CheckpointError: A parameter that such a model does not have, or one that is missing.
    """
    found = {renamed(name): tensor for name, tensor in state.items()}
    expected = _expected(found)
    _refuse("lacks", expected - set(found), "save the whole model's state dict")
    counters = {
        f"{name.removesuffix('running_mean')}{COUNTER}"
        for name in expected
        if name.endswith("running_mean")
    }
    remedy = "name the model that they were saved from"
    _refuse("also holds", set(found) - expected - counters, remedy)
    return {**{name: torch.tensor(0) for name in sorted(counters)}, **found}


def renamed(name: str) -> str:
    """Our name of one parameter or buffer.

    Raises:
        CheckpointError: Such a model does not have it.
    """
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


def _expected(found: Mapping[str, Tensor]) -> set[str]:
    """All names of a whole model with as many experts as the largest number tells."""
    is_dual = any(name.startswith(tuple(HALVES.values())) for name in found)
    halves = [f"{half}." for half in HALVES.values()] if is_dual else [""]
    return {name for half in halves for name in _of_whole(half, found)}


def _of_whole(half: str, found: Mapping[str, Tensor]) -> Iterator[str]:
    """Names of one mixture, a dual model's half or the model itself."""
    yield from (f"{half}router.linear.{kind}" for kind in ("weight", "bias"))
    start = f"{half}experts."
    numbers = [int(name[len(start) :].split(".")[0]) for name in found if name.startswith(start)]
    for number in range(max(numbers, default=0) + 1):
        yield from (f"{start}{number}.{name}" for name in _of_expert())


def _of_expert() -> Iterator[str]:
    """Names of ResNet-18: the first block of every stage but the first widens."""
    yield "stem.weight"
    yield from _norm("bn")
    yield from ("head.weight", "head.bias")
    for block in range(BLOCKS * NUM_STAGES):
        start = f"blocks.{block}"
        for place in (1, 2):
            yield f"{start}.conv{place}.weight"
            yield from _norm(f"{start}.bn{place}")
        if block and block % BLOCKS == 0:
            yield f"{start}.shortcut.0.weight"
            yield from _norm(f"{start}.shortcut.1")


def _norm(name: str) -> Iterator[str]:
    return (f"{name}.{kind}" for kind in NORM)


def _refuse(what: str, names: set[str], remedy: str) -> None:
    """Refuse a state whose names are not those of the whole model.

    Raises:
        CheckpointError: There are such names.
    """
    if not names:
        return
    told, more = ", ".join(sorted(names)[:SHOWN]), len(names) - SHOWN
    others = f" and {more} more" if more > 0 else ""
    raise CheckpointError(
        f"the state of a released mixture {what} {told}{others} (under our names); {remedy}"
    )

"""Foreign checkpoints made into weights of a registered model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save

from harness import checkpoints, fitting, hashing
from harness.building import build_model
from harness.errors import CheckpointError, HarnessError, UsageError
from harness.store import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from harness.registry import Registry
    from harness.suite import Suite

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Conversion:
    """What is to be converted.

    Attributes:
        converter: Registered name.
        source: The foreign checkpoint.
        model: Registered model that shall have the weights.
        suite: Whose classes and images it is built for.
        target: File of weights to write; its card lies beside it, with the suffix `.json`.
    """

    converter: str
    source: Path
    model: str
    suite: Suite
    target: Path


def convert(wanted: Conversion, registry: Registry) -> dict[str, Any]:
    """Write a checkpoint's weights as safetensors; the card, which comes last.

    Tensors for which the checkpoint has nothing that fits, such as a head for other classes, are
    not in the file: a training may start from it, an evaluation asks for all.

    Raises:
        UsageError: The target exists, or is no safetensors file.
        CheckpointError: The checkpoint cannot be read, or is of another model.
    """
    _check_target(wanted.target)
    converter = registry.find("converters", wanted.converter)
    sha256 = checkpoints.file_hash(wanted.source)
    state = _read(converter.load(), wanted)
    model = build_model(
        registry,
        wanted.model,
        num_classes=registry.find("datasets", wanted.suite.data.name).card.num_classes,
        image_shape=wanted.suite.data.canvas.image_shape,
        seed=0,
    )
    found = fitting.fit(model, state, wanted.source)
    weights = {
        name: tensor
        for name, tensor in checkpoints.plain_state(model).items()
        if name not in found.own
    }
    content = save(weights)
    card = {
        "model": wanted.model,
        "converter": wanted.converter,
        "code": converter.plugin.sha256,
        "source": {"file": wanted.source.name, "sha256": sha256},
        "suite": wanted.suite.name,
        "tensors": len(weights),
        "missing": list(found.own),
        "changes": list(found.changes),
        "sha256": hashing.of_bytes(content),
    }
    write_atomically(wanted.target, content)
    text = json.dumps(card, indent=1, sort_keys=True) + "\n"
    write_atomically(wanted.target.with_suffix(".json"), text.encode())
    return card


def _check_target(target: Path) -> None:
    if target.suffix != SUFFIX:
        raise UsageError(f"--to {target}: weights are written as safetensors; end it in {SUFFIX}")
    for path in (target, target.with_suffix(".json")):
        if path.exists():
            raise UsageError(f"--to {target}: {path} is there already; name another file")


def _read(converter: Any, wanted: Conversion) -> dict[str, Tensor]:
    try:
        state = converter(wanted.source)
    except HarnessError:
        raise
    except Exception as error:  # a plugin's function may raise anything on a foreign file
        raise CheckpointError(
            f"{wanted.source}: converter {wanted.converter!r} cannot read it: "
            f"{type(error).__name__}: {error}; see 'harness show {wanted.converter}'"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(tensor, torch.Tensor) for tensor in state.values()
    ):
        raise CheckpointError(
            f"converter {wanted.converter!r} returned no table of tensors by name"
        )
    return state

"""State dicts of AdvMoE's released code under our names.

(OPTML-Group/Robust-MoE-CNN, commit c50796f; only its names are used, no line of it.)
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from harness.api import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

OWN = re.compile(r"^(?:.+\.)?router\.")
"""Before a router's own name: it stands at the root, and once more in every MoE convolution."""

DENSE_STAGE = 7
"""Six layers and a transition of each stage of DenseNet-40."""

WORDS = (
    (re.compile(r"^(?:linear|fc|classifier)(?=\.(?:weight|bias)$)"), "head"),
    (re.compile(r"^(?:features\.)?conv[01]\."), "stem."),
    (re.compile(r"^(?:bn1|features\.norm_final)\."), "bn."),
    (re.compile(r"\.convShortcut\."), ".shortcut."),
    (re.compile(r"\.shortcut\.0\."), ".shortcut.conv."),
    (re.compile(r"\.shortcut\.1\."), ".shortcut.bn."),
    (re.compile(r"\.norm(?=\d?\.)"), ".bn"),
)


def from_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a `MoENetwork` with a global router.

    Args:
        state: Of ResNet, WRN, VGG or DenseNet for small images, with the router at the root, in
            each layer, in both, or nowhere.

    Raises:
        CheckpointError: Copies of the router that differ.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        key = _ours(name)
        if key in ours and not torch.equal(ours[key], tensor):
            raise CheckpointError(
                f"{name}: another copy of {key} holds other values; "
                "give the state dict of one model with one router"
            )
        ours[key] = tensor
    return ours


def _ours(name: str) -> str:
    prefix = OWN.match(name)
    if prefix:
        return f"routers.0.{_renamed(name[prefix.end() :])}"
    return f"backbone.{_renamed(name)}"


def _renamed(name: str) -> str:
    name = re.sub(r"^(?:layer|block)(\d)\.(?:layer\.)?(\d+)", _stage, name)
    name = re.sub(r"^features\.denseblock(\d)\.denselayer(\d)", _dense, name)
    name = re.sub(r"^features\.transition(\d)", _transition, name)
    for pattern, word in WORDS:
        name = pattern.sub(word, name)
    return name


def _stage(found: re.Match[str]) -> str:
    return f"stages.{int(found[1]) - 1}.{found[2]}"


def _dense(found: re.Match[str]) -> str:
    return f"blocks.{(int(found[1]) - 1) * DENSE_STAGE + int(found[2]) - 1}"


def _transition(found: re.Match[str]) -> str:
    return f"blocks.{int(found[1]) * DENSE_STAGE - 1}"

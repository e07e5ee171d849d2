"""State dicts of AdvMoE's released code under our names.

(OPTML-Group/Robust-MoE-CNN, commit c50796f; only its names are used, no line of it.)
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.api import CheckpointError, ModelContext
from harness.foreign import torch_state
from harness_moe_cnn.densenet import densenet40
from harness_moe_cnn.network import with_routers
from harness_moe_cnn.resnet import resnet18
from harness_moe_cnn.vgg import vgg16
from harness_moe_cnn.wide_resnet import MoEWideResNet

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

OWN = re.compile(r"^(?:.+\.)?router\.")
"""Before a router's own name: it stands at the root, and once more in every MoE convolution."""

PARALLEL = "module."
"""Before every name that was saved from a parallel model."""

SHOWN = 3
"""Names that a message lists."""

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


def convert(path: Path) -> dict[str, Tensor]:
    """The same from a file that torch saved: a state dict, or a table that holds it.

    Raises:
        CheckpointError: No such file, one that holds more than tensors and plain values, or not
            the whole state of such a network.
    """
    return from_released(torch_state(path))


def from_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a `MoENetwork` with a global router, whole.

    Args:
        state: Of ResNet-18, WRN, VGG-16 or DenseNet-40 for small images, with the router at the
            root, in each layer, or in both; names may begin with `module.`.

    Raises:
        CheckpointError: Names that are missing or of no such network, or copies of the router
            that differ.
    """
    bare = {name.removeprefix(PARALLEL): tensor for name, tensor in state.items()}
    ours, wanted = renamed(bare), _skeleton(bare)
    missing = sorted(wanted - set(ours) - _spared(wanted, ours))
    extra = sorted(name for name in bare if _ours(name) not in wanted)
    if missing or extra:
        raise CheckpointError(
            "not the whole state of a network of AdvMoE's code: "
            f"{_some('missing, under our names,', missing)}{_some('foreign', extra)}"
            "save model.state_dict() with the router attached"
        )
    return ours


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Any part of such a state under our names; copies of the router are taken as one.

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


def _skeleton(state: Mapping[str, Tensor]) -> set[str]:
    """The names of the network that some released names belong to, whatever its widths."""
    context = ModelContext(2, (3, 32, 32), lambda name: name)
    thin: dict[str, Any] = {"num_experts": 1, "router": "global"}
    with torch.device("meta"):
        if "layer1.0.conv1.weight" in state:
            network = resnet18(context, ratio=1 / 64, **thin)
        elif "features.denseblock1.denselayer1.conv1.weight" in state:
            network = densenet40(context, ratio=1 / 12, **thin)
        elif "features.0.weight" in state:
            network = vgg16(context, ratio=1 / 64, **thin)
        elif "block1.layer.0.conv1.weight" in state:
            backbone = MoEWideResNet(
                context, stem=1, widths=(2, 2, 2), blocks=_blocks(state), num_experts=1
            )
            network = with_routers(backbone, context, router="global")
        else:
            raise CheckpointError(
                "no names of AdvMoE's ResNet-18, WRN, VGG-16 or DenseNet-40 for small images; "
                "their first MoE convolution is called layer1.0.conv1.weight, "
                "block1.layer.0.conv1.weight, features.0.weight or "
                "features.denseblock1.denselayer1.conv1.weight"
            )
    return set(network.state_dict())


def _blocks(state: Mapping[str, Tensor]) -> int:
    """Blocks of each stage of a WRN."""
    return len({name.split(".")[2] for name in state if name.startswith("block1.layer.")})


def _spared(wanted: set[str], ours: Mapping[str, Tensor]) -> set[str]:
    """The shortcut that ResNet-18 has only where its stem is wider than its first stage."""
    optional = {name for name in wanted if name.startswith("backbone.stages.0.0.shortcut.bn")}
    optional |= {"backbone.stages.0.0.shortcut.conv.weight"} if optional else set()
    return set() if optional & set(ours) else optional


def _some(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{what} {', '.join(names[:SHOWN])}{more}; "


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

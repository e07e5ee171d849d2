"""Widths and initial weights that the convolutional networks share (He et al., 2015)."""

from __future__ import annotations

from torch import nn

from harness.api import ModelError


def scaled(width: int, ratio: float) -> int:
    """The channels of a layer in a network of that width ratio, rounded down.

    Raises:
        ModelError: No channel is left.
    """
    channels = int(width * ratio)
    if channels < 1:
        raise ModelError(
            f"ratio {ratio} leaves none of {width} channels; it must be at least 1/{width}"
        )
    return channels


def initialise(model: nn.Module) -> None:
    """Draw the weights of a network of convolutions, ReLU and BatchNorm.

    Convolutions keep the variance of gradients (He et al., 2015,
    https://arxiv.org/abs/1502.01852, section 2.2, backward case); linear layers are normal with
    spread 0.01 and zero bias, as in AdvMoE's code (Zhang et al., 2023,
    https://arxiv.org/abs/2308.10110); BatchNorm stays the identity.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)

"""Natural corruptions as a robustness axis: noise, blur, weather, compression, by severity."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api import AttackCard, hookimpl

if TYPE_CHECKING:
    from harness.api import Register


@hookimpl
def register_attacks(register: Register) -> None:
    """Bring the family `corruption/<name>`."""
    register(
        "corruption/<name>",
        "harness_corruptions.corrupt:corrupt",
        card=AttackCard(
            "A natural corruption at a severity from 1 to 5, whatever the model.",
            source="Hendrycks & Dietterich, 2019, https://arxiv.org/abs/1903.12261, as computed by "
            "imagecorruptions-imaug",
            fidelity="inferred",
            note="with the parameters of ImageNet-C at every size, harsher than the published "
            "CIFAR-10-C; the seed is that of each sample",
            control=True,
            passes=lambda _: 0,
        ),
    )

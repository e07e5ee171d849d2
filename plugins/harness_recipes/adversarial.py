"""PGD adversarial training (Madry et al., 2018, https://arxiv.org/abs/1706.06083)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import functional

from harness.api import ThreatModel, radius
from harness.tensors import Images
from harness.training import Batch, Phase, Training, TrainingContext
from harness_recipes.standard import standard

if TYPE_CHECKING:
    from harness.api import Norm


def pgd_adversarial(
    context: TrainingContext,
    *,
    norm: Norm,
    epsilon: str,
    attack: str,
    steps: int,
    relative_step_size: float,
    **parameters: Any,
) -> Training:
    """Minimise the mean cross-entropy of attacked images.

    Args:
        context: Model and data.
        norm: Of the threat model.
        epsilon: Radius, such as "8/255".
        attack: Registered attack with the parameters of PGD.
        steps: Gradient steps of the attack.
        relative_step_size: As a fraction of epsilon.
        parameters: Those of `standard`.
    """
    threat = ThreatModel(norm, radius(epsilon))

    def attacked(batch: Batch) -> Images:
        return context.attack(
            attack,
            batch,
            threat,
            steps=steps,
            relative_step_size=relative_step_size,
            stop="never",
        )

    def loss(batch: Batch) -> Tensor:
        return functional.cross_entropy(context.model(attacked(batch)), batch.labels)

    plain = standard(context, **parameters)
    return replace(plain, phases=[Phase(plain.phases[0].optimizer, loss)])

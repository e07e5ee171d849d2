"""PGD adversarial training (Madry et al., 2018, https://arxiv.org/abs/1706.06083)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import functional

from harness.recipes import Course, Opponent
from harness.training import Batch, Phase, Training, TrainingContext

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
    **course: Any,
) -> Training:
    """Minimise the mean cross-entropy of attacked images.

    Args:
        context: Model and data.
        norm: Of the threat model.
        epsilon: Radius, such as "8/255".
        attack: Registered attack with the parameters of PGD.
        steps: Gradient steps of the attack.
        relative_step_size: As a fraction of epsilon.
        course: See `Course`.
    """
    settled = Course(**course)
    opponent = Opponent(norm, epsilon, attack, steps, relative_step_size)

    def loss(batch: Batch) -> Tensor:
        attacked = opponent.attacked(context, batch)
        return functional.cross_entropy(context.model(attacked), batch.labels)

    return settled.training(
        context, [Phase(settled.optimizer_of(context.model.parameters()), loss)]
    )

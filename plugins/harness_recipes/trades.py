"""TRADES (Zhang et al., 2019, https://arxiv.org/abs/1901.08573)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from harness.recipes import Course, Opponent, trades_loss
from harness.training import Batch, Phase, Training, TrainingContext

if TYPE_CHECKING:
    from harness.api import Norm


def trades(  # noqa: PLR0913 - every parameter of a recipe is explicit
    context: TrainingContext,
    *,
    beta: float,
    norm: Norm,
    epsilon: str,
    attack: str,
    steps: int,
    relative_step_size: float,
    **course: Any,
) -> Training:
    """Minimise the cross-entropy of clean images and their divergence from attacked ones.

    The attack climbs the divergence (eq. 5 with beta for 1 / lambda).

    Args:
        context: Model and data.
        beta: Weight of the divergence.
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
        attacked = opponent.attacked(context, batch, objective="trades-kl", is_anchored=True)
        clean = context.model(batch.images)
        return trades_loss(clean, context.model(attacked), batch.labels, beta=beta)

    return settled.training(
        context, [Phase(settled.optimizer_of(context.model.parameters()), loss)]
    )

"""Standard training: cross-entropy on clean images."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from harness.recipes import Course
from harness.training import Batch, Phase, Training, TrainingContext


def standard(context: TrainingContext, **course: Any) -> Training:
    """Minimise the mean cross-entropy of clean images.

    Args:
        context: Model and data.
        course: See `Course`.
    """
    settled = Course(**course)

    def loss(batch: Batch) -> Tensor:
        return functional.cross_entropy(context.model(batch.images), batch.labels)

    return settled.training(
        context, [Phase(settled.optimizer_of(context.model.parameters()), loss)]
    )

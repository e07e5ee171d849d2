"""Checks of a model that raise flags; what they mean is in `harness.flags`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from harness.numerics import ROW_GROUP, Batches
from harness.passes import LossObjective, objective_of, predict
from harness.threat import ThreatModel

if TYPE_CHECKING:
    from harness.tensors import Classifier, Loss, Samples

CLOSE = 1e-4
"""Largest difference of logits, as a share of their largest size, that counts as rounding."""
HUGE = 0.5
"""Linf radius in which any image can become grey, whatever it showed."""
STEPS = 10
"""Steps of the ascent in that ball."""
FEW = 0.1
"""Share of the images from which on a failed ascent is no accident."""


def model_flags(model: Classifier, samples: Samples, loss: Loss) -> list[str]:
    """The flags that a model raises by itself, seen on a few clean images.

    Args:
        model: Frozen, in evaluation mode.
        samples: At most a few tens of images.
        loss: Cross-entropy.
    """
    together = predict(model, samples.images, batches=Batches(len(samples.ids)))
    again = predict(model, samples.images, batches=Batches(len(samples.ids)))
    scale = together.abs().max().clamp(min=1)
    flags = []
    if not torch.equal(together, again) and float((together - again).abs().max() / scale) > CLOSE:
        return ["not-deterministic"]
    alone = torch.cat(
        [
            predict(model, image.expand(ROW_GROUP, -1, -1, -1), batches=Batches(ROW_GROUP))[:1]
            for image in samples.images.split(1)
        ]
    )
    if float((together - alone).abs().max() / scale) > CLOSE:
        flags.append("batch-dependent")
    if _has_zero_gradient(model, samples, loss):
        flags.append("zero-gradient")
    return [*flags, *_climb_flags(model, samples, loss)]


def _climb_flags(model: Classifier, samples: Samples, loss: Loss) -> list[str]:
    """What plain steepest ascent in a huge ball finds on the images that the model has right.

    Any image can become any other grey one there, so that what withstands it hides its gradient.
    """
    objective = _objective(model, samples, loss)
    right = (~objective.score(samples.images).fooled).nonzero()[:, 0]
    if len(right) == 0:
        return []
    objective, clean = objective.rows(right), samples.images[right]
    threat = ThreatModel("linf", HUGE)
    points, losses, robust = clean, [], torch.ones_like(right, dtype=torch.bool)
    for _ in range(STEPS + 1):
        score, gradient = objective.gradient(points)
        losses.append(score.loss)
        robust = robust & ~score.fooled
        points = threat.project(points + HUGE / 4 * threat.steepest(gradient), clean)
    rises = torch.stack(losses).amax(dim=0) > losses[0]
    flags = ["robust-at-huge-epsilon"] if float(robust.float().mean()) > FEW else []
    return [*flags, *(["loss-not-rising"] if float((~rises).float().mean()) > FEW else [])]


def _has_zero_gradient(model: Classifier, samples: Samples, loss: Loss) -> bool:
    _, gradient = _objective(model, samples, loss).gradient(samples.images)
    return bool((gradient.flatten(1).abs().amax(dim=1) == 0).any())


def _objective(model: Classifier, samples: Samples, loss: Loss) -> LossObjective:
    return objective_of(
        model,
        loss,
        samples.labels,
        batch_size=len(samples.ids),
        accepted=samples.accepted,
    )

"""Checks of a model that raise flags; what they mean is in `harness.flags`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from harness.numerics import ROW_GROUP, Ledger, LossObjective, predict

if TYPE_CHECKING:
    from harness.tensors import Classifier, Loss, Samples

CLOSE = 1e-4
"""Largest difference of logits, as a share of their largest size, that counts as rounding."""


def model_flags(model: Classifier, samples: Samples, loss: Loss) -> list[str]:
    """The flags that a model raises by itself, seen on a few clean images.

    Args:
        model: Frozen, in evaluation mode.
        samples: At most a few tens of images.
        loss: Cross-entropy.
    """
    together = predict(model, samples.images, batch_size=len(samples.ids))
    again = predict(model, samples.images, batch_size=len(samples.ids))
    scale = together.abs().max().clamp(min=1)
    flags = []
    if not torch.equal(together, again) and float((together - again).abs().max() / scale) > CLOSE:
        return ["not-deterministic"]
    alone = torch.cat(
        [
            predict(model, image.expand(ROW_GROUP, -1, -1, -1), batch_size=ROW_GROUP)[:1]
            for image in samples.images.split(1)
        ]
    )
    if float((together - alone).abs().max() / scale) > CLOSE:
        flags.append("batch-dependent")
    if _has_zero_gradient(model, samples, loss):
        flags.append("zero-gradient")
    return flags


def _has_zero_gradient(model: Classifier, samples: Samples, loss: Loss) -> bool:
    count = len(samples.ids)
    device = samples.images.device
    rows = torch.arange(count, device=device)
    ledger = Ledger(count, device)
    objective = LossObjective(model, loss, samples.labels, ledger, rows, count, samples.accepted)
    _, gradient = objective.gradient(samples.images)
    return bool((gradient.flatten(1).abs().amax(dim=1) == 0).any())

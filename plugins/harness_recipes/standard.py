"""Standard training: cross-entropy on clean images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from harness.augmentation import cropped, cut_out, flipped, in_turn, translated
from harness.training import (
    Batch,
    Phase,
    Training,
    TrainingContext,
    cosine,
    warmed_up,
)


def standard(  # noqa: PLR0913 - every parameter of a recipe is explicit
    context: TrainingContext,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    warm_up: float,
    translate: int,
    crop: int,
    flip: bool,
    cutout: int,
) -> Training:
    """Minimise the mean cross-entropy of clean images with AdamW.

    Args:
        context: Model and data.
        epochs: Passes over the training images.
        batch_size: Images of one step.
        learning_rate: At the end of the warm-up.
        weight_decay: Decoupled (Loshchilov & Hutter, 2019).
        warm_up: Share of all steps in which the rate rises.
        translate: Most pixels by which an image is shifted each way, black coming in.
        crop: The same with mirrored edges, the usual random crop of small images.
        flip: Mirror every second image.
        cutout: Side of a square that is made grey.
    """

    def loss(batch: Batch) -> Tensor:
        return functional.cross_entropy(context.model(batch.images), batch.labels)

    optimizer = torch.optim.AdamW(
        context.model.parameters(), lr=learning_rate, weight_decay=weight_decay
    )
    return Training(
        phases=[Phase(optimizer, loss)],
        epochs=epochs,
        batch_size=min(batch_size, context.num_images),
        schedule=warmed_up(warm_up, cosine),
        augment=in_turn(
            [
                *([translated(translate)] if translate else []),
                *([cropped(crop)] if crop else []),
                *([flipped] if flip else []),
                *([cut_out(cutout)] if cutout else []),
            ]
        ),
    )

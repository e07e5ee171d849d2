"""What attacks climb: one number for each image, from one forward pass."""

from __future__ import annotations

import torch
from torch.nn import functional

from harness.api import AttackError
from harness.tensors import Outcome, PerImage, margin


def cross_entropy(outcome: Outcome) -> PerImage:
    """The cross-entropy of each image's label, in nats; of all accepted classes together."""
    logits, labels, accepted = outcome
    if accepted is None:
        return functional.cross_entropy(logits, labels, reduction="none")
    own = logits.masked_fill(~accepted, float("-inf")).logsumexp(dim=1)
    return logits.logsumexp(dim=1) - own


def sigmoid_cross_entropy(outcome: Outcome) -> PerImage:
    """The binary cross-entropies of all classes, summed, against one or several labels.

    The loss of models with a sigmoid for each class, as google-research/vmoe has it: a sum over
    classes, not a mean.
    """
    logits, labels, accepted = outcome
    rows = labels[:, None]
    targets = torch.zeros_like(logits).scatter(1, rows, 1.0) if accepted is None else accepted
    return functional.binary_cross_entropy_with_logits(
        logits, targets.to(logits.dtype), reduction="none"
    ).sum(dim=1)


def negative_margin(outcome: Outcome) -> PerImage:
    """The best other logit minus the label's (Carlini & Wagner, 2017, f6 without kappa)."""
    return -margin(*outcome)


def difference_of_logits_ratio(outcome: Outcome) -> PerImage:
    """The best other logit minus the label's, over the largest minus the third largest.

    From Croce & Hein, 2020, https://arxiv.org/abs/2003.01690: scaling or shifting the logits does
    not change it. 1e-12 keeps the ratio finite, as in the official code.

    Raises:
        AttackError: There are fewer than 3 classes, so that there is no third largest.
    """
    classes = outcome.logits.shape[1]
    if classes < 3:  # noqa: PLR2004 - the third largest
        raise AttackError(
            f"objective 'dlr' needs at least 3 classes, got {classes}; take 'margin' or 'ce'"
        )
    largest = outcome.logits.topk(3, dim=1).values
    return -margin(outcome.logits, outcome.labels) / (largest[:, 0] - largest[:, 2] + 1e-12)

"""What attacks climb: one number for each image, from one forward pass."""

from __future__ import annotations

from torch.nn import functional

from harness.tensors import Outcome, PerImage, margin


def cross_entropy(outcome: Outcome) -> PerImage:
    """The cross-entropy of each image's label, in nats."""
    return functional.cross_entropy(outcome.logits, outcome.labels, reduction="none")


def negative_margin(outcome: Outcome) -> PerImage:
    """The best other logit minus the label's (Carlini & Wagner, 2017, f6 without kappa)."""
    return -margin(outcome.logits, outcome.labels)

"""What attacks climb: one number for each image, from one forward pass."""

from __future__ import annotations

import torch
from torch.nn import functional

from harness.api import AttackError
from harness.tensors import Outcome, PerImage


def cross_entropy(outcome: Outcome) -> PerImage:
    """The cross-entropy of each image's label, in nats; of all accepted classes together."""
    logits, labels, accepted = outcome.logits, outcome.labels, outcome.accepted
    if accepted is None:
        return functional.cross_entropy(logits, labels, reduction="none")
    own = logits.masked_fill(~accepted, float("-inf")).logsumexp(dim=1)
    return logits.logsumexp(dim=1) - own


def sigmoid_cross_entropy(outcome: Outcome) -> PerImage:
    """The binary cross-entropies of all classes, summed, against one or several labels.

    The loss of models with a sigmoid for each class, as google-research/vmoe has it: a sum over
    classes, not a mean.
    """
    logits, labels, accepted = outcome.logits, outcome.labels, outcome.accepted
    rows = labels[:, None]
    targets = torch.zeros_like(logits).scatter(1, rows, 1.0) if accepted is None else accepted
    return functional.binary_cross_entropy_with_logits(
        logits, targets.to(logits.dtype), reduction="none"
    ).sum(dim=1)


def negative_margin(outcome: Outcome) -> PerImage:
    """The best other logit minus the label's (Carlini & Wagner, 2017, f6 without kappa)."""
    return -outcome.margin


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
    if outcome.accepted is not None:
        raise AttackError("objective 'dlr' has no meaning for images with several correct classes")
    largest = outcome.logits.topk(3, dim=1).values
    return -outcome.margin / (largest[:, 0] - largest[:, 2] + 1e-12)


def targeted_logits_ratio(outcome: Outcome) -> PerImage:
    """The target's logit minus the label's, over the largest minus the mean of third and fourth.

    From Croce & Hein, 2020, https://arxiv.org/abs/2003.01690 (eq. 7), as the official code has it.

    Raises:
        AttackError: There are fewer than 4 classes, or the attack names no targets.
    """
    logits, labels, targets = outcome.logits, outcome.labels, outcome.targets
    if logits.shape[1] < 4:  # noqa: PLR2004 - the fourth largest
        raise AttackError(
            f"the targeted DLR loss needs at least 4 classes, got {logits.shape[1]}; take 'apgd'"
        )
    if targets is None:
        raise AttackError("the targeted DLR loss needs targets: call objective.toward(targets)")
    largest = logits.topk(4, dim=1).values
    gap = logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None])
    return gap[:, 0] / (largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2 + 1e-12)


def target_gap(outcome: Outcome) -> PerImage:
    """The target's logit minus the label's: above 0 the image is fooled."""
    logits, labels, targets = outcome.logits, outcome.labels, outcome.targets
    if targets is None:
        raise AttackError("the gap to a target needs targets: call objective.toward(targets)")
    return (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None]))[:, 0]


def clean_divergence(outcome: Outcome) -> PerImage:
    """The divergence of the clean prediction from the attacked one, KL(clean || attacked).

    What TRADES climbs (Zhang et al., 2019, https://arxiv.org/abs/1901.08573, eq. 3). It is 0,
    with no gradient, at the clean image: begin at random.

    Raises:
        AttackError: The clean logits are not known.
    """
    if outcome.clean_logits is None:
        raise AttackError("objective 'trades-kl' needs the logits of the clean images")
    attacked = outcome.logits.log_softmax(dim=1)
    clean = outcome.clean_logits.log_softmax(dim=1)
    return functional.kl_div(attacked, clean, reduction="none", log_target=True).sum(dim=1)

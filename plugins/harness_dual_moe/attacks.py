"""Attacks on one half of a dual model, which the whole of it judges."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from harness.api import AttackError, ThreatModel
from harness.tensors import Images, Labels, Member, Noise, Objective


def part_alone(  # noqa: PLR0913 - the parameters of the algorithm
    objective: Objective,
    images: Images,
    labels: Labels,
    threat: ThreatModel,
    *,
    noise: Noise,
    part: str = "",
    attacks: Sequence[Member] = (),
) -> Images:
    """What some attacks find against one part of the model, transferred to the whole of it.

    Args:
        objective: Of the whole model, which decides who is fooled.
        images: In [0, 1].
        labels: Correct classes.
        threat: Ball to stay in.
        noise: Each attack has a stream of its own.
        part: Name of the part, such as "standard" or "robust" of a dual model; empty for the whole.
        attacks: In their order, each on the images that the others left.

    Raises:
        AttackError: There are no attacks, or the model has no such part.
    """
    if not attacks:
        raise AttackError('part-alone needs attacks: write attacks = ["apgd"]')
    adversarial = images.clone()
    live = torch.arange(len(images), device=images.device)
    for member in attacks:
        bound, clean = objective.rows(live), images[live]
        climbed = bound.of(part) if part else bound
        found = member(climbed, clean, labels[live], threat, noise=noise.rows(live))
        adversarial[live] = found
        live = live[~bound.score(found).fooled]
        if len(live) == 0:
            break
    return adversarial

"""Yardsticks of gradients: what noise, single steps, ten steps and a blind search reach."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from harness.flags import BLACK_BOX, NOISE, ONE_STEP
from harness.tensors import Noise, noise_key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.tensors import Attack, Images, Mask, Objective, Samples
    from harness.threat import ThreatModel

STEPS = 10
"""Steps of an ascent: with a quarter of epsilon each, it crosses the ball and can turn back."""
RELATIVE_STEP_SIZE = 0.25
"""Of an ascent, as a fraction of epsilon."""


class Ascent(NamedTuple):
    """What steepest ascent reached at each image."""

    fooled: Mask  # at the clean image or at some step
    rises: Mask  # the loss was higher at some step


def ascend(objective: Objective, clean: Images, threat: ThreatModel) -> Ascent:
    """Ten steps of steepest ascent from the clean images, nothing random in them.

    Args:
        objective: Gives the gradients.
        clean: Where it starts.
        threat: Ball to stay in.
    """
    score, gradient = objective.gradient(clean)
    first = score.loss
    fooled = score.fooled
    rises = torch.zeros_like(fooled)
    points = clean
    for _ in range(STEPS):
        direction = threat.steepest(gradient.nan_to_num())
        points = threat.project(points + RELATIVE_STEP_SIZE * threat.epsilon * direction, clean)
        score, gradient = objective.gradient(points)
        fooled = fooled | score.fooled
        rises = rises | (score.loss > first)
    return Ascent(fooled, rises)


def fooled_by_yardsticks(
    objective: Objective,
    samples: Samples,
    gradient: Images,
    threat: ThreatModel,
    black_box: Attack | None,
) -> Mapping[str, Mask]:
    """Which images each yardstick fools.

    Args:
        objective: Of the model.
        samples: Images that it has right.
        gradient: At these images.
        threat: Ball of the yardsticks.
        black_box: A short search without gradients; None where there is none for this ball.
    """
    clean = samples.images
    points = {
        NOISE: threat.surface(clean, trust_noise(samples, NOISE).normal(0)),
        ONE_STEP: threat.surface(clean, gradient.nan_to_num()),
    }
    if black_box is not None:
        noise = trust_noise(samples, BLACK_BOX)
        points[BLACK_BOX] = black_box(objective, clean.clone(), samples.labels, threat, noise=noise)
    return {name: _is_fooled(objective, found, clean, threat) for name, found in points.items()}


def trust_noise(samples: Samples, name: str) -> Noise:
    """The noise of one check: always the same for the same images."""
    shape = (samples.images.shape[1], samples.images.shape[2], samples.images.shape[3])
    return Noise(noise_key(0, "trust", name), samples.ids, shape)


def _is_fooled(objective: Objective, points: Images, clean: Images, threat: ThreatModel) -> Mask:
    """The images that are fooled by an allowed point; NaN lies in no ball."""
    return objective.score(points).fooled & threat.contains(points, clean)

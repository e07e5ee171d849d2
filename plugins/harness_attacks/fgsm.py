"""The fast gradient sign method (Goodfellow et al., 2015, https://arxiv.org/abs/1412.6572)."""

from __future__ import annotations

from harness.api import ThreatModel
from harness.tensors import Images, Labels, Noise, Objective


def fgsm(
    objective: Objective,
    images: Images,
    labels: Labels,  # noqa: ARG001 - the signature of an attack
    threat: ThreatModel,
    *,
    noise: Noise,  # noqa: ARG001
) -> Images:
    """One step of length epsilon along the gradient; in L2 along its unit vector."""
    _, gradient = objective.gradient(images)
    return threat.project(images + threat.epsilon * threat.steepest(gradient), images)

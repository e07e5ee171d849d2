"""Yardsticks that are no attacks: what no attack at all and pure chance would reach."""

from __future__ import annotations

from harness.api import ThreatModel
from harness.tensors import Images, Labels, Noise, Objective


def clean(
    objective: Objective,  # noqa: ARG001 - the signature of an attack
    images: Images,
    labels: Labels,  # noqa: ARG001
    threat: ThreatModel,  # noqa: ARG001
    *,
    noise: Noise,  # noqa: ARG001
) -> Images:
    """The images as they are."""
    return images


def noise(
    objective: Objective,  # noqa: ARG001 - the signature of an attack
    images: Images,
    labels: Labels,  # noqa: ARG001
    threat: ThreatModel,
    *,
    noise: Noise,
) -> Images:
    """A random point on the sphere around each image: in Linf a corner, in L2 any direction."""
    return threat.surface(images, noise.normal(0))

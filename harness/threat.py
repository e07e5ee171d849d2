"""Threat models: which images an adversary may show in place of a clean one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Literal, get_args

from harness.errors import UsageError
from harness.hints import did_you_mean

if TYPE_CHECKING:  # tensors are used through their methods: reading a suite needs no torch
    from torch import Tensor

    from harness.tensors import Images, PerImage

Norm = Literal["linf", "l2", "severity"]
Box = Literal["pixels", "none"]

_RADIUS = re.compile(r"([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)(?:/([0-9]+))?")

SEVERITIES = (1, 2, 3, 4, 5)
RELATIVE_TOLERANCE = 1e-5
"""Rounding of `clean + perturbation - clean` in float32, as a fraction of epsilon + 1."""


def radius(written: object) -> float:
    """The number behind a radius such as `"8/255"`, `"0.5"` or `0.5`.

    Raises:
        UsageError: It is no number.

    >>> radius("51/255")
    0.2
    """
    match = _RADIUS.fullmatch(re.sub(r"\s*/\s*", "/", str(written).strip()))
    if match is None or (match[2] is not None and int(match[2]) == 0):
        raise UsageError(f'epsilon {written!r} is no number; write "8/255" or 0.5')
    return float(match[1]) / int(match[2] or 1)


@dataclass(frozen=True)
class ThreatModel:
    """All images within `epsilon` of the clean one, in `norm`, that are still images.

    Attributes:
        norm: Norm of the perturbation, taken over all pixels and channels of one image; or
            "severity" for corruptions, which stay in no ball.
        epsilon: Radius of the ball, in units of the [0, 1] pixel range; or severity, 1 to 5.
        box: "pixels" keeps every value in [0, 1]; "none" replays papers that did not, and never
            ranks.
    """

    norm: Norm
    epsilon: float
    box: Box = "pixels"

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            known = get_args(Norm)
            raise UsageError(f"norm {self.norm!r} is not known{did_you_mean(self.norm, known)}")
        if self.box not in get_args(Box):
            raise UsageError(f"box {self.box!r} is not known; known are {', '.join(get_args(Box))}")
        if not self.epsilon > 0:  # NaN too
            raise UsageError(f"epsilon must be positive, got {self.epsilon}")
        if self.norm == "linf" and self.epsilon > 1:
            raise UsageError(
                f"epsilon {self.epsilon:g} exceeds the [0, 1] pixel range: "
                f"write '{self.epsilon:g}/255', not {self.epsilon:g}"
            )

        if self.norm == "severity" and self.epsilon not in SEVERITIES:
            raise UsageError(f"severity {self.epsilon:g} is not one of 1, 2, 3, 4, 5")

    def size(self, perturbation: Images) -> PerImage:
        """The norm of each perturbation; of a corruption, its largest change."""
        order = {"linf": inf, "l2": 2, "severity": inf}[self.norm]
        sizes: Tensor = perturbation.flatten(1).norm(order, dim=1)
        return sizes

    def project(self, adversarial: Images, clean: Images) -> Images:
        """Shrink the perturbation into the ball, then clip to the box, which never leaves it."""
        if self.norm == "severity":
            return self.clip(adversarial)
        perturbation = adversarial - clean
        if self.norm == "linf":
            perturbation = perturbation.clamp(-self.epsilon, self.epsilon)
        else:
            shrink: Tensor = (self.epsilon / self.size(perturbation)).clamp(max=1)
            perturbation = perturbation * _column(shrink)
        return self.clip(clean + perturbation)

    def clip(self, images: Images) -> Images:
        """The nearest images inside the box."""
        return images.clamp(0, 1) if self.box == "pixels" else images

    def steepest(self, gradient: Images) -> Images:
        """The direction of unit norm along which the loss grows fastest; 0 where it is flat or NaN.

        Raises:
            UsageError: A severity has no ball, and so no direction.
        """
        if self.norm == "severity":
            raise UsageError("norm 'severity' has no ball: only corruptions can be used with it")
        gradient = gradient.nan_to_num()
        if self.norm == "linf":
            return gradient.sign()
        largest = _column(gradient.flatten(1).abs().amax(dim=1))  # tiny gradients do not underflow
        scaled = gradient / largest.masked_fill(largest == 0, 1)
        return scaled / _column(self.size(scaled)).clamp(min=1e-12)

    def around(self, clean: Images, noise: Images) -> Images:
        """The allowed image that noise in [-1, 1] points to, for each clean one.

        In Linf, uniform noise fills the ball; in L2 it gives a direction and the image lies on
        the sphere (Croce & Hein, 2020), before the box is applied.
        """
        direction = noise if self.norm == "linf" else self.steepest(noise)
        return self.project(clean + self.epsilon * direction, clean)

    def surface(self, clean: Images, noise: Images) -> Images:
        """The allowed image at distance epsilon in the direction of noise, for each clean one."""
        return self.project(clean + self.epsilon * self.steepest(noise), clean)

    def contains(self, adversarial: Images, clean: Images) -> Tensor:
        """Which images lie in the ball and the box, up to rounding: one bool for each."""
        if self.norm == "severity":
            return adversarial.flatten(1).amin(1).ge(0) & adversarial.flatten(1).amax(1).le(1)
        slack = RELATIVE_TOLERANCE * (1 + self.epsilon)
        inside: Tensor = self.size(adversarial - clean) <= self.epsilon + slack
        if self.box == "none":
            return inside
        flat = adversarial.flatten(1)
        return inside & (flat.amin(1) >= 0) & (flat.amax(1) <= 1)


def _column(per_image: PerImage) -> Tensor:
    return per_image[:, None, None, None]

"""Radii within which mixtures and dual models of probabilities provably keep their prediction.

After theorem 5.4 of Zhang et al., 2025 (https://arxiv.org/abs/2502.06832): a mixture
F = sum_i a_i f_i, whose gates have slopes r_i and whose experts have slopes L_i and are at most M,
moves in each class by no more than D = sum_i (r_i M + a_i L_i) for each unit of perturbation.
Unlike its equation 8 as others have implemented it, the slopes of the two classes of a margin are
counted, since both may move; and every slope is an upper bound from the weights, rounded upwards,
where the paper has no procedure. The pixel box is not used, and what floating-point numbers do
inside the network is not bounded: pass outputs of float64 networks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from harness.api import ModelError, Norm
from harness.tensors import Images, Logits, PerImage
from harness_dual_moe.layer_slopes import ROUNDING, down, up
from harness_dual_moe.slopes import Gaps, gap_slopes


def softmax_slopes(gaps: Gaps) -> Float[Tensor, "*rest classes"]:
    """Slopes of the softmax of logits that part at these speeds.

    a_i moves by a_i (1 - a_i) <= 1/4 times how far its logit moves off the others.
    """
    return gaps.double().amax(dim=-1) / 4


def mixture_slopes(
    gates: Float[Tensor, "batch expert"],
    *,
    gate_slopes: Float[Tensor, " expert"],
    expert_slopes: Float[Tensor, "expert classes"],
    bound: float = 1.0,
) -> Float[Tensor, "batch classes"]:
    """Slopes of a soft mixture around each image: sum_i (r_i M + a_i L_i).

    Args:
        gates: At the images.
        gate_slopes: r_i.
        expert_slopes: L_i of each class.
        bound: M, of what an expert can say of a class; 1 for probabilities.
    """
    moved = gate_slopes.double().sum() * bound + gates.double() @ expert_slopes.double()
    return up(moved, 2 * gates.shape[1] + 2)


def added(class_slopes: Float[Tensor, "*batch classes"]) -> Gaps:
    """How fast the outputs of two classes part, where each may move at its own slope."""
    return up(class_slopes.double()[..., None] + class_slopes.double()[..., None, :], 1)


def as_printed(class_slopes: Float[Tensor, "*batch classes"]) -> Gaps:
    """The denominator of equation 8 as others have implemented it: one slope for a margin.

    A variant to compare with, and no certificate: two classes that move towards each other close
    a margin twice as fast.
    """
    largest = class_slopes.double().amax(dim=-1)[..., None, None]
    return up(largest.expand(*class_slopes.shape, class_slopes.shape[-1]), 1)


def certified_radius(outputs: Logits, gaps: Gaps) -> PerImage:
    """The radius within which the prediction stays: min_k (F_y - F_k) / D_yk.

    Args:
        outputs: F at the images.
        gaps: D, how fast two of them part; see `added` where each class has a slope of its own.
    """
    return _radius(outputs, gaps, weight=1.0)


def dual_radius(robust: Logits, gaps: Gaps, *, alpha: float) -> PerImage:
    """The radius within which a dual model says what its robust half says at the image.

    min_k (alpha (R_y - R_k) - (1 - alpha)) / (alpha D_yk), or 0: whatever the standard half does,
    it moves a margin of probabilities by at most 1 - alpha. This holds for probabilities that are
    added up, not for logits.

    Args:
        robust: Probabilities of the robust half at the images.
        gaps: D of the robust half.
        alpha: Weight of the robust half, above 0.

    Raises:
        ModelError: alpha is no such weight.
    """
    if not 0 < alpha <= 1:
        raise ModelError(f"alpha is {alpha}; only above 0 and up to 1 it gives a certificate")
    return _radius(robust, gaps, weight=alpha)


def soft_mixture_radius(
    experts: Sequence[nn.Module], router: nn.Module, images: Images, *, norm: Norm
) -> PerImage:
    """The certified radius of sum_i softmax(router)_i softmax(expert_i).

    Args:
        experts: Networks whose `gap_slopes` are known, of images.
        router: The same.
        images: As the networks take them.
        norm: Of the perturbation.
    """
    shape = images.shape[1:]
    with torch.no_grad():
        gates = router(images).softmax(dim=1)
        spoken = torch.stack([expert(images).softmax(dim=1) for expert in experts], dim=1)
        outputs = (gates[:, :, None] * spoken).sum(dim=1)
    moved = mixture_slopes(
        gates,
        gate_slopes=softmax_slopes(gap_slopes(router, shape, norm)),
        expert_slopes=torch.stack(
            [softmax_slopes(gap_slopes(expert, shape, norm)) for expert in experts]
        ),
    )
    return certified_radius(outputs, added(moved))


def _radius(outputs: Logits, gaps: Gaps, *, weight: float) -> PerImage:
    """min_k (w (F_y - F_k) - (1 - w)) / (w D_yk), at least 0, rounded downwards."""
    outputs = outputs.double()
    label = outputs.argmax(dim=1, keepdim=True)
    moved = gaps.double().expand(len(outputs), -1, -1)[
        torch.arange(len(outputs), device=label.device), label[:, 0]
    ]
    gap = down(outputs.gather(1, label) - outputs)
    room = down(down(weight * gap) - (1 - weight) * (1 + ROUNDING))
    return nearest(room, up(weight * moved, 1), label)


def nearest(room: Tensor, speed: Tensor, own: Tensor) -> PerImage:
    """The least time in which another one catches up, at least 0; `own` is nobody's rival."""
    times = down(room / speed).nan_to_num(nan=0.0, posinf=float("inf"))
    return times.scatter(1, own, float("inf")).amin(dim=1).clamp(min=0)

"""Radii within which a mixture or a dual model provably keeps its prediction.

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
from harness_dual_moe.mixture import Mixture
from harness_dual_moe.router import LinearRouter

Gaps = Float[Tensor, "*#batch classes classes"]  # one number for each pair of classes

ROUNDING = 2.0**-52
"""Twice the largest relative error of one operation in float64."""

DUAL_NORM = {"linf": 1, "l2": 2}


def gap_slopes(network: nn.Module, norm: Norm) -> Gaps:
    """Upper bounds: how fast two logits of a network part, for each unit of perturbation.

    The length of the difference of the last layer's rows in the dual norm, times how much longer
    each layer before makes a perturbation: for Linf the largest sum of a row's absolute weights,
    for L2 sqrt(norm1 * norminf), which is at least the spectral norm.

    Args:
        network: Linear, or a sequence of linear, convolution, batch norm, ReLU and flatten layers
            that ends in a linear one; in evaluation mode.
        norm: Of the perturbation.

    Raises:
        ModelError: Another layer, or another norm.
    """
    layers = list(network.children()) if isinstance(network, nn.Sequential) else [network]
    if not layers or not isinstance(layers[-1], nn.Linear):
        raise ModelError("slopes are known of networks that end in nn.Linear alone")
    weight = layers[-1].weight.detach().double()
    found = torch.stack([_length(row - weight, norm) for row in weight])
    for layer in layers[:-1]:
        found = _up(found * _slope(layer, norm), 1)
    return found


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
    return _up(moved, 2 * gates.shape[1] + 2)


def added(class_slopes: Float[Tensor, "*batch classes"]) -> Gaps:
    """How fast the outputs of two classes part, where each may move at its own slope."""
    return _up(class_slopes.double()[..., None] + class_slopes.double()[..., None, :], 1)


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
    with torch.no_grad():
        gates = router(images).softmax(dim=1)
        spoken = torch.stack([expert(images).softmax(dim=1) for expert in experts], dim=1)
        outputs = (gates[:, :, None] * spoken).sum(dim=1)
    moved = mixture_slopes(
        gates,
        gate_slopes=softmax_slopes(gap_slopes(router, norm)),
        expert_slopes=torch.stack([softmax_slopes(gap_slopes(expert, norm)) for expert in experts]),
    )
    return certified_radius(outputs, added(moved))


def route_radius(mixture: Mixture, images: Images, *, norm: Norm) -> PerImage:
    """The distance at which a linear router first sends an image elsewhere, the box left out.

    min_j (g_i - g_j) / |(W_i - W_j) / std|, in the norm dual to that of the perturbation; a hard
    mixture keeps its prediction within the smaller of this and the radius of its expert.

    Raises:
        ModelError: The router is not linear.
    """
    if not isinstance(mixture.router, LinearRouter):
        raise ModelError("the distance to another route is known of linear routers alone")
    weight = mixture.router.linear.weight.detach().double()
    bias = mixture.router.linear.bias.detach().double()
    std = mixture.std.double().expand(1, *images.shape[1:]).flatten(1)
    points = ((images.double() - mixture.mean.double()) / mixture.std.double()).flatten(1)
    scores = points @ weight.T + bias
    error = (points.abs() @ weight.abs().T + bias.abs()) * (weight.shape[1] + 4) * ROUNDING
    chosen = scores.argmax(dim=1, keepdim=True)

    gap = _down(scores.gather(1, chosen) - scores) - error.gather(1, chosen) - error
    length = torch.stack([_length((row - weight) / std, norm) for row in weight])
    return _nearest(_down(gap), length[chosen[:, 0]], chosen)


def _radius(outputs: Logits, gaps: Gaps, *, weight: float) -> PerImage:
    """min_k (w (F_y - F_k) - (1 - w)) / (w D_yk), at least 0, rounded downwards."""
    outputs = outputs.double()
    label = outputs.argmax(dim=1, keepdim=True)
    moved = gaps.double().expand(len(outputs), -1, -1)[
        torch.arange(len(outputs), device=label.device), label[:, 0]
    ]
    gap = _down(outputs.gather(1, label) - outputs)
    room = _down(_down(weight * gap) - (1 - weight) * (1 + ROUNDING))
    return _nearest(room, _up(weight * moved, 1), label)


def _nearest(room: Tensor, speed: Tensor, own: Tensor) -> PerImage:
    """The least time in which another one catches up, at least 0; `own` is nobody's rival."""
    times = _down(room / speed).nan_to_num(nan=0.0, posinf=float("inf"))
    return times.scatter(1, own, float("inf")).amin(dim=1).clamp(min=0)


def _length(rows: Tensor, norm: Norm) -> Tensor:
    """How fast a linear function with these weights grows, for each row."""
    if norm not in DUAL_NORM:
        raise ModelError(f"no slopes are known in norm {norm!r}; take 'linf' or 'l2'")
    return _up(torch.linalg.vector_norm(rows, ord=DUAL_NORM[norm], dim=1), rows.shape[1])


def _slope(layer: nn.Module, norm: Norm) -> Tensor:
    """How much longer a layer makes a perturbation, at most."""
    if isinstance(layer, nn.ReLU | nn.Flatten | nn.Identity):
        return torch.ones((), dtype=torch.float64)
    if _is_fixed_norm(layer):
        scale, variance = layer.get_parameter("weight"), layer.get_buffer("running_var")
        spread = (variance.double() + float(layer.eps)).sqrt()  # type: ignore[arg-type]
        return _up((scale.detach().double().abs() / spread).amax(), 4)
    if isinstance(layer, nn.Linear) or _is_plain_convolution(layer):
        weight = layer.get_parameter("weight").detach().double()
        outputs, inputs = weight.shape[:2]
        size = weight.abs().reshape(outputs, inputs, -1).sum(dim=2)
        by_row, by_column = size.sum(dim=1).amax(), size.sum(dim=0).amax()
        terms = weight.numel() // min(outputs, inputs)
        return _up(by_row if norm == "linf" else (by_row * by_column).sqrt(), terms)
    raise ModelError(f"no slope is known of {layer}; replace it, or leave the certificate out")


def _is_fixed_norm(layer: nn.Module) -> bool:
    is_norm = isinstance(layer, nn.BatchNorm2d) and layer.affine and layer.track_running_stats
    return is_norm and not layer.training


def _is_plain_convolution(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros"


def _up(values: Tensor, terms: int) -> Tensor:
    """At least the true value of a sum of so many terms, all of them positive."""
    return values * (1 + (terms + 2) * ROUNDING)


def _down(values: Tensor) -> Tensor:
    """At most the true value of one operation."""
    return torch.nextafter(values, torch.full_like(values, float("-inf")))

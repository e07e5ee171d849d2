"""How far a model's margins can fall within a distance of an image: certified radii.

Where theorem 5.4 of Zhang et al., 2025 (https://arxiv.org/abs/2502.06832) asks for experts that are
bounded by 1, the margins of the experts at the image are used, so that mixtures of logits have a
bound, too (docs/certificates.md has the formulas).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from harness.api import ModelError, Norm
from harness.tensors import Images, Labels, PerImage
from harness_dual_moe.certificates import nearest
from harness_dual_moe.dual import Dual, RoutedDual
from harness_dual_moe.layer_slopes import down, up
from harness_dual_moe.mixture import Mixture
from harness_dual_moe.router import ConvolutionalRouter, LinearRouter
from harness_dual_moe.routes import route_radius, set_of
from harness_dual_moe.slopes import gap_slopes

HALVINGS = 40
"""Of the interval in which a dual model of probabilities looks for its radius."""
ROUNDED = 1e-12
"""Of a margin of probabilities in float64."""


class Fall(NamedTuple):
    """How the margins of one class over the others fall with the distance from each image."""

    margins: Float[Tensor, "batch classes"]  # at the image, in logits; 0 for the class itself
    speeds: Float[Tensor, "batch classes"]  # lost for each unit of distance, at most
    within: PerImage  # the distance up to which that holds


def model_radius(model: nn.Module, images: Images, *, norm: Norm) -> PerImage:
    """Distances within which a model provably says what it says at the images.

    Args:
        model: In float64 and in evaluation mode: a network of the layers that `gap_slopes` knows,
            a mixture or a dual model of such.
        images: In [0, 1].
        norm: Of the perturbation.

    Raises:
        ModelError: A part of the model has no bound; says which.
    """
    images = images.double()
    with torch.no_grad():
        label = model(images).argmax(dim=1)
        if isinstance(model, Dual | RoutedDual) and model.combination.combine != "logits":
            return _dual_of_probabilities(model, images, label, norm)
        return _radius(fall_of(model, images, label, norm=norm), label)


def fall_of(model: nn.Module, images: Images, label: Labels, *, norm: Norm) -> Fall:
    """How the margins of a model's logits fall; see `model_radius`."""
    if isinstance(model, Mixture):
        return _mixture(model, images, label, norm)
    if isinstance(model, Dual | RoutedDual):
        return _dual_of_logits(model, images, label, norm)
    slopes = gap_slopes(model, tuple(images.shape[1:]), norm)
    logits = model(images)
    nowhere = torch.full_like(logits[:, 0], float("inf"))
    return Fall(_margins(logits, label), slopes[label], nowhere)


def _mixture(model: Mixture, images: Images, label: Labels, norm: Norm) -> Fall:
    """Of sum_i a_i f_i over the chosen experts, whose set stays within the route radius.

    A margin g_i(x') >= g_i(x) - D_i t, and each weight moves by at most r_i t with their sum kept,
    so that the mixture's margin loses at most t (sum_i r_i |g_i - c| + max_i D_i), for any c.
    """
    shape = tuple(images.shape[1:])
    std = model.std.double().expand(1, shape[0], 1, 1)
    normalised = (images - model.mean) / model.std
    is_read_normalised = model.mixing.expert_input == "normalised"
    given = (normalised + 1) / 2 if is_read_normalised else images
    scale = 1 / (2 * std) if is_read_normalised else None

    scores = model.router(normalised)
    chosen = set_of(scores, model.mixing.num_selected)
    slopes = [gap_slopes(expert, shape, norm, scale=scale) for expert in model.experts]
    speeds = torch.stack([found[label] for found in slopes], dim=1)
    margins = torch.stack([_margins(expert(given), label) for expert in model.experts], dim=1)
    weights = scores.masked_fill(~chosen, float("-inf")).softmax(dim=1)

    absent = ~chosen[:, :, None]
    largest = margins.masked_fill(absent, float("-inf")).amax(dim=1)
    middle = (largest + margins.masked_fill(absent, float("inf")).amin(dim=1)) / 2
    spread = (margins - middle[:, None]).abs().masked_fill(absent, 0)
    speed = speeds.masked_fill(absent, 0).amax(dim=1)
    within = torch.full_like(scores[:, 0], float("inf"))
    if model.mixing.num_selected > 1:
        gates = _gate_slopes(
            gap_slopes(_layers_of(model.router), shape, norm, scale=1 / std), chosen
        )
        speed = speed + (gates[:, :, None] * spread).sum(dim=1)
    if model.mixing.num_selected < len(model.experts):
        within = _route_radius(model, images, scores, chosen, norm)
    mixed = (weights[:, :, None] * margins).sum(dim=1)
    return Fall(mixed, up(speed, 3 * len(slopes)), within)


def _gate_slopes(gaps: Tensor, chosen: Bool[Tensor, "batch expert"]) -> Tensor:
    """r_i of the softmax over the chosen experts: a quarter of the fastest gap between two."""
    is_pair = chosen[:, :, None] & chosen[:, None, :]
    return gaps.expand(len(chosen), -1, -1).masked_fill(~is_pair, 0).amax(dim=2) / 4


def _layers_of(router: nn.Module) -> nn.Module:
    """The router as a sequence of layers."""
    if isinstance(router, LinearRouter):
        return nn.Sequential(nn.Flatten(), router.linear).eval()
    if not isinstance(router, ConvolutionalRouter):
        return router
    first, second, last = router.conv1, router.conv2, router.linear
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), last
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), *head).eval()


def _route_radius(
    model: Mixture, images: Images, scores: Tensor, chosen: Tensor, norm: Norm
) -> PerImage:
    """Exact for a linear router; for others by the slopes of its scores."""
    if isinstance(model.router, LinearRouter):
        return route_radius(model, images, norm=norm)
    shape, std = tuple(images.shape[1:]), model.std.double().expand(1, images.shape[1], 1, 1)
    gaps = gap_slopes(_layers_of(model.router), shape, norm, scale=1 / std)
    is_rivalry = chosen[:, :, None] & ~chosen[:, None, :]
    times = down((scores[:, :, None] - scores[:, None, :]) / gaps)
    return times.masked_fill(~is_rivalry, float("inf")).amin(dim=(1, 2)).clamp(min=0)


def _dual_of_logits(model: Dual | RoutedDual, images: Images, label: Labels, norm: Norm) -> Fall:
    """Of (1 - alpha) S + alpha R: the falls of both, added up; a half of weight 0 is left out."""
    parts = [(weight, fall_of(half, images, label, norm=norm)) for weight, half in _halves(model)]
    return Fall(
        torch.stack([weight * fall.margins for weight, fall in parts]).sum(dim=0),
        up(torch.stack([weight * fall.speeds for weight, fall in parts]).sum(dim=0), 2),
        torch.stack([fall.within for _, fall in parts]).amin(dim=0),
    )


def _dual_of_probabilities(
    model: Dual | RoutedDual, images: Images, label: Labels, norm: Norm
) -> PerImage:
    """The largest distance found, by halving, at which the sum of the halves' margins is above 0.

    A half whose bound is not known, or ends before, may move a margin to -1: with only a robust
    half that is alpha (R_y - R_k) > 1 - alpha, the condition of the paper's dual theorem.

    Raises:
        ModelError: Neither half has a bound.
    """
    parts, reasons = [], []
    for weight, half in _halves(model):
        try:
            parts.append((weight, fall_of(half, images, label, norm=norm)))
        except ModelError as error:
            reasons.append((weight, str(error)))
    if not parts:
        raise ModelError(reasons[0][1])
    unknown = sum(weight for weight, _ in reasons)
    others = torch.ones_like(parts[0][1].margins).scatter(1, label[:, None], 0).bool()

    def holds(distance: PerImage) -> Tensor:
        least = sum(weight * _least_margins(fall, distance) for weight, fall in parts) - unknown
        return ((least > ROUNDED) | ~others).all(dim=1)

    low = torch.zeros_like(images[:, 0, 0, 0])
    high = torch.full_like(low, float(images[0].numel()) ** (0.5 if norm == "l2" else 0))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        is_safe = holds(middle)
        low, high = torch.where(is_safe, middle, low), torch.where(is_safe, high, middle)
    return low


def _least_margins(fall: Fall, distance: PerImage) -> Tensor:
    """The least p_y - p_k that logits in the bound have.

    With margins m_j of the label's logit, p_y - p_k = (1 - exp(-m_k)) / (1 + sum_j exp(-m_j)).
    It rises with m_k, and with the other margins where m_k is positive; else it falls with them.
    """
    lost = (fall.speeds * distance[:, None]).nan_to_num(nan=0.0)
    lowest, highest = fall.margins - lost, fall.margins + lost
    ahead = (1 - (-lowest).exp()) / (-lowest).exp().sum(dim=1, keepdim=True)
    rest = (-highest).exp().sum(dim=1, keepdim=True) - (-highest).exp()
    behind = torch.expm1(lowest) / (1 + lowest.exp() * rest)
    least = torch.where(lowest >= 0, ahead, behind).nan_to_num(nan=-1.0)
    return torch.where((distance < fall.within)[:, None], least, torch.full_like(least, -1.0))


def _halves(model: Dual | RoutedDual) -> Sequence[tuple[float, nn.Module]]:
    alpha = model.combination.alpha
    halves = ((1 - alpha, model.standard), (alpha, model.robust))
    return [(weight, half) for weight, half in halves if weight > 0]


def _margins(logits: Tensor, label: Labels) -> Tensor:
    return logits.gather(1, label[:, None]) - logits


def _radius(fall: Fall, label: Labels) -> PerImage:
    times = nearest(down(fall.margins), fall.speeds, label[:, None])
    return torch.minimum(times, fall.within)

"""How far an image is from other routes of an affine router, the pixel box counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy import sparse
from scipy.optimize import linprog
from torch import Tensor

from harness.api import ModelError, Norm
from harness.tensors import Images, PerImage
from harness_dual_moe.layer_slopes import ROUNDING, down
from harness_dual_moe.mixture import Mixture
from harness_dual_moe.router import LinearRouter


class AffineRouter(NamedTuple):
    """Gate logits are `weight @ flat image + bias`, of the image in [0, 1]."""

    weight: Float[Tensor, "expert pixel"]
    bias: Float[Tensor, " expert"]

    def gate_logits(self, images: Images) -> Float[Tensor, "batch expert"]:
        """In float64."""
        return images.double().flatten(1) @ self.weight.T + self.bias


def affine_router(mixture: Mixture, image_shape: Sequence[int]) -> AffineRouter:
    """The router of a mixture, with the normalisation before it taken in.

    Raises:
        ModelError: It is not linear.
    """
    if not isinstance(mixture.router, LinearRouter):
        raise ModelError("the distance to another route is known of linear routers alone")
    linear = mixture.router.linear
    mean, std = (
        part.double().expand(1, *image_shape).flatten() for part in (mixture.mean, mixture.std)
    )
    weight = linear.weight.detach().double() / std
    return AffineRouter(weight, linear.bias.detach().double() - weight @ mean)


def pair_radii(
    router: AffineRouter, images: Images, *, norm: Norm
) -> Float[Tensor, "batch expert expert"]:
    """How far each image is from where the first expert's score is no more than the second's.

    Exact, but for a rounding downwards: in the pixel box the score of j gains most on that of i
    where each pixel moves as the weights say until it meets 0 or 1, in Linf all by the same, in L2
    each in proportion to its weight. 0 where the score of i is the smaller, infinite where no
    image of the box gets there.

    Raises:
        ModelError: Another norm.
    """
    if norm not in ("linf", "l2"):
        raise ModelError(f"no distance to another route is known in norm {norm!r}")
    scores = router.gate_logits(images)
    flat = images.double().flatten(1)
    terms = router.weight.shape[1] + 4
    error = (flat.abs() @ router.weight.abs().T + router.bias.abs()) * (terms * ROUNDING)
    found = torch.zeros(*scores.shape, scores.shape[1], dtype=scores.dtype, device=scores.device)
    for first in range(scores.shape[1]):
        for second in range(scores.shape[1]):
            if first == second:
                continue
            gap = scores[:, first] - scores[:, second] - error[:, first] - error[:, second]
            rise = router.weight[second] - router.weight[first]
            room = torch.where(rise > 0, 1 - flat, flat)
            found[:, first, second] = _reached(down(gap).clamp(min=0), rise.abs(), room, norm)
    return found


def route_radius(mixture: Mixture, images: Images, *, norm: Norm) -> PerImage:
    """The distance at which a linear router first sends an image elsewhere.

    A mixture keeps the experts that it chose within it, whichever they are among themselves.

    Raises:
        ModelError: The router is not linear, or the norm another.
    """
    router = affine_router(mixture, images.shape[1:])
    apart = pair_radii(router, images, norm=norm)
    chosen = set_of(router.gate_logits(images), mixture.mixing.num_selected)
    is_rivalry = chosen[:, :, None] & ~chosen[:, None, :]
    return apart.masked_fill(~is_rivalry, float("inf")).amin(dim=(1, 2))


def set_of(scores: Tensor, count: int) -> Tensor:
    """Which experts are among the first so many, (batch, expert)."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(scores).bool().scatter(1, order[:, :count], value=True)


def redirection_radius(
    image: Float[Tensor, " pixel"], routers: Sequence[AffineRouter], experts: Sequence[int]
) -> float:
    """The least Linf distance at which every router prefers the expert that is asked of it.

    One linear program: the least t such that some image in [0, 1], no pixel further than t from
    its own, gives each wanted expert a score no smaller than any other's. Infinite where there is
    none; exact but for the solver's tolerance of 1e-7.

    Args:
        image: In [0, 1].
        routers: Of one model, that read the same image.
        experts: The wanted one of each router.
    """
    point = image.double().cpu().numpy()
    rows, limits = [], []
    for router, wanted in zip(routers, experts, strict=True):
        weight, bias = router.weight.cpu().numpy(), router.bias.cpu().numpy()
        others = [place for place in range(len(bias)) if place != wanted]
        gains = weight[others] - weight[wanted]
        rows.append(gains)
        limits.append(bias[wanted] - bias[others] - gains @ point)
    count = len(point)
    eye, column = sparse.identity(count), sparse.csr_matrix(np.ones((count, 1)))
    routes = sparse.csr_matrix(np.concatenate(rows))
    # of the perturbation and t: the routes, then |perturbation| <= t pixel by pixel
    left: Any = sparse.bmat([[routes, None], [eye, -column], [-eye, -column]], format="csr")
    found: Any = linprog(
        np.r_[np.zeros(count), 1.0],
        A_ub=left,
        b_ub=np.r_[np.concatenate(limits), np.zeros(2 * count)],
        bounds=np.c_[np.r_[-point, 0.0], np.r_[1 - point, 1.0]],
        method="highs",
    )
    return float(found.fun) if found.success else float("inf")


def _reached(gap: Tensor, rate: Tensor, room: Tensor, norm: Norm) -> PerImage:
    """The least distance at which a score gains so much, for each image."""
    gap = gap * (1 - 4 * rate.numel() * ROUNDING)  # what the sums below may be wrong by
    if norm == "linf":
        return _time(gap, rate.expand_as(room), room) * (1 - (rate.numel() + 8) * ROUNDING)
    # the pixel of rate r moves by min(multiplier * r, room), which gains rate r of that
    full = torch.where(rate > 0, room / rate.clamp(min=torch.finfo(rate.dtype).tiny), 0 * room)
    multiplier = _time(gap, rate.square().expand_as(room), full)
    moved = torch.minimum(multiplier[:, None] * rate, room)
    length = torch.where(multiplier.isinf(), multiplier, moved.norm(dim=1))
    return length * (1 - (2 * rate.numel() + 16) * ROUNDING)


def _time(gap: Tensor, rate: Tensor, room: Tensor) -> PerImage:
    """The least t with sum(rate * min(t, room)) >= gap, or infinity."""
    room, order = room.sort(dim=1)
    rate = rate.gather(1, order)
    still = rate.flip(1).cumsum(1).flip(1)  # of those that have room beyond the one before
    spent = (rate * room).cumsum(1)
    gained = spent + room * (still - rate)  # at t = room
    reaches = gained >= gap[:, None]
    place = reaches.int().argmax(dim=1, keepdim=True)
    before = (spent - rate * room).gather(1, place)[:, 0]
    t = (gap - before).clamp(min=0) / still.gather(1, place)[:, 0]
    return torch.where(reaches.any(dim=1), t.nan_to_num(nan=0.0), float("inf"))

"""Targeted FAB, FAB-T (Croce & Hein, 2020, https://arxiv.org/abs/1907.02044).

The fast adaptive boundary attack looks for the smallest perturbation that fools. Where paper and
official code (fra31/auto-attack) differ, this is the code: it leaves out the final search.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from math import inf
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from harness.api import ThreatModel
from harness.tensors import Images, Labels, Noise, Objective, PerImage
from harness_attacks.objectives import target_gap
from harness_attacks.settings import INITS, STOPS, check_start, check_word
from harness_attacks.targeted import likeliest_others

SHORTEST = 1e-8
"""Length below which steps count as equally long, as in the official code."""


def fab(  # noqa: PLR0913 - the parameters of the algorithm
    objective: Objective,
    images: Images,
    labels: Labels,
    threat: ThreatModel,
    *,
    noise: Noise,
    steps: int = 100,
    targets: int = 9,
    restarts: int = 1,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    init: str = "clean",
    start: Sequence[Images] | None = None,
    stop: str = "first",
) -> Images:
    """Walk along the boundary of each of the likeliest other classes, close to the clean image.

    Each step goes to where the linearised boundary is nearest, a little beyond it, and leans
    towards the clean image; a point that fools is pulled back towards the clean image.

    Args:
        objective: Whose model is attacked; its own loss is not climbed.
        images: Clean images in [0, 1].
        labels: Correct classes.
        threat: Ball of the images that are returned; the walk may leave it, but never [0, 1].
        noise: Where random starts begin.
        steps: Steps of each restart, each of one gradient and one more forward pass.
        targets: Other classes that are tried, from the likeliest of the clean image on; fewer
            where the model knows fewer.
        restarts: Walks towards each target.
        alpha_max: Largest share of the clean image's own step in a step.
        eta: Length of a step, 1 being the linearised boundary.
        beta: Share of the perturbation that a fooling point keeps.
        init: "clean" begins the first walk at the image itself, as officially, and the others at
            random; "random" begins all at random.
        start: The points themselves, one batch for each walk, target by target; replaces `init`.
        stop: "first" lets an image leave with its first fooling point inside the ball, which
            changes no verdict; "never" walks all steps towards all targets.

    Returns:
        For each image the nearest fooling point found, if that lies in the ball, or else the
        clean image. Points inside up to rounding are projected before the model judges them, so
        that what is returned is what was seen to fool; the harness judges it all the same.

    Raises:
        AttackError: A word is not known, the norm is neither Linf nor L2, or the points of
            `start` do not fit.
    """
    check_word("norm", threat.norm, ("linf", "l2"))
    check_word("init", init, INITS)
    check_word("stop", stop, STOPS)
    ranking = objective.score(images)
    order = likeliest_others(ranking.logits, labels)[:, :targets]
    check_start(start, images, order.shape[1] * restarts)
    nearest = images.clone()
    distance = images.new_full((len(images),), inf).masked_fill(ranking.fooled, 0)
    live = torch.arange(len(images), device=images.device)

    for walk, (place, restart) in enumerate(product(range(order.shape[1]), range(restarts))):
        drawn = objective.under(target_gap).toward(order[:, place])
        if start is not None:
            points = start[walk][live].clamp(0, 1)
        elif restart == 0 and init == "clean":
            points = images[live]
        else:
            stream = noise.rows(live).named(f"target {place}")
            points = _half_way(images[live], threat, stream, restart)
        for _ in range(steps):
            clean, bound = images[live], drawn.rows(live)
            score, gradient = bound.gradient(points)
            points = _moved(
                points, clean, score.loss, gradient, threat, alpha_max=alpha_max, eta=eta
            )
            inside = threat.contains(points, clean)
            points = torch.where(_column(inside), threat.project(points, clean), points)

            fooled = bound.score(points).fooled
            size = threat.size(points - clean)
            nearer = fooled & (size < distance[live])
            nearest[live[nearer]], distance[live[nearer]] = points[nearer], size[nearer]
            points = torch.where(_column(fooled), clean + beta * (points - clean), points)
            fighting = torch.ones_like(fooled) if stop == "never" else ~(fooled & inside)
            live, points = live[fighting], points[fighting]
            if len(live) == 0:
                return _allowed(nearest, images, threat)

    return _allowed(nearest, images, threat)


def linf_step(points: Images, normal: Images, rise: PerImage) -> Images:
    """The smallest step in Linf from each point onto its plane that stays in [0, 1].

    With x the point and w the normal, this is z - x for the paper's box-constrained projection

        min_z max_i |z_i - x_i|   such that   <w, z - x> = rise,   0 <= z_i <= 1.

    Every pixel moves by the same amount, in the direction of its w_i, until it meets the box:
    |z_i - x_i| = min(m, room_i), and m solves sum_i |w_i| min(m, room_i) = |rise|. A plane that
    does not meet the box has no such m: every pixel with w_i != 0 moves as far as the box lets
    it, to the nearest corner, as in the paper.

    Args:
        points: In [0, 1].
        normal: Of each plane; of any length.
        rise: How much <normal, point> has to grow to reach the plane; may be negative.
    """
    direction, room, total = _posed(points, normal, rise)
    level = _level(direction.abs(), room, total)
    return (direction.sign() * room.minimum(level[:, None])).view_as(points)


def l2_step(points: Images, normal: Images, rise: PerImage) -> Images:
    """The smallest step in L2 from each point onto its plane that stays in [0, 1].

    As `linf_step`, but for min_z sum_i (z_i - x_i)**2: every pixel moves in proportion to its
    w_i until it meets the box, |z_i - x_i| = min(m |w_i|, room_i), and m solves
    sum_i |w_i| min(m |w_i|, room_i) = sum_i w_i**2 min(m, room_i / |w_i|) = |rise|.
    """
    direction, room, total = _posed(points, normal, rise)
    weights = direction.square()
    bounds = torch.where(weights > 0, room / direction.abs(), 0)
    level = _level(weights, bounds, total)
    return (direction * bounds.minimum(level[:, None])).view_as(points)


STEPS: Mapping[str, Callable[[Images, Images, PerImage], Images]] = MappingProxyType(
    {"linf": linf_step, "l2": l2_step}
)

_Flat = Float[Tensor, "batch pixels"]


def _posed(points: Images, normal: Images, rise: PerImage) -> tuple[_Flat, _Flat, PerImage]:
    """The direction that reaches each plane, the room of each pixel that way, how far to rise.

    Plane and rise are scaled alike, so that tiny gradients do not underflow.
    """
    largest = normal.flatten(1).abs().amax(dim=1)
    scale = largest.masked_fill(largest == 0, 1)
    direction = (normal * _column(rise.sign())).flatten(1) / scale[:, None]
    flat = points.flatten(1)
    return direction, torch.where(direction > 0, 1 - flat, flat), rise.abs() / scale


def _level(weights: _Flat, bounds: _Flat, total: PerImage) -> PerImage:
    """The m at which sum_i weights_i * min(m, bounds_i) reaches the total, of each row.

    The sum grows in straight pieces, whose ends are the bounds in ascending order. Where it never
    reaches the total, m lies above all bounds.
    """
    ends, order = bounds.sort(dim=1)
    slopes = weights.gather(1, order)
    growing = slopes.flip(1).cumsum(dim=1).flip(1)  # the slope up to each end
    settled = functional.pad((slopes * ends).cumsum(dim=1)[:, :-1], (1, 0))
    piece = (settled + growing * ends < total[:, None]).sum(dim=1, keepdim=True)
    piece = piece.clamp(max=ends.shape[1] - 1)
    slope = growing.gather(1, piece)[:, 0].clamp(min=torch.finfo(weights.dtype).tiny)
    return ((total - settled.gather(1, piece)[:, 0]) / slope).clamp(min=0)


def _moved(  # noqa: PLR0913 - one step of the algorithm
    points: Images,
    clean: Images,
    gap: PerImage,
    gradient: Images,
    threat: ThreatModel,
    *,
    alpha_max: float,
    eta: float,
) -> Images:
    """The points one step on: beyond the plane where the linearised gap is 0.

    The clean image's own step to that plane gets the share alpha, the larger the farther the
    point is from the plane and the nearer the clean image.
    """
    onto = STEPS[threat.norm]
    rise = (gradient * (points - clean)).flatten(1).sum(dim=1) - gap
    own, direct = onto(points, gradient, -gap), onto(clean, gradient, rise)
    length = threat.size(own).clamp(min=SHORTEST)
    alpha = length / (length + threat.size(direct).clamp(min=SHORTEST))
    alpha = _column(alpha.clamp(max=alpha_max))
    return ((1 - alpha) * (points + eta * own) + alpha * (clean + eta * direct)).clamp(0, 1)


def _half_way(clean: Images, threat: ThreatModel, noise: Noise, restart: int) -> Images:
    """A random point half of epsilon away, as officially."""
    away = noise.normal(restart) if threat.norm == "l2" else noise.uniform(restart)
    return (clean + threat.epsilon / 2 * away / _column(threat.size(away))).clamp(0, 1)


def _allowed(nearest: Images, images: Images, threat: ThreatModel) -> Images:
    """The points in the ball, and the clean image for the others."""
    return torch.where(_column(threat.contains(nearest, images)), nearest, images)


def _column(per_image: Tensor) -> Tensor:
    return per_image[:, None, None, None]

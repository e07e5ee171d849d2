"""Attacks on the experts of a routed model, one after the other, judged with the real routes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from math import ceil
from typing import NamedTuple

import torch

from harness.api import AttackError, ThreatModel, View
from harness.tensors import Images, Labels, Mask, Member, Noise, Objective
from harness_attacks.apgd import apgd
from harness_attacks.cascade import cascade
from harness_attacks.routing import router_gap
from harness_attacks.settings import INITS, STOPS, check_start, check_word

BEYOND = 0.01
"""How far a point is steered beyond the border of an expert's region, as a share of epsilon."""


def forced_expert(  # noqa: PLR0913 - the parameters of the algorithm
    objective: Objective,
    images: Images,
    labels: Labels,
    threat: ThreatModel,
    *,
    noise: Noise,
    experts: int = 8,
    steps: int = 50,
    stop: str = "first",
) -> Images:
    """AutoPGD under the route of the clean image, then with each other expert in its place.

    What is climbed is the model with that route forced; who is fooled, the model says with its
    own route. So experts are attacked that a gradient through the router never shows.

    Args:
        objective: Loss to climb.
        images: In [0, 1].
        labels: Correct classes.
        threat: Ball to stay in.
        noise: Each expert has a stream of its own.
        experts: Experts tried for each token, from the likeliest on; fewer where there are fewer.
        steps: Gradient steps for each expert.
        stop: "first" lets fooled images leave; "never" tries all experts on all images.

    Raises:
        AttackError: The model is dense, or `stop` is not known.
    """
    climb = partial(apgd, steps=steps, stop=stop)
    parts = [
        Member(f"expert {rank}", climb, view=View("forced", rank=rank))
        for rank in range(_reachable(objective, experts))
    ]
    return cascade(parts, objective, images, labels, threat, noise=noise, stop=stop)


def moe_battery(  # noqa: PLR0913 - the parameters of the algorithm
    objective: Objective,
    images: Images,
    labels: Labels,
    threat: ThreatModel,
    *,
    noise: Noise,
    experts: int = 4,
    steps: int = 50,
    stop: str = "first",
) -> Images:
    """What a routed model must withstand beside AutoAttack, at the same cost for a dense one.

    AutoPGD with the router detached, with all experts mixed by their gates, and with each of the
    next likeliest experts forced; then each expert's loss climbed where the router chooses it,
    with two fifths of the steps. Where a part does not apply, to a dense model or to one with
    fewer experts, restarts of plain AutoPGD take as many passes instead, so that no model is
    attacked with a smaller budget than another.

    Args:
        objective: Loss to climb.
        images: In [0, 1].
        labels: Correct classes.
        threat: Ball to stay in.
        noise: Each part has a stream of its own.
        experts: Experts forced, from the second likeliest on.
        steps: Gradient steps of each run.
        stop: "first" lets fooled images leave; "never" runs every part on every image.
    """
    check_word("norm", threat.norm, ("linf", "l2"))
    parts = battery(objective.num_experts, experts=experts, steps=steps, stop=stop)
    return cascade(parts, objective, images, labels, threat, noise=noise, stop=stop)


def battery(
    num_experts: Sequence[int], *, experts: int, steps: int, stop: str = "first"
) -> Iterator[Member]:
    """The parts that apply, and restarts that take the passes of the others.

    A step in a view whose logits are the model's own takes 2 passes, one each way; where the
    model must be asked again, 3; a step that steers, 5, of which each expert gets two fifths as
    many.

    Args:
        num_experts: Of each MoE layer; empty for a dense model.
        experts: Experts forced.
        steps: Gradient steps of each run.
        stop: "first" lets fooled images leave; "never" runs every part to its end.
    """
    forced = min(experts, max(num_experts, default=1) - 1)
    climb = partial(apgd, steps=steps, stop=stop)
    unspent = (3 + 2) * (experts - forced)
    if num_experts:
        yield Member("detached", climb, view=View("detached"))
        yield Member("relaxed", climb, view=View("relaxed"))
    else:
        unspent += 2 + 3 + 2
    for rank in range(1, forced + 1):
        yield Member(f"expert {rank}", climb, view=View("forced", rank=rank))
    if num_experts:
        steer = partial(steered, experts=forced + 1, steps=ceil(0.4 * steps), stop=stop)
        yield Member("steered", steer)
    if unspent:
        restarts = partial(climb, restarts=ceil(unspent / 2))
        yield Member("restarts", restarts, view=View("full"))


def steered(  # noqa: PLR0913 - the parameters of the algorithm
    objective: Objective,
    images: Images,
    labels: Labels,  # noqa: ARG001 - the objective knows them
    threat: ThreatModel,
    *,
    noise: Noise,
    experts: int = 8,
    steps: int = 40,
    init: str = "random",
    start: Sequence[Images] | None = None,
    stop: str = "first",
) -> Images:
    """Climb each reachable expert's loss inside the region where the router chooses it.

    An adaptive attack on hard routers, through which no gradient comes. A step climbs the loss
    with the expert forced; the point is then moved back, by the shortest way, into the
    half-space where the router prefers the expert that it prefers least. For a router that is
    affine in the image that is the exact projection onto the nearest wall of the region, for
    others its linearisation. Steps shrink linearly from epsilon to 0.

    Args:
        objective: Loss to climb.
        images: In [0, 1].
        labels: Correct classes.
        threat: Ball to stay in, Linf or L2.
        noise: Where random starts begin.
        experts: Experts tried for each token, from the likeliest on; fewer where there are fewer.
        steps: Steps for each expert, each of two gradients.
        init: "random" begins anywhere in the ball, "clean" at the image itself.
        start: The points themselves, one batch for each expert; replaces `init`.
        stop: "first" lets fooled images leave; "never" tries all experts on all images.

    Raises:
        AttackError: The model is dense, the norm is neither Linf nor L2, or a word is not known.
    """
    check_word("norm", threat.norm, ("linf", "l2"))
    check_word("init", init, INITS)
    check_word("stop", stop, STOPS)
    ranks = _reachable(objective, experts)
    check_start(start, images, ranks)
    climb = partial(_climbed, steps=steps, stop=stop)
    adversarial = images.clone()
    done = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    live = torch.arange(len(images), device=images.device)
    for rank in range(ranks):
        points = _begin(rank, images, threat, noise, init, start)[live]
        found, fooled = climb(objective.rows(live), images[live], points, threat, rank)
        shown = fooled | ~done[live]
        adversarial[live[shown]] = found[shown]
        done[live] = done[live] | fooled
        live = live if stop == "never" else live[~fooled]
        if len(live) == 0:
            break
    return adversarial


def _climbed(  # noqa: PLR0913 - one climb of the algorithm
    objective: Objective,
    images: Images,
    points: Images,
    threat: ThreatModel,
    rank: int,
    *,
    steps: int,
    stop: str,
) -> tuple[Images, Mask]:
    """The points that a climb towards one expert ends with, and which of them fool."""
    adversarial = points.clone()
    fooled = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    live = torch.arange(len(images), device=images.device)
    for step in range(steps + 1):
        bound, clean = objective.rows(live), images[live]
        points, seen = _steered(bound, points, clean, threat, rank)
        score, gradient = bound.through(View("forced", rank=rank)).gradient(points)
        adversarial[live], fooled[live] = points, score.fooled
        better = seen.fooled & ~score.fooled
        adversarial[live[better]], fooled[live[better]] = seen.points[better], True

        fighting = torch.ones_like(fooled[live]) if stop == "never" else ~fooled[live]
        live, points, gradient = live[fighting], points[fighting], gradient[fighting]
        if len(live) == 0:
            break
        if step < steps:
            length = threat.epsilon * (1 - step / steps)
            points = threat.project(points + length * threat.steepest(gradient), images[live])
    return adversarial, fooled


class _Seen(NamedTuple):
    """Points before they were steered, and the model's word on them."""

    points: Images
    fooled: Mask


def _steered(
    objective: Objective, points: Images, clean: Images, threat: ThreatModel, rank: int
) -> tuple[Images, _Seen]:
    """The points, those outside the expert's half-space moved onto it and a little beyond."""
    steering = objective.under(partial(router_gap, rank=rank)).through(View("full"))
    score, gradient = steering.gradient(points)
    flat = gradient.flatten(1)
    rate = flat.abs().sum(dim=1) if threat.norm == "linf" else flat.norm(dim=1)
    length = -score.loss / rate.clamp(min=1e-12) + BEYOND * threat.epsilon
    length = torch.where(score.loss < 0, length, torch.zeros_like(length))
    moved = points + length[:, None, None, None] * threat.steepest(gradient)
    return threat.project(moved, clean), _Seen(points, score.fooled)


def _begin(
    rank: int,
    images: Images,
    threat: ThreatModel,
    noise: Noise,
    init: str,
    start: Sequence[Images] | None,
) -> Images:
    if start is not None:
        return threat.project(start[rank], images)
    return images if init == "clean" else threat.around(images, noise.uniform(rank))


def _reachable(objective: Objective, experts: int) -> int:
    """Ranks of experts to try.

    Raises:
        AttackError: The model is dense, or there are none to try.
    """
    if experts < 1:
        raise AttackError(f"experts must be at least 1, got {experts}")
    if not objective.num_experts:
        raise AttackError("this attack forces experts, and the model has none; take 'apgd'")
    return min(experts, max(objective.num_experts))

"""AutoPGD (Croce & Hein, 2020, https://arxiv.org/abs/2003.01690, Algorithm 1).

Where paper and official code (fra31/auto-attack) differ, this is the code: its results are what
is published.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from harness.api import ThreatModel
from harness.tensors import (
    Images,
    Labels,
    Mask,
    Noise,
    Objective,
    PerImage,
    Rows,
    Score,
)
from harness_attacks.settings import INITS, STOPS, check_start, check_word, drawn

STEP_SHARE = 0.75
"""Share of the new step in each move; the rest repeats the move before (the paper's alpha)."""


def apgd(  # noqa: PLR0913 - the parameters of the algorithm
    objective: Objective,
    images: Images,
    labels: Labels,  # noqa: ARG001 - the objective knows them
    threat: ThreatModel,
    *,
    noise: Noise,
    steps: int = 100,
    restarts: int = 1,
    rho: float = 0.75,
    init: str = "random",
    start: Sequence[Images] | None = None,
    draws: int = 1,
    stop: str = "first",
) -> Images:
    """Climb the objective with steps that halve, for each image, where it no longer rises.

    Unlike the official code, which runs on and returns the last fooling iterate, an image leaves
    the race at its first: the same images are fooled. `stop="never"` runs on for all of them.

    Args:
        objective: Loss to climb, bound to the labels of `images`.
        images: Clean images in [0, 1].
        labels: Correct classes.
        threat: Ball to stay in.
        noise: Where each random restart begins.
        steps: Gradient steps of each restart.
        restarts: Starting points tried for each image.
        rho: Share of the steps since the last review that must raise the loss.
        init: "random" begins on the sphere, "clean" at the image itself.
        start: The points themselves, one batch for each restart; replaces `init`.
        draws: Passes whose mean counts as one, for models that draw random numbers (EOT).
        stop: "first" lets fooled images leave, "never" runs all steps of all restarts.

    Returns:
        One candidate for each image, inside the ball: the last that fooled, or else the one of
        highest loss.

    Raises:
        AttackError: `init` or `stop` is not known, or the points of `start` do not fit.
    """
    found = climbed(
        drawn(objective, draws),
        images,
        threat,
        noise=noise,
        steps=steps,
        restarts=restarts,
        rho=rho,
        init=init,
        start=start,
        stop=stop,
    )
    return found.images


class Found(NamedTuple):
    """What an attack ends with."""

    images: Images  # one candidate for each image
    fooled: Mask  # whether a pass of the attack saw it fool the model
    loss: PerImage  # its objective, inf where it fooled


def climbed(  # noqa: PLR0913 - the parameters of the algorithm
    objective: Objective,
    images: Images,
    threat: ThreatModel,
    *,
    noise: Noise,
    steps: int,
    restarts: int,
    rho: float,
    init: str,
    start: Sequence[Images] | None,
    stop: str,
) -> Found:
    """What `apgd` finds, with the verdicts that it saw on the way; its arguments are the same."""
    check_word("init", init, INITS)
    check_word("stop", stop, STOPS)
    check_start(start, images, restarts)
    adversarial = images.clone()
    highest = images.new_full((len(images),), -inf)  # loss of `adversarial`, inf where it fools
    live = torch.arange(len(images), device=images.device)
    reviews = review_intervals(steps)

    for restart in range(restarts):
        clean = images[live]
        climb = _started(clean, _begin(restart, live, clean, threat, noise, init, start), threat)
        for step in range(steps + 1):  # the last pass only scores what the last step reached
            score, gradient = _passed(objective.rows(live), climb.points, last=step == steps)
            shown = score.fooled | (score.loss > highest[live])
            adversarial[live[shown]] = climb.points[shown]
            highest[live] = torch.fmax(highest[live], score.loss).masked_fill(score.fooled, inf)

            fighting = torch.ones_like(score.fooled) if stop == "never" else ~score.fooled
            climb = _seen(climb, score.loss, gradient, first=step == 0)
            live, climb = live[fighting], _Climb(*(part[fighting] for part in climb))
            if len(live) == 0:
                return Found(adversarial, highest.isposinf(), highest)
            if step in reviews:
                climb = _reviewed(climb, enough=rho * reviews[step])
            if step < steps:
                climb = _moved(climb, threat, share=STEP_SHARE if step > 0 else 1.0)

    return Found(adversarial, highest.isposinf(), highest)


def review_intervals(steps: int) -> dict[int, int]:
    """The steps after which step sizes are reviewed, each with the steps since the last review.

    In the rounding of the official code, which shortens intervals from 22 % to 6 % of the steps.

    >>> list(review_intervals(100))
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    interval, review, intervals = max(int(0.22 * steps), 1), 0, {}
    while review + interval <= steps:
        review += interval
        intervals[review] = interval
        shorter = interval - max(int(0.03 * steps), 1)
        interval = max(shorter, int(0.06 * steps), 1)
    return intervals


class _Climb(NamedTuple):
    """Where each image is on its way up."""

    clean: Images
    points: Images  # where the next pass looks
    previous: Images  # the points one step earlier, for the momentum
    gradient: Images  # at the points
    step_size: PerImage
    loss: PerImage  # what the next pass is compared with
    rises: Tensor  # passes since the last review whose loss exceeded the one before
    best: Images  # the point of highest loss
    best_gradient: Images
    best_loss: PerImage
    reviewed_loss: PerImage  # the best loss at the last review
    halved: Mask  # whether the last review halved the step size


def _started(clean: Images, points: Images, threat: ThreatModel) -> _Climb:
    lowest = points.new_full((len(points),), -inf)
    flat = torch.zeros_like(points)
    return _Climb(
        clean=clean,
        points=points,
        previous=points,
        gradient=flat,
        step_size=torch.full_like(lowest, 2 * threat.epsilon),
        loss=-lowest,  # the start itself is no rise
        rises=torch.zeros_like(lowest, dtype=torch.int64),
        best=points,
        best_gradient=flat,
        best_loss=lowest,
        reviewed_loss=lowest,
        halved=torch.ones_like(lowest, dtype=torch.bool),  # the first review sees rises alone
    )


def _passed(objective: Objective, points: Images, *, last: bool) -> tuple[Score, Images]:
    """The score and the gradient, which nobody needs at the last pass."""
    if last:
        return objective.score(points), torch.zeros_like(points)
    return objective.gradient(points)


def _seen(climb: _Climb, loss: PerImage, gradient: Images, *, first: bool) -> _Climb:
    """The climb after a pass: rises counted, best points remembered."""
    better = loss > climb.best_loss
    # the official code compares the first step with 0, not with the loss of the start
    compared = torch.zeros_like(loss) if first else loss
    return climb._replace(
        gradient=gradient,
        loss=compared,
        rises=climb.rises + (loss > climb.loss),
        best=torch.where(_column(better), climb.points, climb.best),
        best_gradient=torch.where(_column(better), gradient, climb.best_gradient),
        best_loss=torch.where(better, loss, climb.best_loss),
    )


def _reviewed(climb: _Climb, *, enough: float) -> _Climb:
    """The climb after a review: where it stalls, half the step, from the best point on.

    Unlike the paper, which asks for `rises < enough`, the code halves at equality too.
    """
    stuck = ~climb.halved & (climb.best_loss <= climb.reviewed_loss)
    halved = (climb.rises <= enough) | stuck
    return climb._replace(
        points=torch.where(_column(halved), climb.best, climb.points),
        gradient=torch.where(_column(halved), climb.best_gradient, climb.gradient),
        step_size=torch.where(halved, climb.step_size / 2, climb.step_size),
        rises=torch.zeros_like(climb.rises),
        reviewed_loss=climb.best_loss,
        halved=halved,
    )


def _moved(climb: _Climb, threat: ThreatModel, *, share: float) -> _Climb:
    """The climb one step on, with momentum."""
    points = climb.points
    ascent = _column(climb.step_size) * threat.steepest(climb.gradient)
    target = threat.project(points + ascent, climb.clean)
    blend = points + share * (target - points) + (1 - share) * (points - climb.previous)
    # `previous` stays the iterate that a review may have left, as in the official code
    return climb._replace(points=threat.project(blend, climb.clean), previous=points)


def _begin(  # noqa: PLR0913 - one of three ways to begin, for the images that are left
    restart: int,
    live: Rows,
    clean: Images,
    threat: ThreatModel,
    noise: Noise,
    init: str,
    start: Sequence[Images] | None,
) -> Images:
    if start is not None:
        return threat.project(start[restart][live], clean)
    if init == "clean":
        return clean
    drawn = noise.rows(live)
    away = drawn.normal(restart) if threat.norm == "l2" else drawn.uniform(restart)
    return threat.project(clean + threat.epsilon * away / _column(threat.size(away)), clean)


def _column(per_image: Tensor) -> Tensor:
    return per_image[:, None, None, None]

"""Projected gradient descent (Madry et al., 2018, https://arxiv.org/abs/1706.06083)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from harness.api import ThreatModel
from harness.tensors import Images, Labels, Noise, Objective
from harness_attacks.settings import INITS, STOPS, check_start, check_word, drawn

DARK_CORNER = "dark-corner"
"""Where the released code of arXiv 2502.06832 begins, whose noise its normalisation undoes."""


def pgd(  # noqa: PLR0913 - the parameters of the algorithm
    objective: Objective,
    images: Images,
    labels: Labels,  # noqa: ARG001 - the objective knows them
    threat: ThreatModel,
    *,
    noise: Noise,
    steps: int = 40,
    relative_step_size: float = 0.1,
    restarts: int = 1,
    init: str = "random",
    start: Sequence[Images] | None = None,
    draws: int = 1,
    stop: str = "first",
) -> Images:
    """Climb the objective inside the ball; an image that is fooled leaves the race.

    Unlike the paper, the first fooling iterate is returned, not the last: the same images are
    fooled, and the rest of their steps is saved. `stop="never"` returns the last iterate of the
    last restart.

    Args:
        objective: Loss to climb, bound to the labels of `images`.
        images: Clean images in [0, 1].
        labels: Correct classes.
        threat: Ball to stay in.
        noise: Where each random restart begins.
        steps: Gradient steps of each restart.
        relative_step_size: Length of one step, as a fraction of epsilon.
        restarts: Starting points tried for each image.
        init: "random" begins anywhere in the ball, "clean" at the image itself, "dark-corner"
            where every pixel is darker by epsilon.
        start: The points themselves, one batch for each restart; replaces `init`.
        draws: Passes whose mean counts as one, for models that draw random numbers (EOT).
        stop: "first" lets fooled images leave, "never" runs all steps.

    Returns:
        One candidate for each image, inside the ball. The harness, not the attack, decides
        which of them fool the model.

    Raises:
        AttackError: `init` or `stop` is not known, or the points of `start` do not fit.
    """
    check_word("init", init, (*INITS, DARK_CORNER))
    check_word("stop", stop, STOPS)
    check_start(start, images, restarts)
    objective = drawn(objective, draws)
    adversarial = images.clone()
    live = torch.arange(len(images), device=images.device)
    step_size = relative_step_size * threat.epsilon

    for restart in range(restarts):
        clean = images[live]
        candidates = _begin(restart, live, clean, threat, noise, init, start)
        for step in range(steps + 1):  # the last pass only scores what the last step reached
            bound = objective.rows(live)
            if step == steps:
                score = bound.score(candidates)
            else:
                score, gradient = bound.gradient(candidates)
            adversarial[live] = candidates

            fighting = torch.ones_like(score.fooled) if stop == "never" else ~score.fooled
            live, clean, candidates = live[fighting], clean[fighting], candidates[fighting]
            if len(live) == 0:
                return adversarial
            if step < steps:
                ascent = step_size * threat.steepest(gradient[fighting])
                candidates = threat.project(candidates + ascent, clean)

    return adversarial


def _begin(  # noqa: PLR0913 - one of three ways to begin, for the images that are left
    restart: int,
    live: torch.Tensor,
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
    if init == DARK_CORNER:
        return threat.project(clean - threat.epsilon, clean)
    return threat.around(clean, noise.rows(live).uniform(restart))

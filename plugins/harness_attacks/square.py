"""Square Attack (Andriushchenko et al., 2020, https://arxiv.org/abs/1912.00049, Algorithms 1-3).

A random search that sees logits only: repaint a square, keep it if the margin falls. Where paper
and official code (fra31/auto-attack) differ, this is the code, but for the reach of the squares.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from math import inf, sqrt
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from harness.api import ThreatModel
from harness.tensors import Images, Labels, Noise, Objective
from harness_attacks.settings import INITS, STOPS, check_start, check_word

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Changes after which squares cover half as much: the paper's schedule for 10,000 of them."""

Draws: TypeAlias = Float[Tensor, "batch count"]  # uniform in [-1, 1)
Places: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]  # indexes one square of each image


def square(  # noqa: PLR0913 - the parameters of the algorithm
    objective: Objective,
    images: Images,
    labels: Labels,  # noqa: ARG001 - the objective knows them
    threat: ThreatModel,
    *,
    noise: Noise,
    queries: int = 5000,
    p_init: float = 0.8,
    restarts: int = 1,
    init: str = "random",
    start: Sequence[Images] | None = None,
    stop: str = "first",
) -> Images:
    """Change one square of each image at a time and keep what lowers the margin.

    The margin is minimised whatever the objective climbs. Unlike the official code, which draws
    one place and one colour for the whole batch, each image has its own; squares reach the last
    row and column, as in the paper, where the official ones end one pixel short; and an image at
    a margin of 0 that is still classified right stays in the race.

    Args:
        objective: Gives the margins, bound to the labels of `images`.
        images: Clean images in [0, 1].
        labels: Correct classes.
        threat: Ball to stay in, Linf or L2.
        noise: Where each restart begins, and place and colours of each square.
        queries: Squares tried in each restart; its starting point costs one query more.
        p_init: Share of the image that the first squares cover.
        restarts: Starting points tried for each image.
        init: "random" begins with stripes (Linf) or tiles (L2), "clean" at the image itself.
        start: The points themselves, one batch for each restart; replaces `init`.
        stop: "first" lets fooled images leave, "never" makes all queries of all restarts.

    Returns:
        One candidate for each image, inside the ball: the first that fooled, or else the one of
        lowest margin.

    Raises:
        AttackError: A word or the norm is not known, or the points of `start` do not fit.
    """
    check_word("norm", threat.norm, ("linf", "l2"))
    check_word("init", init, INITS)
    check_word("stop", stop, STOPS)
    check_start(start, images, restarts)
    change = _repainted if threat.norm == "linf" else _reshaped
    adversarial = images.clone()
    lowest = images.new_full((len(images),), inf)  # margin of `adversarial`, -inf where it fools
    live = torch.arange(len(images), device=images.device)

    for restart in range(restarts):
        best = _begin(restart, images, threat, noise, init, start).clone()
        margin = torch.full_like(lowest, inf)
        for query in range(queries + 1):  # the first looks at the starting point
            if len(live) == 0:
                break
            candidates = best[live]
            if query > 0:
                share = square_share(query - 1, p_init=p_init)
                draws = _draws(noise.rows(live), restart, query)
                candidates = change(candidates, images[live], threat, draws, share)

            score = objective.rows(live).score(candidates)
            reached = score.margin.masked_fill(score.fooled, -inf)
            better = reached < margin[live]
            best[live[better]] = candidates[better]
            margin[live[better]] = reached[better]
            live = live if stop == "never" else live[~score.fooled]

        adversarial = torch.where(_column(margin < lowest), best, adversarial)
        lowest = torch.minimum(lowest, margin)

    return adversarial


def square_share(change: int, *, p_init: float) -> float:
    """The share of the image that a square covers, the changes being counted from 0.

    AutoAttack does not stretch the schedule to the number of queries, nor does this.

    >>> [square_share(change, p_init=0.8) for change in (0, 10, 11, 51, 4999)]
    [0.8, 0.8, 0.4, 0.2, 0.00625]
    """
    return p_init / 2.0 ** bisect_left(HALVINGS, change)


def bump(size: int) -> Float[Tensor, "size size"]:
    """A hill beside a hollow, of norm 1: how a square of L2 is perturbed (Algorithm 3)."""
    upper, lower = _hill(size // 2, size), _hill(size - size // 2, size)
    return _unit(torch.cat([upper, -lower])[None, None])[0, 0]


def _hill(height: int, width: int) -> Tensor:
    """A pyramid of norm 1 around its middle, whose slopes follow the inverse squares."""
    rows = (torch.arange(height) - height // 2).abs()
    columns = (torch.arange(width) - width // 2).abs()
    distance = torch.maximum(rows[:, None], columns[None, :])
    rises = 1 / torch.arange(1, max(height, width) // 2 + 2) ** 2
    heights = rises.flip(0).cumsum(0).flip(0)[distance]
    return _unit(heights[None, None])[0, 0]


def _begin(
    restart: int,
    clean: Images,
    threat: ThreatModel,
    noise: Noise,
    init: str,
    start: Sequence[Images] | None,
) -> Images:
    if start is not None:
        return threat.project(start[restart], clean)
    if init == "clean":
        return clean
    pattern = _stripes if threat.norm == "linf" else _tiles
    return threat.surface(clean, pattern(clean, noise, restart))


def _stripes(clean: Images, noise: Noise, restart: int) -> Images:
    """Vertical lines, one pixel wide."""
    channels, _, width = clean.shape[1:]
    return _signs(replace(noise, shape=(channels, 1, width)).uniform(restart)).expand_as(clean)


def _tiles(clean: Images, noise: Noise, restart: int) -> Images:
    """Five bumps along the shorter side, as many as fit along the other, nothing at the edges."""
    channels, height, width = clean.shape[1:]
    size = max(min(height, width) // 5, 1)
    rows, columns = height // size, width // size
    drawn = replace(noise, shape=(channels + 1, rows, columns)).uniform(restart)
    bumps = _bumps(drawn[:, :1], size, clean) * _signs(drawn[:, 1:, :, :, None, None])
    tiles = bumps.transpose(3, 4).reshape(-1, channels, rows * size, columns * size)
    above, left = (height - rows * size) // 2, (width - columns * size) // 2
    below, right = height - rows * size - above, width - columns * size - left
    return functional.pad(tiles, (left, right, above, below))


def _repainted(
    best: Images, clean: Images, threat: ThreatModel, draws: Draws, share: float
) -> Images:
    """The best images, each with one square at a corner of the ball (Algorithm 2)."""
    height, width = best.shape[2:]
    size = min(max(round(sqrt(share * height * width)), 1), height, width)
    here = _places(best, draws[:, :2], size)
    colours = _signs(draws[:, 5:, None, None])
    candidates = best.clone()
    candidates[here] = threat.surface(clean[here], colours.expand(-1, -1, size, size))
    return candidates


def _reshaped(
    best: Images, clean: Images, threat: ThreatModel, draws: Draws, share: float
) -> Images:
    """The best images, each with one square emptied in favour of another (Algorithm 3)."""
    channels, height, width = best.shape[1:]
    size = max(round(sqrt(share * height * width)), 3)
    size = min(size + 1 - size % 2, height, width)
    here, there = _places(best, draws[:, :2], size), _places(best, draws[:, 2:4], size)
    perturbation = best - clean
    changed = perturbation.clone()
    changed[here], changed[there] = 0, 0

    unused = (threat.epsilon**2 - threat.size(perturbation) ** 2).clamp(min=0) / channels
    free = (_column(unused) + (perturbation - changed).square().sum((2, 3), keepdim=True)).sqrt()
    bumps = _bumps(draws[:, 4:5], size, best) * _signs(draws[:, 5:, None, None])
    changed[here] = free * _unit(bumps + _unit(perturbation[here]))
    return threat.surface(clean, changed)


def _draws(noise: Noise, restart: int, query: int) -> Draws:
    """For each image: two places, a direction, and a sign for each channel."""
    count = 5 + noise.shape[0]
    return replace(noise, shape=(1, 1, count)).uniform(restart, step=query).flatten(1)


def _places(images: Images, draws: Draws, size: int) -> Places:
    """The pixels of a square in each image, wherever it fits."""
    count, channels, height, width = images.shape
    room = draws.new_tensor([height - size + 1, width - size + 1])
    first = ((draws + 1) / 2 * room).long()
    steps = torch.arange(size, device=images.device)
    return (
        torch.arange(count, device=images.device)[:, None, None, None],
        torch.arange(channels, device=images.device)[None, :, None, None],
        (first[:, :1] + steps)[:, None, :, None],
        (first[:, 1:] + steps)[:, None, None, :],
    )


def _bumps(draws: Tensor, size: int, images: Images) -> Tensor:
    """A bump for each draw, every second one turned by a right angle."""
    upright = bump(size).to(images)
    return torch.where(draws[..., None, None] < 0, upright, upright.T)


def _signs(draws: Tensor) -> Tensor:
    """-1 or 1, each half of the time."""
    return torch.where(draws < 0, -1.0, 1.0)


def _unit(squares: Tensor) -> Tensor:
    """The squares, each channel scaled to norm 1; 0 where it is flat."""
    norms: Tensor = squares.flatten(2).norm(dim=2)[:, :, None, None]
    return squares / norms.clamp(min=1e-12)


def _column(per_image: Tensor) -> Tensor:
    return per_image[:, None, None, None]

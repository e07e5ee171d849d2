"""Targeted AutoPGD, APGD-T (Croce & Hein, 2020, https://arxiv.org/abs/2003.01690)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from harness.api import ThreatModel
from harness.tensors import Images, Labels, Logits, Noise, Objective
from harness_attacks.apgd import climbed
from harness_attacks.objectives import targeted_logits_ratio
from harness_attacks.settings import check_start


def apgd_targeted(  # noqa: PLR0913 - the parameters of the algorithm
    objective: Objective,
    images: Images,
    labels: Labels,
    threat: ThreatModel,
    *,
    noise: Noise,
    steps: int = 100,
    targets: int = 9,
    rho: float = 0.75,
    init: str = "random",
    start: Sequence[Images] | None = None,
    stop: str = "first",
) -> Images:
    """Climb the targeted DLR loss towards each of the likeliest other classes in turn.

    An image that is fooled, into whatever class, is not drawn towards the next target.

    Args:
        objective: Whose model is attacked; its own loss is not climbed.
        images: In [0, 1].
        labels: Correct classes.
        threat: Ball to stay in.
        noise: Where random starts begin, otherwise for each target.
        steps: Gradient steps towards each target.
        targets: Other classes that are tried, from the likeliest of the clean image on; fewer
            where the model knows fewer.
        rho: Share of the steps since the last review that must raise the loss.
        init: "random" begins on the sphere, "clean" at the image itself.
        start: The points themselves, one batch for each target; replaces `init`.
        stop: "first" lets fooled images leave, "never" draws all of them to all targets.

    Raises:
        AttackError: The model knows fewer than 4 classes, a word is not known, or the points of
            `start` do not fit.
    """
    adversarial = images.clone()
    highest = images.new_full((len(images),), -torch.inf)
    live = torch.arange(len(images), device=images.device)
    order = likeliest_others(objective.score(images).logits, labels)[:, :targets]
    check_start(start, images, order.shape[1])
    for place in range(order.shape[1]):
        bound = objective.rows(live).under(targeted_logits_ratio).toward(order[live, place])
        found = climbed(
            bound,
            images[live],
            threat,
            noise=noise.rows(live).named(f"target {place}"),
            steps=steps,
            restarts=1,
            rho=rho,
            init=init,
            start=None if start is None else [start[place][live]],
            stop=stop,
        )
        better = found.loss > highest[live]
        adversarial[live[better]] = found.images[better]
        highest[live] = torch.maximum(highest[live], found.loss)
        live = live if stop == "never" else live[~found.fooled]
        if len(live) == 0:
            break
    return adversarial


def likeliest_others(logits: Logits, labels: Labels) -> Int[Tensor, "batch others"]:
    """The classes of each image but its own, the likeliest first."""
    others = logits.scatter(1, labels[:, None], float("-inf"))
    return others.argsort(dim=1, descending=True, stable=True)[:, :-1]

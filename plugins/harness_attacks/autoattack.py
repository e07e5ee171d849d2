"""AutoAttack: four attacks in a row, each on the images that the others left.

(Croce & Hein, 2020, https://arxiv.org/abs/2003.01690; fra31/auto-attack, version "standard".)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch

from harness.api import AttackError, ThreatModel
from harness.tensors import Images, Labels, Loss, Noise, Objective
from harness_attacks.apgd import apgd
from harness_attacks.fab import fab
from harness_attacks.objectives import (
    cross_entropy,
    difference_of_logits_ratio,
    negative_margin,
)
from harness_attacks.square import square
from harness_attacks.targeted import apgd_targeted

VERSIONS = ("standard", "plus")


class Part(NamedTuple):
    """One attack of the row."""

    name: str
    run: Callable[..., Images]
    loss: Loss


def autoattack(  # noqa: PLR0913 - what the versions share
    objective: Objective,
    images: Images,
    labels: Labels,
    threat: ThreatModel,
    *,
    noise: Noise,
    version: str,
    steps: int = 100,
    targets: int = 9,
    queries: int = 5000,
    stop: str = "first",
) -> Images:
    """What the first of the attacks that fools an image proposes.

    Args:
        objective: Whose model is attacked; each part climbs its own loss.
        images: In [0, 1].
        labels: Correct classes.
        threat: Ball to stay in.
        noise: Each part has a stream of its own.
        version: "standard": AutoPGD on cross-entropy, targeted AutoPGD, targeted FAB, Square;
            "plus": five restarts of AutoPGD on cross-entropy and on DLR and of FAB before them.
        steps: Of each run of AutoPGD and FAB.
        targets: Other classes that the targeted attacks try.
        queries: Of Square.
        stop: "first" lets fooled images leave; "never" runs every part on every image.

    Raises:
        AttackError: The version is not known, or images have several correct classes.
    """
    adversarial = images.clone()
    fooled = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    clean = objective.score(images)
    for part in _parts(version, clean.logits.shape[1], steps, targets, queries):
        live = torch.arange(len(images), device=images.device)
        live = live if stop == "never" else live[~fooled]
        if len(live) == 0:
            break
        found = part.run(
            objective.rows(live).under(part.loss),
            images[live],
            labels[live],
            threat,
            noise=noise.rows(live).named(part.name),
            stop=stop,
        )
        score = objective.rows(live).under(part.loss).score(found)
        shown = score.fooled | ~fooled[live]
        adversarial[live[shown]] = found[shown]
        fooled[live] = fooled[live] | score.fooled
    return adversarial


def _parts(
    version: str, num_classes: int, steps: int, targets: int, queries: int
) -> Iterator[Part]:
    """The attacks in the order of the official code, cheap ones first."""
    if version not in VERSIONS:
        raise AttackError(f"version {version!r} is not known; known are {', '.join(VERSIONS)}")
    restarts = 5 if version == "plus" else 1
    climb = partial(apgd, steps=steps, restarts=restarts)
    yield Part("apgd-ce", climb, cross_entropy)
    if version == "plus":
        ratio = difference_of_logits_ratio if num_classes > 2 else negative_margin  # noqa: PLR2004
        yield Part("apgd-dlr", climb, ratio)
        yield Part("fab", partial(fab, steps=steps, targets=targets, restarts=5), cross_entropy)
    if num_classes > 3:  # noqa: PLR2004 - the loss asks for the fourth largest logit
        yield Part("apgd-t", partial(apgd_targeted, steps=steps, targets=targets), cross_entropy)
    else:
        yield Part("apgd-margin", partial(apgd, steps=steps), negative_margin)
    yield Part("fab-t", partial(fab, steps=steps, targets=targets), cross_entropy)
    yield Part("square", partial(square, queries=queries), negative_margin)

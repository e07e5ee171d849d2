"""Attacks in a row, each on the images that the others left."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from harness.api import AttackError, ThreatModel
from harness.tensors import Images, Labels, Member, Noise, Objective
from harness_attacks.settings import STOPS, check_word


def cascade(  # noqa: PLR0913 - the arguments of an attack
    members: Iterable[Member],
    objective: Objective,
    images: Images,
    labels: Labels,
    threat: ThreatModel,
    *,
    noise: Noise,
    stop: str,
) -> Images:
    """What the first of the members that fools an image proposes.

    Args:
        members: In their order.
        objective: Whose model is attacked; it says which images a member has fooled.
        images: In [0, 1].
        labels: Correct classes.
        threat: Ball to stay in.
        noise: Each member has a stream of its own.
        stop: "first" leaves fooled images out of later members; "never" shows them to all.

    Raises:
        AttackError: `stop` is not known.
    """
    check_word("stop", stop, STOPS)
    adversarial = images.clone()
    fooled = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    for member in members:
        live = torch.arange(len(images), device=images.device)
        live = live if stop == "never" else live[~fooled]
        if len(live) == 0:
            break
        bound = objective.rows(live)
        found = member(bound, images[live], labels[live], threat, noise=noise.rows(live))
        score = bound.score(found)
        shown = score.fooled | ~fooled[live]
        adversarial[live[shown]] = found[shown]
        fooled[live] = fooled[live] | score.fooled
    return adversarial


def worst_of(  # noqa: PLR0913 - the arguments of an attack
    objective: Objective,
    images: Images,
    labels: Labels,
    threat: ThreatModel,
    *,
    noise: Noise,
    attacks: Sequence[Member] = (),
    stop: str = "first",
) -> Images:
    """The worst case of some attacks, image by image: each runs on what the others left.

    Args:
        objective: Whose model is attacked; each attack climbs its own.
        images: In [0, 1].
        labels: Correct classes.
        threat: Ball to stay in.
        noise: Each attack has a stream of its own.
        attacks: In their order, cheap ones first; a suite writes `name` or `name:objective`.
        stop: "first" leaves fooled images out of later attacks; "never" shows them to all.

    Raises:
        AttackError: There are none, or `stop` is not known.
    """
    if not attacks:
        raise AttackError('worst-of needs attacks: write attacks = ["apgd", "apgd:dlr"]')
    return cascade(attacks, objective, images, labels, threat, noise=noise, stop=stop)

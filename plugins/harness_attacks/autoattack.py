"""AutoAttack: some attacks in a row, each on the images that the others left.

(Croce & Hein, 2020, https://arxiv.org/abs/2003.01690; fra31/auto-attack.)
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from harness.api import ThreatModel
from harness.tensors import Images, Labels, Loss, Member, Noise, Objective
from harness_attacks.apgd import apgd
from harness_attacks.cascade import cascade
from harness_attacks.fab import fab
from harness_attacks.objectives import (
    cross_entropy,
    difference_of_logits_ratio,
    negative_margin,
)
from harness_attacks.settings import STOPS, check_word
from harness_attacks.square import square
from harness_attacks.targeted import apgd_targeted

VERSIONS = ("standard", "plus", "rand")


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
    draws: int = 20,
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
            "plus": five restarts of AutoPGD on cross-entropy and on DLR and of FAB before them;
            "rand", for models that draw random numbers: AutoPGD on cross-entropy and on DLR,
            each pass the mean of some.
        steps: Of each run of AutoPGD and FAB.
        targets: Other classes that the targeted attacks try.
        queries: Of Square.
        draws: Passes whose mean counts as one, in version "rand" (EOT).
        stop: "first" lets fooled images leave; "never" runs every part on every image.

    Raises:
        AttackError: The version is not known, or images have several correct classes.
    """
    check_word("version", version, VERSIONS)
    check_word("stop", stop, STOPS)
    classes = objective.score(images).logits.shape[1]
    if version == "rand":
        row = _averaged(classes, steps, draws, stop)
    else:
        row = parts(version, classes, steps=steps, targets=targets, queries=queries, stop=stop)
    return cascade(row, objective, images, labels, threat, noise=noise, stop=stop)


def parts(
    version: str,
    classes: int,
    *,
    steps: int = 100,
    targets: int = 9,
    queries: int = 5000,
    stop: str = "first",
) -> Iterator[Member]:
    """The attacks of "standard" or "plus" in the order of the official code, cheap ones first."""
    restarts = 5 if version == "plus" else 1
    climb = partial(apgd, steps=steps, restarts=restarts, stop=stop)
    walk = partial(fab, steps=steps, targets=targets, stop=stop)
    yield Member("apgd-ce", climb, cross_entropy)
    if version == "plus":
        yield Member("apgd-dlr", climb, _ratio(classes))
        yield Member("fab", partial(walk, restarts=5), cross_entropy)
    if classes > 3:  # noqa: PLR2004 - the loss asks for the fourth largest logit
        draw = partial(apgd_targeted, steps=steps, targets=targets, stop=stop)
        yield Member("apgd-t", draw, cross_entropy)
    else:
        plain = partial(apgd, steps=steps, stop=stop)
        yield Member("apgd-margin", plain, negative_margin)
    yield Member("fab-t", walk, cross_entropy)
    yield Member("square", partial(square, queries=queries, stop=stop), negative_margin)


def _averaged(classes: int, steps: int, draws: int, stop: str) -> Iterator[Member]:
    """The two attacks of version "rand"."""
    climb = partial(apgd, steps=steps, draws=draws, stop=stop)
    yield Member("apgd-ce", climb, cross_entropy)
    yield Member("apgd-dlr", climb, _ratio(classes))


def _ratio(classes: int) -> Loss:
    """The DLR loss, or the margin where there is no third largest logit."""
    return difference_of_logits_ratio if classes > 2 else negative_margin  # noqa: PLR2004

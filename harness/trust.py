"""Checks of a model before it is attacked; what their flags mean is in `harness.flags`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from harness.flags import Checks
from harness.numerics import ROW_GROUP, Batches
from harness.passes import LossObjective, objective_of
from harness.seeing import predict
from harness.tensors import RoutedClassifier, is_fooled
from harness.threat import ThreatModel
from harness.views import View
from harness.yardsticks import ascend, fooled_by_yardsticks, trust_noise

if TYPE_CHECKING:
    from harness.tensors import Attack, Classifier, Images, Logits, Loss, Mask, Samples, Score

LOOKED = 128
"""First images of a suite among which those that a model has right are taken."""
FEWEST = 16
"""Images that even the smallest trial looks at: with fewer, a share says nothing."""
CHECKED = 64
"""Most images that are checked: a tenth of them is more than chance."""
ALONE = 16
"""Images that are passed by themselves: each costs a whole group of rows."""
CLOSE = 1e-4
"""Largest difference of logits, as a share of their largest size, that counts as rounding."""
FEW = 0.1
"""Share of the images from which on what fails at them is no accident."""
HUGE = 0.5
"""Linf radius in which any image can become grey, whatever it showed."""
FAINT = 1e-4
"""Noise far below one step of 8 bits (4e-3) and far above one of float32 (6e-8)."""
SMALLEST = torch.finfo(torch.float32).tiny
"""Below it float32 loses digits (denormal numbers), and some devices round to 0."""
ACCIDENT = 1
"""Images by which one ascent may beat another without a reason."""
ENOUGH_TO_SPREAD = 8
"""Images from which on a router that is in use has sent one to a second expert."""


def checks(
    model: Classifier,
    samples: Samples,
    loss: Loss,
    *,
    threat: ThreatModel | None,
    black_box: Attack | None = None,
    batch_size: int = LOOKED,
) -> Checks:
    """What a model raises by itself, and what the yardsticks reach, seen on a few images.

    Only determinism and independence of the batch are looked for on images that the model has
    wrong, too; where two passes differ, nothing else is looked for.

    Args:
        model: Frozen, in evaluation mode.
        samples: The first images of the suite.
        loss: Cross-entropy.
        threat: Ball of the yardsticks; None where there are no balls.
        black_box: A short search without gradients, where one applies.
        batch_size: Most images of one pass; at least `ROW_GROUP` are taken.
    """
    looked, size = len(samples.ids), max(batch_size, ROW_GROUP)
    logits = predict(model, samples.images, batches=Batches(size))
    flags = _pass_flags(model, samples.images, logits, size)
    right = (~is_fooled(logits, samples.labels, samples.accepted)).nonzero()[:CHECKED, 0]
    if "not-deterministic" in flags or len(right) == 0:
        return Checks(looked, flags=tuple(flags))
    case = _Case(model, samples.rows(right), loss, size)
    score, gradient = _objective(model, case).gradient(case.samples.images)
    flags += _gradient_flags(score, gradient, case.samples.images)
    flags += ["quantised-input"] if _is_quantised(case) else []
    flags += _climb_flags(case)
    flags += _routing_flags(case, threat) if isinstance(model, RoutedClassifier) else []
    ids = case.samples.ids
    if threat is None:
        return Checks(looked, tuple(ids.tolist()), tuple(flags))
    fooled = fooled_by_yardsticks(
        _objective(model, case), case.samples, gradient, threat, black_box
    )
    by_name = {name: tuple(ids[mask].tolist()) for name, mask in fooled.items()}
    return Checks(looked, tuple(ids.tolist()), tuple(flags), fooled=by_name)


class _Case(NamedTuple):
    """What is checked."""

    model: Classifier
    samples: Samples  # that the model has right
    loss: Loss
    batch_size: int


def _pass_flags(model: Classifier, images: Images, logits: Logits, size: int) -> list[str]:
    """What further passes of the same images show: all again, and some without batch mates."""
    if not _is_close(logits, predict(model, images, batches=Batches(size))):
        return ["not-deterministic"]
    rows = [image.expand(ROW_GROUP, -1, -1, -1) for image in images[:ALONE].split(1)]
    alone = torch.cat([predict(model, row, batches=Batches(ROW_GROUP))[:1] for row in rows])
    return [] if _is_close(logits[:ALONE], alone) else ["batch-dependent"]


def _is_close(logits: Logits, others: Logits) -> bool:
    """Equal but for rounding, where they were finite: what is not fails its own shard later."""
    finite = logits.isfinite().all(dim=1)
    logits, others = logits[finite], others[finite]
    scale = logits.abs().max().clamp(min=1)
    return float((logits - others).abs().max() / scale) <= CLOSE


def _gradient_flags(score: Score, gradient: Images, images: Images) -> list[str]:
    largest = gradient.flatten(1).abs().amax(dim=1)
    is_denormal = (largest > 0) & (largest < SMALLEST)
    found = {
        "zero-gradient": bool((largest == 0).any()),
        "nan-gradient": not bool(largest.isfinite().all()),
        "constant-gradient": bool(largest.any()) and _is_same(gradient) and not _is_same(images),
        "saturated": _is_common((score.loss == 0) | is_denormal),
    }
    return [name for name, is_raised in found.items() if is_raised]


def _is_same(images: Images) -> bool:
    """All are equal, bit for bit."""
    return bool((images == images[:1]).all())


def _is_common(mask: Mask) -> bool:
    return float(mask.float().mean()) > FEW


def _is_quantised(case: _Case) -> bool:
    """Faint noise, upwards only so that rounding down shows too, changes no logit."""
    images = case.samples.images
    faint = FAINT / 2 * (1 + trust_noise(case.samples, "faint").uniform(0))
    before = predict(case.model, images, batches=Batches(case.batch_size))
    shifted = (images + faint).clamp(max=1)
    after = predict(case.model, shifted, batches=Batches(case.batch_size))
    return _is_common((before == after).all(dim=1))


def _climb_flags(case: _Case) -> list[str]:
    """What steepest ascent finds in a ball where any image can become any other grey one."""
    found = ascend(_objective(case.model, case), case.samples.images, ThreatModel("linf", HUGE))
    flags = ["robust-at-huge-epsilon"] if _is_common(~found.fooled) else []
    return [*flags, *(["loss-not-rising"] if _is_common(~found.rises) else [])]


def _routing_flags(case: _Case, threat: ThreatModel | None) -> list[str]:
    flags = ["one-expert"] if _uses_one_expert(case) else []
    if threat is None:
        return flags
    own, images = _objective(case.model, case), case.samples.images
    attached = ascend(own, images, threat).fooled
    cut = ascend(own.through(View("detached")), images, threat).fooled
    gain = int(cut.sum()) - int(attached.sum())
    hides = gain > ACCIDENT and gain >= FEW * len(images)
    return [*flags, *(["router-hides-experts"] if hides else [])]


@torch.no_grad()
def _uses_one_expert(case: _Case) -> bool:
    """In some layer that has several, the same expert comes first for every token."""
    images = case.samples.images
    if len(images) < ENOUGH_TO_SPREAD:
        return False
    passes = [case.model.routed(batch).routes for batch in images.split(case.batch_size)]  # type: ignore[operator]
    for layer in zip(*passes, strict=True):
        first = torch.cat([routing.experts[..., 0].flatten() for routing in layer])
        if layer[0].gates.shape[2] > 1 and bool((first == first[0]).all()):
            return True
    return False


def _objective(model: Classifier, case: _Case) -> LossObjective:
    samples = case.samples
    return objective_of(
        model,
        case.loss,
        samples.labels,
        batch_size=case.batch_size,
        accepted=samples.accepted,
    )

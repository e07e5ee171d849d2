"""Flags: what a reader of a number must know before believing it, and those that records raise."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.records import Record

FLAGS = {
    "limited": "only the first images of the suite were used: not for the board",
    "other-attacks": "the attacks are not the suite's: not for the board",
    "other-data": "the images are another copy than the suite's: a board of their own",
    "partial-data": "the copy has fewer images than the suite's choice: not for the board",
    "partial-training": "trained on a copy with fewer images than the data set has: not for the "
    "board",
    "unverified-data": "the suite has no fingerprint of the official images yet",
    "attack-failed": "an attack raised or broke the rules on some images, which count as robust",
    "weaker-than-noise": "random noise of the same size fools more images than an attack does",
    "not-deterministic": "two passes of the same images gave different logits",
    "batch-dependent": "an image's logits depend on the other images of its batch",
    "zero-gradient": "the loss has no gradient at some images: gradient attacks cannot see them",
    "robust-at-huge-epsilon": "more than a tenth of the images withstand ten gradient steps in a "
    "ball of Linf 0.5, in which any image can become grey: the gradient is hidden",
    "loss-not-rising": "on more than a tenth of the images gradient steps do not raise the loss",
    "tf32": "gradients were computed with TF32 products; survivors were attacked again in float32",
    "bfloat16-gradients": "gradients were computed in bfloat16; survivors were attacked again in "
    "float32",
    "compiled": "gradients were computed by compiled passes, whose last bits may differ",
    "cuda-graphs": "gradients were computed by captured CUDA graphs, whose last bits may differ",
    "missing-images": "some shards could not be done: their images are not in the numbers",
}
"""What each flag means, in a sentence."""


def record_flags(records: Sequence[Record], controls: Sequence[str]) -> list[str]:
    """The flags that records raise.

    Args:
        records: Of one model.
        controls: Labels of the attacks that are yardsticks, such as random noise.
    """
    flags = []
    if any("failed" in record.flags for record in records):
        flags.append("attack-failed")
    if _noise_wins(records, controls):
        flags.append("weaker-than-noise")
    return flags


def _noise_wins(records: Sequence[Record], controls: Sequence[str]) -> bool:
    fooled: dict[tuple[str, str], int] = {}
    for record in records:
        key = (record.epsilon, record.attack)
        fooled[key] = fooled.get(key, 0) + (not record.is_robust)
    return any(
        count > other
        for (epsilon, attack), count in fooled.items()
        if attack in controls
        for (other_epsilon, other_attack), other in fooled.items()
        if other_epsilon == epsilon and other_attack not in controls
    )

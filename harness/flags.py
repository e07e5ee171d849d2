"""Flags: what a reader of a number must know before believing it, and those that records raise."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from harness.records import Record

FLAGS = {
    "limited": "only the first images of the suite were used: not for the board",
    "other-attacks": "the attacks are not the suite's: not for the board",
    "transfer": "attacks were made on other models: not for the board",
    "other-data": "the images are another copy than the suite's: a board of their own",
    "partial-data": "the copy has fewer images than the suite's choice: not for the board",
    "partial-training": "trained on a copy with fewer images than the data set has: not for the "
    "board",
    "started-from-weights": "its training started from weights of a file, not from a fresh model",
    "unverified-data": "the suite has no fingerprint of the official images yet",
    "attack-failed": "an attack raised or broke the rules on some images, which count as robust",
    "weaker-than-noise": "random noise of the same size fools more images than an attack does",
    "weaker-than-one-step": "a single gradient step fools more of the checked images than an "
    "attack does",
    "weaker-than-black-box": "a black-box search with 200 queries fools more of the checked images "
    "than a gradient attack does: the gradient is hidden, or the attack is weak",
    "not-deterministic": "two passes of the same images gave different logits",
    "batch-dependent": "an image's logits depend on the other images of its batch",
    "zero-gradient": "the loss has no gradient at some images: gradient attacks cannot see them",
    "nan-gradient": "the gradient is NaN or infinite at some images: gradient attacks cannot use "
    "it there",
    "constant-gradient": "the gradient is the same at all images, though the images differ: it "
    "is not the model's own",
    "saturated": "the logits are so far apart that cross-entropy is flat at more than a tenth of "
    "the images: attacks that climb it are blind there; take dlr or margin",
    "quantised-input": "noise of 1e-4 changes nothing at more than a tenth of the images: the "
    "model rounds its input, which hides the gradient",
    "robust-at-huge-epsilon": "more than a tenth of the images withstand ten gradient steps in a "
    "ball of Linf 0.5, in which any image can become grey: the gradient is hidden",
    "loss-not-rising": "on more than a tenth of the images gradient steps do not raise the loss",
    "router-hides-experts": "gradient steps fool more images when they ignore the router: its "
    "gradient hides that of the experts",
    "one-expert": "in some layer one expert comes first for all tokens of all checked images",
    "certificate-broken": "an attack found a perturbation smaller than the radius within which a "
    "certificate says that there is none: the certificate is wrong",
    "tf32": "gradients were computed with TF32 products; survivors were attacked again in float32",
    "bfloat16-gradients": "gradients were computed in bfloat16; survivors were attacked again in "
    "float32",
    "compiled": "gradients were computed by compiled passes, whose last bits may differ",
    "cuda-graphs": "gradients were computed by captured CUDA graphs, whose last bits may differ",
    "missing-images": "some shards could not be done: their images are not in the numbers",
}
"""What each flag means, in a sentence."""


UNRANKED = (
    "limited",
    "other-attacks",
    "transfer",
    "partial-data",
    "partial-training",
    "missing-images",
)
"""Flags with which a row never enters the board."""

BLACK_BOX = "black-box"
ONE_STEP = "one-step"
NOISE = "noise"
CERTIFIED_RADIUS = "certified_radius"
"""Measure of a probe that certifies: no smaller perturbation changes the prediction."""
LOOSE = 1e-4
"""Share of a certified radius by which rounding in float32 may cut it short, ..."""
TINY = 1e-6
"""... and what the size of a perturbation itself is rounded by, in [0, 1] units."""
LUCK = {NOISE: 0, ONE_STEP: 0, BLACK_BOX: 1}
"""Images by which each yardstick must win to count; a search that draws may win one by luck."""


@dataclass(frozen=True)
class Checks:
    """What the checks of a model found, on images that it has right.

    Attributes:
        looked: First images of the suite among which they were found.
        samples: Ids of the checked images.
        flags: What the model raises by itself.
        epsilon: Radius of the yardsticks, as the suite writes it.
        fooled: Ids of the checked images that each yardstick fools; without those not taken.
    """

    looked: int
    samples: tuple[int, ...] = ()
    flags: tuple[str, ...] = ()
    epsilon: str = ""
    fooled: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The findings as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Checks:
        """The findings that `to_json` wrote."""
        return cls(
            looked=content["looked"],
            samples=tuple(content["samples"]),
            flags=tuple(content["flags"]),
            epsilon=content["epsilon"],
            fooled={name: tuple(samples) for name, samples in content["fooled"].items()},
        )


NOTHING_CHECKED = Checks(looked=0)


def record_flags(
    records: Sequence[Record],
    controls: Sequence[str],
    checks: Checks = NOTHING_CHECKED,
    *,
    exempt: Sequence[str] = (),
) -> list[str]:
    """The flags that records raise.

    Args:
        records: Of one model.
        controls: Labels of the attacks that are yardsticks, such as random noise.
        checks: What the same model gave before any attack.
        exempt: Labels of the attacks that aim at routes, or are judged in a part of the model.
    """
    failed = ["attack-failed"] if any("failed" in record.flags for record in records) else []
    broken = ["certificate-broken"] if any(map(_breaks_certificate, records)) else []
    judged = [record for record in records if record.attack not in exempt]
    fooled: Counter[tuple[str, str]] = Counter()
    for record in judged:
        fooled[record.epsilon, record.attack] += not record.is_robust
    return [*failed, *broken, *weaker_flags(judged, fooled, controls, checks)]


def weaker_flags(
    records: Sequence[Record],
    fooled: Mapping[tuple[str, str], int],
    controls: Sequence[str],
    checks: Checks,
) -> list[str]:
    """The flags of attacks that a yardstick beats.

    Args:
        records: Of one model; at least those of the images that were checked.
        fooled: How many of all images each attack fools at each epsilon: (epsilon, label).
        controls: Labels of the attacks that are yardsticks.
        checks: What the same model gave before any attack.
    """
    attacks = [record for record in records if record.attack not in controls]
    stronger = set(_stronger_yardsticks(attacks, checks))
    if _noise_wins(fooled, controls):
        stronger.add(NOISE)
    return [f"weaker-than-{name}" for name in LUCK if name in stronger]


def _breaks_certificate(record: Record) -> bool:
    """The whole model is fooled nearer than a probe has certified, beyond rounding."""
    radius = record.measures.get(CERTIFIED_RADIUS)
    if radius is None or not record.is_correct:
        return False
    is_fooled = (
        not record.is_robust
        if record.view == "full"
        else record.measures.get("full_fooled", 0.0) > 0
    )
    return is_fooled and record.norm < radius * (1 - LOOSE) - TINY


def _stronger_yardsticks(records: Sequence[Record], checks: Checks) -> Iterator[str]:
    """The yardsticks that fool more of the checked images than some attack does.

    Only attacks that asked for gradients somewhere are held against more than noise.
    """
    checked = set(checks.samples)
    white_box = {record.attack for record in records if record.backwards > 0}
    by_attack: dict[str, list[Record]] = {}
    for record in records:
        if record.epsilon == checks.epsilon and record.sample in checked:
            by_attack.setdefault(record.attack, []).append(record)
    for name, samples in checks.fooled.items():
        for attack, reached in by_attack.items():
            if name != NOISE and attack not in white_box:
                continue
            wanted = sum(record.sample in samples for record in reached)
            if wanted > sum(not record.is_robust for record in reached) + LUCK[name]:
                yield name


def _noise_wins(fooled: Mapping[tuple[str, str], int], controls: Sequence[str]) -> bool:
    """At some epsilon, a control fools more images than some attack does."""
    return any(
        count > other
        for (epsilon, attack), count in fooled.items()
        if attack in controls
        for (other_epsilon, other_attack), other in fooled.items()
        if other_epsilon == epsilon and other_attack not in controls
    )

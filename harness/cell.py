"""Where attacks are called and judged: the only place that decides what fooled a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.errors import HarnessError, ModelError, WorkerError
from harness.numerics import Ledger, LossObjective, predict
from harness.records import Record
from harness.tensors import (
    Attack,
    Classifier,
    Images,
    Logits,
    Loss,
    Mask,
    Noise,
    Observation,
    Probe,
    Rows,
    Samples,
    is_fooled,
    margin,
    noise_key,
)
from harness.threat import ThreatModel


class BoundAttack(NamedTuple):
    """An attack of a suite, ready to be called."""

    label: str  # its name in the records
    run: Attack
    loss: Loss
    parameters: Mapping[str, Any]
    epsilons: tuple[str, ...] = ()  # where it runs; empty for the whole grid


@dataclass(frozen=True)
class Protocol:
    """How the epsilons of a grid share their work.

    Attributes:
        name: "nested": upwards, and an image fooled at a smaller epsilon stays fooled;
            "independent": every image at every epsilon, clean errors too; "descending":
            downwards, and an image that survives a larger epsilon counts as robust below (a
            preview that never ranks).
    """

    name: str

    @property
    def is_downwards(self) -> bool:
        """Large epsilons come first."""
        return self.name == "descending"

    def settled(self, fooled: Mask) -> Mask:
        """The images whose fate is known at all later epsilons."""
        if self.name == "nested":
            return fooled
        return ~fooled if self.is_downwards else torch.zeros_like(fooled)


@dataclass(frozen=True)
class Setting:
    """All that the evaluation of a shard needs, but its images.

    Attributes:
        model: Frozen, in evaluation mode, in float32.
        attacks: In the order of the suite.
        probes: Measures taken on attacked images, by name.
        threats: Ball for each epsilon as the suite writes it, upwards.
        protocol: How epsilons share work.
        seed: Of the attacks' noise.
        batch_size: Most images of one pass.
    """

    model: Classifier
    attacks: Sequence[BoundAttack]
    probes: Sequence[Probe]
    threats: Mapping[str, ThreatModel]
    protocol: Protocol
    seed: int
    batch_size: int


class Findings(NamedTuple):
    """What the evaluation of some images found."""

    records: list[Record]
    adversarial: dict[tuple[str, str], Images]  # by attack and epsilon, one for each image


class _Verdict(NamedTuple):
    """The harness's judgement of what an attack proposed."""

    images: Images  # the proposal, or the clean image where it was refused
    logits: Logits
    reasons: list[str]  # why a proposal was refused; empty where it was not


class _Proposal(NamedTuple):
    images: Images
    reasons: list[str]


def evaluate(setting: Setting, samples: Samples) -> Findings:
    """The records of some images under every attack at every epsilon, sample by sample."""
    clean_logits = predict(setting.model, samples.images, batch_size=setting.batch_size)
    _refuse_nan(clean_logits, samples.ids)
    records: list[Record] = []
    adversarial = {}
    for attack in setting.attacks:
        for epsilon, rows, images in _sweep(setting, attack, samples, clean_logits):
            records += rows
            adversarial[attack.label, epsilon] = images
    order = {label: place for place, label in enumerate(_ranks(setting))}
    records.sort(key=lambda record: order[record.attack, record.epsilon])
    place = {int(sample): index for index, sample in enumerate(samples.ids)}
    records.sort(key=lambda record: place[record.sample])
    return Findings(records, adversarial)


def _refuse_nan(logits: Logits, ids: Rows) -> None:
    broken = ids[~logits.isfinite().all(dim=1)]
    if len(broken) > 0:
        raise ModelError(
            f"the model's logits are NaN or infinite on clean image {int(broken[0])} "
            f"and {len(broken) - 1} others of its shard; check the weights"
        )


def _ranks(setting: Setting) -> Iterator[tuple[str, str]]:
    for attack in setting.attacks:
        for epsilon, _ in _grid(setting, attack):
            yield attack.label, epsilon


def _grid(setting: Setting, attack: BoundAttack) -> list[tuple[str, ThreatModel]]:
    """The balls in which an attack runs, upwards."""
    return [
        (epsilon, threat)
        for epsilon, threat in setting.threats.items()
        if not attack.epsilons or epsilon in attack.epsilons
    ]


def _sweep(
    setting: Setting, attack: BoundAttack, samples: Samples, clean_logits: Logits
) -> Iterator[tuple[str, list[Record], Images]]:
    """One attack over the grid: the records and the images at each epsilon."""
    clean_errors = is_fooled(clean_logits, samples.labels, samples.accepted)
    records = _clean_records(attack.label, samples, clean_logits)
    settled = torch.zeros_like(clean_errors)
    if setting.protocol.name != "independent":
        settled = clean_errors
    points = samples.images.clone()
    grid = _grid(setting, attack)
    for epsilon, threat in reversed(grid) if setting.protocol.is_downwards else grid:
        live = (~settled).nonzero()[:, 0]
        records = [_carried(record, epsilon) for record in records]
        if len(live) > 0:
            batch = samples.rows(live)
            fresh, points[live] = _attacked(setting, attack, batch, clean_logits[live], threat)
            for row, record in zip(live.tolist(), fresh, strict=True):
                records[row] = replace(record, epsilon=epsilon)
            fooled = torch.tensor([not record.is_robust for record in records])
            settled = settled | setting.protocol.settled(fooled.to(settled.device))
        yield epsilon, records, points.clone()


def _clean_records(label: str, samples: Samples, logits: Logits) -> list[Record]:
    """The records before any attack: all that is known of clean errors."""
    margins = margin(logits, samples.labels, samples.accepted)
    errors = is_fooled(logits, samples.labels, samples.accepted)
    return [
        Record(
            sample=sample,
            attack=label,
            epsilon="",
            label=correct,
            labels=_label_set(samples, row),
            clean_prediction=prediction,
            clean_margin=gap,
            adversarial_prediction=prediction,
            adversarial_margin=gap,
            flags=("clean-error",) if is_error else (),
        )
        for row, (sample, correct, prediction, gap, is_error) in enumerate(
            zip(
                samples.ids.tolist(),
                samples.labels.tolist(),
                logits.argmax(dim=1).tolist(),
                margins.tolist(),
                errors.tolist(),
                strict=True,
            )
        )
    ]


def _label_set(samples: Samples, row: int) -> tuple[int, ...]:
    """All correct classes of an image, where they are several."""
    if samples.accepted is None:
        return ()
    return tuple(samples.accepted[row].nonzero()[:, 0].tolist())


def _carried(record: Record, epsilon: str) -> Record:
    """The record of an image whose fate was known before this epsilon."""
    if record.epsilon == "" or "carried" in record.flags:
        return replace(record, epsilon=epsilon)
    flags = (*record.flags, "carried")
    return replace(record, epsilon=epsilon, forwards=0, backwards=0, flags=flags)


def _attacked(
    setting: Setting,
    attack: BoundAttack,
    batch: Samples,
    clean_logits: Logits,
    threat: ThreatModel,
) -> tuple[list[Record], Images]:
    """Run one attack on some images at one epsilon, judge it, and write down what happened."""
    ledger = Ledger(len(batch.ids), batch.images.device)
    proposal = _propose(setting, attack, batch, threat, ledger)
    verdict = _judge(setting, proposal, batch, threat)
    observed = Observation(
        setting.model,
        batch.labels,
        batch.images,
        verdict.images,
        clean_logits,
        verdict.logits,
    )
    records = _clean_records(attack.label, batch, clean_logits)
    return _described(records, verdict, ledger, threat, batch, _measured(setting, observed)), (
        verdict.images
    )


def _propose(
    setting: Setting, attack: BoundAttack, batch: Samples, threat: ThreatModel, ledger: Ledger
) -> _Proposal:
    """What the attack proposes; images that make it raise are found by asking one at a time."""
    everything = torch.arange(len(batch.ids), device=batch.images.device)
    with suppress(_Refused):
        return _Proposal(
            _called(setting, attack, batch, threat, ledger, everything), [""] * len(everything)
        )
    ledger.clear()
    images = batch.images.clone()
    reasons = []
    for row in everything.split(1):
        try:
            images[row] = _called(setting, attack, batch, threat, ledger, row)
            reasons.append("")
        except _Refused as refused:
            reasons.append(str(refused))
    return _Proposal(images, reasons)


class _Refused(Exception):  # noqa: N818 - never leaves this file
    """The attack raised, or returned what are no images."""


def _called(
    setting: Setting,
    attack: BoundAttack,
    batch: Samples,
    threat: ThreatModel,
    ledger: Ledger,
    rows: Rows,
) -> Images:
    _, images, labels, accepted = batch.rows(rows)
    objective = LossObjective(
        setting.model, attack.loss, labels, ledger, rows, setting.batch_size, accepted
    )
    key = noise_key(setting.seed, attack.label)
    shape = (images.shape[1], images.shape[2], images.shape[3])
    noise = Noise(key, batch.ids[rows], shape)
    try:
        proposed = attack.run(
            objective, images.clone(), labels, threat, noise=noise, **attack.parameters
        )
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise WorkerError(
            f"{attack.label}: out of memory; run again with a smaller --batch-size"
        ) from error
    except HarnessError:  # it was asked for something that cannot be, for any image
        raise
    except Exception as error:  # an attack of a plugin may raise anything; the run goes on
        raise _Refused(f"{type(error).__name__}: {error}") from error
    if not isinstance(proposed, Tensor):
        raise _Refused(f"returned {type(proposed).__name__}, not images")
    if proposed.shape != images.shape or proposed.dtype != images.dtype:
        raise _Refused(
            f"returned {proposed.dtype} {tuple(proposed.shape)}, "
            f"not {images.dtype} {tuple(images.shape)}"
        )
    return proposed.detach()


def _judge(setting: Setting, proposal: _Proposal, batch: Samples, threat: ThreatModel) -> _Verdict:
    """Ask the model again, and refuse proposals that an adversary may not show."""
    finite = proposal.images.flatten(1).isfinite().all(dim=1)
    allowed = threat.contains(proposal.images, batch.images)
    sizes = threat.size(proposal.images - batch.images).tolist()
    reasons = [
        reason or _refusal(is_finite, is_allowed, size, threat)
        for reason, is_finite, is_allowed, size in zip(
            proposal.reasons, finite.tolist(), allowed.tolist(), sizes, strict=True
        )
    ]
    fine = torch.tensor([not reason for reason in reasons], device=batch.images.device)
    images = torch.where(fine[:, None, None, None], proposal.images, batch.images)
    logits = predict(setting.model, images, batch_size=setting.batch_size)
    reasons = [
        reason or ("" if is_finite else "the model's logits are NaN or infinite there")
        for reason, is_finite in zip(reasons, logits.isfinite().all(dim=1).tolist(), strict=True)
    ]
    return _Verdict(images, logits, reasons)


def _refusal(is_finite: bool, is_allowed: bool, size: float, threat: ThreatModel) -> str:  # noqa: FBT001 - one row of four columns
    if not is_finite:
        return "proposed NaN or infinite pixels"
    if not is_allowed:
        return (
            f"proposed an image outside the ball or the pixel range "
            f"({threat.norm} {size:.6g}, epsilon {threat.epsilon:.6g})"
        )
    return ""


def _measured(setting: Setting, observed: Observation) -> list[dict[str, float]]:
    """The numbers that the probes take, for each image."""
    measures: list[dict[str, float]] = [{} for _ in observed.labels]
    for probe in setting.probes:
        for name, values in probe(observed).items():
            for measure, value in zip(measures, values.tolist(), strict=True):
                if -float("inf") < value < float("inf"):  # JSON holds no others
                    measure[name] = value
    return measures


def _described(
    records: list[Record],
    verdict: _Verdict,
    ledger: Ledger,
    threat: ThreatModel,
    batch: Samples,
    measures: list[dict[str, float]],
) -> list[Record]:
    """The records, with what the attack reached."""
    columns = zip(
        records,
        verdict.reasons,
        verdict.logits.argmax(dim=1).tolist(),
        margin(verdict.logits, batch.labels, batch.accepted).tolist(),
        threat.size(verdict.images - batch.images).tolist(),
        ledger.first_loss.tolist(),
        ledger.best_loss.tolist(),
        ledger.last_loss.tolist(),
        ledger.forwards.tolist(),
        ledger.backwards.tolist(),
        measures,
        strict=True,
    )
    return [
        replace(
            record,
            adversarial_prediction=None if reason else prediction,
            adversarial_margin=None if reason else gap,
            norm=size,
            first_loss=_finite(first),
            best_loss=_finite(best),
            last_loss=_finite(last),
            forwards=forwards,
            backwards=backwards,
            flags=(*record.flags, *(("failed",) if reason else ())),
            reason=reason,
            measures=measure,
        )
        for (
            record,
            reason,
            prediction,
            gap,
            size,
            first,
            best,
            last,
            forwards,
            backwards,
            measure,
        ) in columns
    ]


def _finite(number: float) -> float | None:
    """None for what JSON cannot hold."""
    return number if -float("inf") < number < float("inf") else None

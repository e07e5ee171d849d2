"""A shard of a cell: every attack at every epsilon under a protocol, image by image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from harness.errors import ModelError
from harness.judging import BoundAttack, Defence, Verdict, attempt
from harness.ledger import Ledger
from harness.numerics import ROW_GROUP
from harness.records import Record
from harness.seeing import Context, clean_pass, looked, router_is_hard
from harness.tensors import (
    CleanObservation,
    Images,
    Logits,
    Mask,
    Noise,
    Observation,
    PerImage,
    RoutedClassifier,
    Rows,
    Samples,
    is_fooled,
    margin,
    noise_key,
)
from harness.threat import ThreatModel
from harness.views import FULL


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
        defence: The model, and what it is climbed through.
        attacks: In the order of the suite.
        threats: Ball for each epsilon as the suite writes it, upwards.
        protocol: How epsilons share work.
        seed: Of the attacks' noise.
    """

    defence: Defence
    attacks: Sequence[BoundAttack]
    threats: Mapping[str, ThreatModel]
    protocol: Protocol
    seed: int


class Findings(NamedTuple):
    """What the evaluation of some images found."""

    records: list[Record]
    adversarial: dict[tuple[str, str], Images]  # by attack and epsilon, one for each image


def evaluate(setting: Setting, samples: Samples) -> Findings:
    """The records of some images under every attack at every epsilon, sample by sample."""
    defence = setting.defence
    records: list[Record] = []
    adversarial = {}
    with _seeded(setting.seed, samples):
        context = clean_pass(defence.model, samples, batches=defence.batches, draws=defence.draws)
        _refuse_nan(context.logits, samples.ids)
        taken = _clean_measures(setting, samples, context)
        for attack in setting.attacks:
            aimed = _with_gradient(attack, defence, samples)
            for epsilon, rows, images in _sweep(setting, aimed, samples, context):
                records += rows
                adversarial[attack.label, epsilon] = images
    if defence.clean_probes:
        records = [
            replace(record, measures={**taken[record.sample], **record.measures})
            for record in records
        ]
    order = {label: place for place, label in enumerate(_ranks(setting))}
    records.sort(key=lambda record: order[record.attack, record.epsilon])
    place = {int(sample): index for index, sample in enumerate(samples.ids)}
    records.sort(key=lambda record: place[record.sample])
    return Findings(records, adversarial)


@contextmanager
def _seeded(seed: int, samples: Samples) -> Iterator[None]:
    """The random numbers of a model that draws its own depend on the shard alone."""
    device = samples.images.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(noise_key(seed, "model", str(samples.ids.tolist())) // 2)
        yield


def _with_gradient(attack: BoundAttack, defence: Defence, samples: Samples) -> BoundAttack:
    """The attack, with the router's view mixed where a hard router would show no gradient."""
    model = defence.model
    if attack.view.name != "router" or not isinstance(model, RoutedClassifier):
        return attack
    is_hard = router_is_hard(model, samples.images[:ROW_GROUP])
    return attack._replace(view=replace(attack.view, is_mixed=is_hard))


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
    setting: Setting, attack: BoundAttack, samples: Samples, context: Context
) -> Iterator[tuple[str, list[Record], Images]]:
    """One attack over the grid: the records and the images at each epsilon."""
    clean_errors = is_fooled(context.logits, samples.labels, samples.accepted)
    records = _clean_records(attack, samples, context.logits)
    settled = torch.zeros_like(clean_errors)
    if setting.protocol.name != "independent":
        settled = clean_errors
    points = samples.images.clone()
    is_coupled = setting.defence.batches.group > 1
    grid = _grid(setting, attack)
    for epsilon, threat in reversed(grid) if setting.protocol.is_downwards else grid:
        live = (~settled).nonzero()[:, 0]
        if is_coupled and len(live) > 0:
            live = torch.arange(len(settled), device=live.device)
        records = [_carried(record, epsilon) for record in records]
        if len(live) > 0:
            batch = samples.rows(live)
            fresh, points[live] = _attacked(
                setting, attack.rows(live), batch, context.rows(live), threat
            )
            for row, record in zip(live.tolist(), fresh, strict=True):
                if not settled[row]:
                    records[row] = replace(record, epsilon=epsilon)
            fooled = torch.tensor([not record.is_robust for record in records])
            settled = settled | setting.protocol.settled(fooled.to(settled.device))
        yield epsilon, records, points.clone()


def _clean_records(attack: BoundAttack, samples: Samples, logits: Logits) -> list[Record]:
    """The records before any attack: all that is known of clean errors."""
    margins = margin(logits, samples.labels, samples.accepted)
    errors = is_fooled(logits, samples.labels, samples.accepted)
    return [
        Record(
            sample=sample,
            attack=attack.label,
            epsilon="",
            view=attack.view.judge.name,
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
    context: Context,
    threat: ThreatModel,
) -> tuple[list[Record], Images]:
    """Run one attack on some images at one epsilon, judge it, and write down what happened."""
    defence = setting.defence
    ledger = Ledger(len(batch.ids), batch.images.device)
    verdict = attempt(defence, attack, batch, context, threat, seed=setting.seed, ledger=ledger)
    whole = verdict.look
    if attack.view.judge != FULL:
        whole = looked(defence.model, verdict.images, batches=defence.batches, draws=defence.draws)
    shape = (batch.images.shape[1], batch.images.shape[2], batch.images.shape[3])
    observed = Observation(
        defence.model,
        batch.labels,
        batch.images,
        verdict.images,
        context.logits,
        verdict.look.logits,
        batch.accepted,
        context.clean_routes,
        whole.routes,
        threat,
        Noise(noise_key(setting.seed, "probes"), batch.ids, shape),
        defence.batches.over,
    )
    measures = _measured(defence, observed)
    if attack.view.judge != FULL:
        measures = _with_full_view(measures, whole.logits, batch)
    records = _clean_records(attack, batch, context.logits)
    return _described(records, verdict, ledger, threat, batch, measures), verdict.images


def _with_full_view(
    measures: list[dict[str, float]], logits: Logits, batch: Samples
) -> list[dict[str, float]]:
    """The measures, with what the whole model says of images that were judged in a part of it."""
    gaps = margin(logits, batch.labels, batch.accepted).tolist()
    fooled = is_fooled(logits, batch.labels, batch.accepted).tolist()
    return [
        {**measure, **_finite_ones({"full_margin": gap, "full_fooled": float(was_fooled)})}
        for measure, gap, was_fooled in zip(measures, gaps, fooled, strict=True)
    ]


def _clean_measures(
    setting: Setting, samples: Samples, context: Context
) -> dict[int, dict[str, float]]:
    """The numbers that probes of the clean images take, by sample; all its records carry them."""
    largest = list(setting.threats.values())[-1]
    observed = CleanObservation(
        setting.defence.model, samples, context.logits, largest, context.clean_routes
    )
    found = _by_image(setting.defence.clean_probes, observed, len(samples.ids))
    return dict(zip(samples.ids.tolist(), found, strict=True))


def _measured(defence: Defence, observed: Observation) -> list[dict[str, float]]:
    """The numbers that the probes take, for each image."""
    return _by_image(defence.probes, observed, len(observed.labels))


def _by_image(
    probes: Sequence[Callable[[Any], Mapping[str, PerImage]]], observed: Any, count: int
) -> list[dict[str, float]]:
    measures: list[dict[str, float]] = [{} for _ in range(count)]
    for probe in probes:
        for name, values in probe(observed).items():
            for measure, value in zip(measures, values.tolist(), strict=True):
                measure.update(_finite_ones({name: value}))
    return measures


def _finite_ones(measure: dict[str, float]) -> dict[str, float]:
    """Those of some numbers that JSON can hold."""
    return {name: value for name, value in measure.items() if _finite(value) is not None}


def _described(
    records: list[Record],
    verdict: Verdict,
    ledger: Ledger,
    threat: ThreatModel,
    batch: Samples,
    measures: list[dict[str, float]],
) -> list[Record]:
    """The records, with what the attack reached."""
    columns = zip(
        records,
        verdict.reasons,
        verdict.look.logits.argmax(dim=1).tolist(),
        margin(verdict.look.logits, batch.labels, batch.accepted).tolist(),
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

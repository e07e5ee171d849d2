"""What an attack proposes and the harness disposes: the only place that decides who is fooled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.errors import HarnessError, WorkerError
from harness.ledger import Ledger
from harness.numerics import Batches, is_out_of_memory
from harness.passes import LossObjective, Surrogate
from harness.seeing import Context, Look, looked
from harness.tensors import (
    Attack,
    Classifier,
    CleanProbe,
    Images,
    Loss,
    Mask,
    Noise,
    Probe,
    Rows,
    Samples,
    is_fooled,
    noise_key,
)
from harness.threat import ThreatModel
from harness.views import FULL, View


class BoundAttack(NamedTuple):
    """An attack of a suite, ready to be called."""

    label: str  # its name in the records
    run: Attack
    loss: Loss
    parameters: Mapping[str, Any]
    epsilons: tuple[str, ...] = ()  # where it runs; empty for the whole grid
    view: View = FULL

    def rows(self, index: Rows) -> BoundAttack:
        """The attack on some of its images: their starting points, where it was given some."""
        start = self.parameters.get("start")
        if start is None:
            return self
        chosen = [points[index] for points in start]
        return self._replace(parameters={**self.parameters, "start": chosen})


@dataclass(frozen=True)
class Defence:
    """What attacks are up against.

    Attributes:
        model: Frozen, in evaluation mode; its word in float32 is final.
        batches: How many images go through it at once.
        probes: Measures taken on attacked images.
        clean_probes: Measures taken once, on the clean images.
        surrogate: A cheaper copy to climb; None where attacks climb the model itself.
        draws: Passes whose mean is the prediction of a model that draws random numbers.
    """

    model: Classifier
    batches: Batches
    probes: Sequence[Probe] = ()
    clean_probes: Sequence[CleanProbe] = ()
    surrogate: Surrogate | None = None
    draws: int = 1


class Verdict(NamedTuple):
    """The harness's judgement of what an attack proposed."""

    images: Images  # the proposal, or the clean image where it was refused
    look: Look  # in the attack's view
    reasons: list[str]  # why a proposal was refused; empty where it was not


def attempt(  # noqa: PLR0913 - one attack on some images
    defence: Defence,
    attack: BoundAttack,
    batch: Samples,
    context: Context,
    threat: ThreatModel,
    *,
    seed: int,
    ledger: Ledger,
) -> Verdict:
    """Let an attack propose, and judge it; what other numbers leave is attacked in float32."""
    asked = _Asked(defence, attack, threat, seed, defence.surrogate)
    verdict = _judged(asked, batch, context, ledger)
    surrogate = defence.surrogate
    if surrogate is None or surrogate.numbers == "float32":
        return verdict
    left = (~_is_done(verdict, batch)).nonzero()[:, 0]
    if len(left) == 0:
        return verdict
    exact = None if surrogate.model is defence.model else Surrogate(surrogate.model)
    again = replace(asked, attack=attack.rows(left), surrogate=exact)
    spent = Ledger(len(left), batch.images.device)
    second = _judged(again, batch.rows(left), context.rows(left), spent)
    ledger.add(left, spent)
    reasons = list(verdict.reasons)
    for row, reason in zip(left.tolist(), second.reasons, strict=True):
        reasons[row] = reason
    return Verdict(
        verdict.images.index_copy(0, left, second.images),
        verdict.look.replaced(left, second.look),
        reasons,
    )


def _is_done(verdict: Verdict, batch: Samples) -> Mask:
    """Which images are fooled; what was refused may come of the other numbers."""
    refused = torch.tensor([bool(reason) for reason in verdict.reasons])
    fooled = is_fooled(verdict.look.logits, batch.labels, batch.accepted)
    return fooled & ~refused.to(fooled.device)


@dataclass(frozen=True)
class _Asked:
    """Who is asked to fool whom, and how."""

    defence: Defence
    attack: BoundAttack
    threat: ThreatModel
    seed: int
    surrogate: Surrogate | None


class _Proposal(NamedTuple):
    images: Images
    reasons: list[str]


def _judged(asked: _Asked, batch: Samples, context: Context, ledger: Ledger) -> Verdict:
    proposal = _propose(asked, batch, context, ledger)
    return _judge(asked, proposal, batch, context)


def _propose(asked: _Asked, batch: Samples, context: Context, ledger: Ledger) -> _Proposal:
    """What the attack proposes; images that make it raise are found by asking one at a time.

    Where a model couples images, one that makes the attack raise takes all others with it.
    """
    everything = torch.arange(len(batch.ids), device=batch.images.device)
    try:
        return _Proposal(_called(asked, batch, context, ledger, everything), [""] * len(everything))
    except _Refused as refused:
        if asked.defence.batches.group > 1:
            return _Proposal(batch.images.clone(), [str(refused)] * len(everything))
    ledger.clear()
    images = batch.images.clone()
    reasons = []
    for row in everything.split(1):
        try:
            images[row] = _called(asked, batch, context, ledger, row)
            reasons.append("")
        except _Refused as refused:
            reasons.append(str(refused))
    return _Proposal(images, reasons)


class _Refused(Exception):  # noqa: N818 - never leaves this file
    """The attack raised, or returned what are no images."""


def _called(asked: _Asked, batch: Samples, context: Context, ledger: Ledger, rows: Rows) -> Images:
    attack, defence = asked.attack.rows(rows), asked.defence
    _, images, labels, _ = batch.rows(rows)
    objective = LossObjective(
        defence.model,
        attack.loss,
        context.rows(rows),
        ledger,
        rows,
        defence.batches,
        surrogate=asked.surrogate,
        draws=defence.draws,
    ).through(attack.view)
    key = noise_key(asked.seed, attack.label)
    shape = (images.shape[1], images.shape[2], images.shape[3])
    noise = Noise(key, batch.ids[rows], shape)
    try:
        proposed = attack.run(
            objective, images.clone(), labels, asked.threat, noise=noise, **attack.parameters
        )
    except HarnessError:  # it was asked for something that cannot be, for any image
        raise
    except Exception as error:  # an attack of a plugin may raise anything; the run goes on
        if is_out_of_memory(error):
            raise WorkerError(
                f"{attack.label}: out of memory with {defence.batches.size} images at once; take "
                "a smaller shard_size, or a device with more memory"
            ) from error
        raise _Refused(f"{type(error).__name__}: {error}") from error
    if not isinstance(proposed, Tensor):
        raise _Refused(f"returned {type(proposed).__name__}, not images")
    if proposed.shape != images.shape or proposed.dtype != images.dtype:
        raise _Refused(
            f"returned {proposed.dtype} {tuple(proposed.shape)}, "
            f"not {images.dtype} {tuple(images.shape)}"
        )
    return proposed.detach()


def _judge(asked: _Asked, proposal: _Proposal, batch: Samples, context: Context) -> Verdict:
    """Ask the model again, and refuse proposals that an adversary may not show."""
    threat, defence = asked.threat, asked.defence
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
    look = looked(
        defence.model,
        images,
        batches=defence.batches,
        view=asked.attack.view.judge,
        context=context,
        draws=defence.draws,
    )
    reasons = [
        reason or ("" if is_finite else "the model's logits are NaN or infinite there")
        for reason, is_finite in zip(
            reasons, look.logits.isfinite().all(dim=1).tolist(), strict=True
        )
    ]
    return Verdict(images, look, reasons)


def _refusal(is_finite: bool, is_allowed: bool, size: float, threat: ThreatModel) -> str:  # noqa: FBT001 - one row of four columns
    if not is_finite:
        return "proposed NaN or infinite pixels"
    if not is_allowed:
        return (
            f"proposed an image outside the ball or the pixel range "
            f"({threat.norm} {size:.6g}, epsilon {threat.epsilon:.6g})"
        )
    return ""

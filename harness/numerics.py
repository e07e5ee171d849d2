"""Passes through a model: frozen, padded to whole groups of rows, and counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from harness.errors import ModelError
from harness.tensors import (
    Accepted,
    Classifier,
    Images,
    Labels,
    Logits,
    Loss,
    Outcome,
    Rows,
    Score,
    is_fooled,
)

ROW_GROUP = 8
"""Rows are padded to a multiple of this, so that a row's result does not depend on how many
others are left: matrix products take other code paths for very few rows."""


def resolve_device(name: str) -> torch.device:
    """The device that `--device` names; "auto" takes the first GPU, else the CPU."""
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def use_exact_float32() -> None:
    """Take float32 at its word on GPUs: no TF32 in products and convolutions."""
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode and without gradients of parameters; restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in wanted:
        parameter.requires_grad_(False)  # noqa: FBT003 - torch's own signature
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training
        for parameter in wanted:
            parameter.requires_grad_(True)  # noqa: FBT003


@torch.no_grad()
def predict(model: Classifier, images: Images, *, batch_size: int) -> Logits:
    """The logits of all images, in padded batches."""
    return torch.cat(
        [model(_padded(batch))[: len(batch)] for batch in images.split(batch_size)]
    ).detach()


class Ledger:
    """What the passes over each image cost and reached; written by every pass, read at the end.

    Attributes:
        forwards, backwards: Passes of each image.
        first_loss, best_loss, last_loss: The objective at its passes, NaN before the first.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self.forwards = torch.zeros(count, dtype=torch.int64, device=device)
        self.backwards = torch.zeros(count, dtype=torch.int64, device=device)
        self.first_loss = torch.full((count,), float("nan"), device=device)
        self.best_loss = torch.full((count,), float("nan"), device=device)
        self.last_loss = torch.full((count,), float("nan"), device=device)

    def clear(self) -> None:
        """Forget all passes, before an attack is run once more."""
        self.forwards.zero_()
        self.backwards.zero_()
        for loss in (self.first_loss, self.best_loss, self.last_loss):
            loss.fill_(float("nan"))

    def note(self, index: Rows, loss: Tensor | None, *, backwards: int) -> None:
        """Count one pass over the images at `index`, and keep its losses where there are some.

        An image that stands there several times, for several candidates, is counted each time.
        """
        passes = torch.ones_like(index)
        self.forwards.index_add_(0, index, passes)
        self.backwards.index_add_(0, index, backwards * passes)
        if loss is None:
            return
        first = self.first_loss[index]
        self.first_loss[index] = torch.where(first.isnan(), loss, first)
        self.best_loss[index] = torch.fmax(self.best_loss[index], loss)
        self.last_loss[index] = loss


class _Batch(NamedTuple):
    """Images of one pass, padded, and what belongs to them."""

    images: Images
    labels: Labels
    accepted: Accepted | None
    targets: Labels | None
    size: int  # the other rows are padding


class _Pass(NamedTuple):
    score: Score
    gradient: Images


@dataclass(frozen=True)
class LossObjective:
    """A loss of the logits of one model, bound to the labels of its images.

    Attributes:
        model: Frozen, in evaluation mode.
        loss: What attacks climb.
        labels: Correct class of each image.
        ledger: Where passes are counted.
        index: Place of each image in the ledger.
        batch_size: Most images of one pass.
        accepted: All correct classes of each image, where there are several.
        targets: A class to be drawn towards for each image, where the loss asks for one.
        is_noted: The ledger keeps the losses too, not only the passes.
    """

    model: Classifier
    loss: Loss
    labels: Labels
    ledger: Ledger
    index: Rows
    batch_size: int
    accepted: Accepted | None = None
    targets: Labels | None = None
    is_noted: bool = True

    def score(self, candidates: Images) -> Score:
        """The score of each candidate, from one forward pass."""
        with torch.no_grad():
            parts = [self._score(batch) for batch in self._batches(candidates)]
        score = Score(*(torch.cat(part) for part in zip(*parts, strict=True)))
        self._note(score, backwards=0)
        return score

    def gradient(self, candidates: Images) -> tuple[Score, Images]:
        """The score and the gradient of each image's own loss, from one pass each way."""
        parts = [self._gradient(batch) for batch in self._batches(candidates)]
        scores, gradients = zip(*parts, strict=True)
        score = Score(*(torch.cat(part) for part in zip(*scores, strict=True)))
        self._note(score, backwards=1)
        return score, torch.cat(gradients)

    def rows(self, index: Rows) -> LossObjective:
        """The same objective for some of its images."""
        return replace(
            self,
            labels=self.labels[index],
            index=self.index[index],
            accepted=None if self.accepted is None else self.accepted[index],
            targets=None if self.targets is None else self.targets[index],
        )

    def under(self, loss: Loss) -> LossObjective:
        """Another loss of the same images; the records keep the losses of the first."""
        return replace(self, loss=loss, is_noted=loss is self.loss and self.is_noted)

    def toward(self, targets: Labels) -> LossObjective:
        """The same objective with a target class for each image."""
        return replace(self, targets=targets)

    def _note(self, score: Score, *, backwards: int) -> None:
        self.ledger.note(self.index, score.loss if self.is_noted else None, backwards=backwards)

    def _batches(self, candidates: Images) -> Iterator[_Batch]:
        """The candidates and what belongs to them, padded, with the number of true rows."""
        everything = torch.arange(len(candidates), device=candidates.device)
        for rows in everything.split(self.batch_size):
            yield _Batch(
                images=_padded(candidates.detach()[rows]),
                labels=_padded(self.labels[rows]),
                accepted=None if self.accepted is None else _padded(self.accepted[rows]),
                targets=None if self.targets is None else _padded(self.targets[rows]),
                size=len(rows),
            )

    def _score(self, batch: _Batch) -> Score:
        outcome = Outcome(self.model(batch.images), batch.labels, batch.accepted, batch.targets)
        return _scored(outcome, self.loss(outcome), batch.size)

    def _gradient(self, batch: _Batch) -> _Pass:
        images = batch.images.requires_grad_()
        with torch.enable_grad():
            outcome = Outcome(self.model(images), batch.labels, batch.accepted, batch.targets)
            loss = self.loss(outcome)
            gradient = _input_gradient(loss, images)[: batch.size]
        return _Pass(_scored(outcome, loss, batch.size), gradient)


def _scored(outcome: Outcome, loss: Tensor, count: int) -> Score:
    """The score of the first rows; the others are padding."""
    seen = outcome._replace(logits=outcome.logits.detach())
    return Score(
        logits=seen.logits[:count],
        loss=loss.detach()[:count],
        margin=seen.margin[:count],
        fooled=is_fooled(seen.logits, seen.labels, seen.accepted)[:count],
    )


def _input_gradient(loss: Tensor, images: Images) -> Images:
    """The gradient of the summed loss, or zeros where the model lets none through."""
    if not loss.requires_grad:
        return torch.zeros_like(images)
    (gradient,) = torch.autograd.grad(loss.sum(), images, allow_unused=True)
    return torch.zeros_like(images) if gradient is None else gradient


def _padded(rows: Tensor) -> Tensor:
    """The rows, with the last one repeated up to a multiple of `ROW_GROUP`."""
    missing = -len(rows) % ROW_GROUP
    if missing == 0:
        return rows.clone()
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])])


def check_classifier(model: Classifier, images: Images, num_classes: int, name: str) -> None:
    """Refuse a model that breaks the contract, before any attack starts.

    Args:
        model: In evaluation mode.
        images: A few real ones.
        num_classes: Length that its logits must have.
        name: How the message calls it.

    Raises:
        ModelError: Kept training mode, an exception, a wrong shape or type, or NaN.
    """
    training = [path or "the model" for path, module in model.named_modules() if module.training]
    if training:
        raise ModelError(
            f"{name}: {training[0]} stays in training mode after eval(); "
            "do not override train() or set training=True inside the model"
        )
    padded = _padded(images)
    try:
        with torch.no_grad():
            logits = model(padded)
    except Exception as error:
        shape = tuple(images.shape[1:])
        raise ModelError(
            f"{name}: the forward pass of images of shape {shape} in [0, 1] raised "
            f"{type(error).__name__}: {error}; resize inside the model if it wants another size"
        ) from error
    _check_logits(logits, (len(padded), num_classes), name)


def _check_logits(logits: object, shape: tuple[int, int], name: str) -> None:
    if not isinstance(logits, Tensor):
        raise ModelError(f"{name}: returned {type(logits).__name__}; return the logits alone")
    if tuple(logits.shape) != shape:
        raise ModelError(
            f"{name}: logits of shape {tuple(logits.shape)} where {shape} was expected; "
            f"build the model for {shape[1]} classes (context.num_classes)"
        )
    if logits.dtype != torch.float32:
        raise ModelError(f"{name}: logits are {logits.dtype}; return float32")
    if not logits.isfinite().all():
        raise ModelError(
            f"{name}: {int((~logits.isfinite()).sum())} logits of real images are NaN or "
            "infinite; check the weights and the normalisation"
        )

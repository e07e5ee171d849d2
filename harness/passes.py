"""Passes through a model: an objective in a view of it, confirmed by the original, and counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from harness.errors import AttackError
from harness.hints import did_you_mean
from harness.ledger import Ledger
from harness.modes import Numbers
from harness.numerics import Batches, in_numbers
from harness.seeing import Context, fitting, input_gradient, predict, seen
from harness.tensors import (
    Accepted,
    Classifier,
    Images,
    Labels,
    Logits,
    Loss,
    Mask,
    Outcome,
    Rows,
    Score,
    is_fooled,
    margin,
)
from harness.views import DIAGNOSTIC, FULL, View


class Surrogate(NamedTuple):
    """A copy of a model that is cheaper to climb; the original decides who is fooled."""

    model: Classifier
    numbers: Numbers = "float32"


@dataclass(frozen=True)
class LossObjective:
    """A loss of one model, in one view of it, bound to the images that it is about.

    Attributes:
        model: Frozen, in evaluation mode; whoever fools it in float32 is fooled.
        loss: What attacks climb.
        context: What is known of each image.
        ledger: Where passes are counted.
        index: Place of each image in the ledger.
        batches: How many images go through the model at once.
        view: How the model is looked at.
        surrogate: What is climbed in place of the model, where there is something cheaper.
        draws: Passes whose mean counts as one, for models that draw random numbers.
        is_noted: The ledger keeps the losses too, not only the passes.
    """

    model: Classifier
    loss: Loss
    context: Context
    ledger: Ledger
    index: Rows
    batches: Batches
    view: View = FULL
    surrogate: Surrogate | None = None
    draws: int = 1
    is_noted: bool = True

    @property
    def num_experts(self) -> tuple[int, ...]:
        """Experts of each MoE layer."""
        return tuple(routing.gates.shape[2] for routing in self.context.clean_routes)

    def score(self, candidates: Images) -> Score:
        """The score of each candidate, from one forward pass."""
        with torch.no_grad(), in_numbers(self._climbed.numbers, candidates.device):
            parts = self._passed(candidates, self._mean)
        return self._judged(candidates, Score(*_joined(parts)), backwards=0)

    def gradient(self, candidates: Images) -> tuple[Score, Images]:
        """The score and the gradient of each image's own loss, from one pass each way."""
        with torch.enable_grad(), in_numbers(self._climbed.numbers, candidates.device):
            *scores, gradient = _joined(self._passed(candidates, self._ascent))
        return self._judged(candidates, Score(*scores), backwards=1), gradient

    def rows(self, index: Rows) -> LossObjective:
        """The same objective for some of its images.

        Raises:
            AttackError: The model couples images, and these are not all of them.
        """
        if self.batches.group > 1 and index.tolist() != list(range(len(self.index))):
            raise AttackError(
                f"the model couples {self.batches.group} images with each other, so that none may "
                "leave, and this attack wants to go on with some of them; take one that knows "
                "stop='never', such as 'apgd'"
            )
        return replace(self, context=self.context.rows(index), index=self.index[index])

    def under(self, loss: Loss) -> LossObjective:
        """Another loss of the same images; the records keep the losses of the first."""
        return replace(self, loss=loss, is_noted=loss is self.loss and self.is_noted)

    def toward(self, targets: Labels) -> LossObjective:
        """The same objective with a target class for each image."""
        return replace(self, context=self.context._replace(targets=targets))

    def through(self, view: View) -> LossObjective:
        """The same objective in another view.

        Raises:
            AttackError: The verdict of its own view is another one's.
        """
        if self.view.name in DIAGNOSTIC and view.name != self.view.name:
            raise AttackError(
                f"the attack looks at the model in view {view.name!r}, but is judged in view "
                f"{self.view.name!r}; take one that has no views of its own, such as 'apgd'"
            )
        return replace(self, view=fitting(view, self.model))

    def of(self, part: str) -> LossObjective:
        """The same objective of one part of the model; who is fooled, the whole model decides.

        Raises:
            AttackError: The model has no part of that name.
        """
        climbed = self._climbed
        known = dict(climbed.model.named_children())
        if part not in known:
            raise AttackError(f"the model has no part {part!r}{did_you_mean(part, known)}")
        return replace(self, surrogate=Surrogate(known[part], climbed.numbers))

    def averaged(self, draws: int) -> LossObjective:
        """The same objective, each pass being the mean of some."""
        return replace(self, draws=draws)

    @property
    def _climbed(self) -> Surrogate:
        """What passes go through."""
        return self.surrogate or Surrogate(self.model)

    def _passed(
        self, candidates: Images, run: Callable[[Images, Context], tuple[Tensor, ...]]
    ) -> list[tuple[Tensor, ...]]:
        """What each batch gives, its padding left out."""
        images = candidates.detach()

        def one(rows: Rows, count: int) -> tuple[Tensor, ...]:
            found = run(images[rows], self.context.rows(rows))
            return tuple(part.detach()[:count] for part in found)

        return self.batches.over(images, one)

    def _mean(self, images: Images, context: Context) -> tuple[Tensor, ...]:
        """The score of one batch: the mean of the draws."""
        passes = [self._pass(images, context) for _ in range(self.draws)]
        logits, loss = _averaged(passes)
        return _scored(logits, loss, context)

    def _ascent(self, images: Images, context: Context) -> tuple[Tensor, ...]:
        """The score and the gradient of one batch; each draw is let go before the next."""
        images.requires_grad_()
        passes = []
        for _ in range(self.draws):
            logits, loss = self._pass(images, context)
            gradient = input_gradient(loss, images)
            passes.append((logits.detach(), loss.detach(), gradient))
        logits, loss, gradient = _averaged(passes)
        return *_scored(logits, loss, context), gradient

    def _pass(self, images: Images, context: Context) -> tuple[Logits, Tensor]:
        return _outcome(self._climbed.model, images, self.view, context, loss=self.loss)

    def _judged(self, candidates: Images, score: Score, *, backwards: int) -> Score:
        """The score, with the verdict of the model itself where something else was climbed."""
        passes = self.draws * self.view.passes
        self.ledger.count(self.index, forwards=passes, backwards=backwards * passes)
        if self.is_noted:
            self.ledger.note(self.index, score.loss)
        if self.view.is_surrogate:
            asked = torch.arange(len(candidates), device=candidates.device)
        elif self.surrogate is not None:
            asked = score.fooled.nonzero()[:, 0]
        else:
            return score
        if len(asked) == 0:
            return score
        context = self.context.rows(asked)
        logits = predict(
            self.model,
            candidates[asked],
            batches=self.batches,
            view=self.view.judge,
            context=context,
            draws=self.draws,
        )
        self.ledger.count(self.index[asked], forwards=passes)
        labels, accepted = context.labels, context.accepted
        gap = score.margin.index_copy(0, asked, margin(logits, labels, accepted))
        fooled = score.fooled.index_copy(0, asked, _fooled(logits, context))
        return score._replace(margin=gap, fooled=fooled)


def objective_of(
    model: Classifier,
    loss: Loss,
    labels: Labels,
    *,
    batch_size: int,
    accepted: Accepted | None = None,
    ledger: Ledger | None = None,
) -> LossObjective:
    """The objective of some images on a model as it is, for losses that ask for labels alone."""
    return LossObjective(
        model,
        loss,
        Context(labels, accepted),
        ledger or Ledger(len(labels), labels.device),
        torch.arange(len(labels), device=labels.device),
        Batches(batch_size),
    )


def _outcome(
    model: Classifier, images: Images, view: View, context: Context, *, loss: Loss
) -> tuple[Logits, Tensor]:
    """Logits and losses of one forward pass, in float32 whatever the pass was in."""
    found = seen(model, images, view, context)
    logits = found.logits.float()
    groups = len(found.auxiliary_loss)
    outcome = Outcome(
        logits,
        context.labels,
        context.accepted,
        context.targets,
        context.clean_logits,
        tuple(routing.in_float32() for routing in found.routes),
        context.clean_routes,
        found.auxiliary_loss.float().repeat_interleave(len(logits) // groups),
    )
    with torch.autocast(logits.device.type, enabled=False):
        return logits, loss(outcome)


def _averaged(passes: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    return [torch.stack(part).mean(dim=0) for part in zip(*passes, strict=True)]


def _scored(logits: Logits, loss: Tensor, context: Context) -> tuple[Tensor, ...]:
    gap = margin(logits, context.labels, context.accepted)
    return logits, loss, gap, _fooled(logits, context)


def _fooled(logits: Logits, context: Context) -> Mask:
    """Whose prediction is wrong; logits that are NaN or infinite predict nothing."""
    return is_fooled(logits, context.labels, context.accepted) & logits.isfinite().all(dim=1)


def _joined(parts: list[tuple[Tensor, ...]]) -> list[Tensor]:
    return [torch.cat(part) for part in zip(*parts, strict=True)]

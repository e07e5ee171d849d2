"""Passes through a model: an objective in a view of it, confirmed by the original, and counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from harness.errors import AttackError
from harness.modes import Numbers
from harness.numerics import Batches, in_numbers
from harness.routing import Routing
from harness.tensors import (
    Accepted,
    Classifier,
    Images,
    Labels,
    Logits,
    Loss,
    Mask,
    Outcome,
    Routed,
    RoutedClassifier,
    Rows,
    Samples,
    Score,
    is_fooled,
    margin,
)
from harness.views import DIAGNOSTIC, FULL, View


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

    def count(self, index: Rows, *, forwards: int, backwards: int = 0) -> None:
        """Count passes over the images at `index`, each time that one stands there."""
        passes = torch.ones_like(index)
        self.forwards.index_add_(0, index, forwards * passes)
        self.backwards.index_add_(0, index, backwards * passes)

    def note(self, index: Rows, loss: Tensor) -> None:
        """Keep the losses of one pass over the images at `index`."""
        first = self.first_loss[index]
        self.first_loss[index] = torch.where(first.isnan(), loss, first)
        self.best_loss[index] = torch.fmax(self.best_loss[index], loss)
        self.last_loss[index] = loss

    def add(self, index: Rows, other: Ledger) -> None:
        """Take over what another ledger holds of the images at `index`, passed once more."""
        self.forwards.index_add_(0, index, other.forwards)
        self.backwards.index_add_(0, index, other.backwards)
        self.best_loss[index] = torch.fmax(self.best_loss[index], other.best_loss)
        self.last_loss[index] = other.last_loss


class Context(NamedTuple):
    """What is known of each image before it is attacked."""

    labels: Labels
    accepted: Accepted | None = None
    targets: Labels | None = None
    clean_images: Images | None = None
    clean_logits: Logits | None = None
    clean_routes: tuple[Routing, ...] = ()

    @property
    def logits(self) -> Logits:
        """Of the clean images, once they were passed."""
        assert self.clean_logits is not None  # noqa: S101 - `clean_pass` sets it
        return self.clean_logits

    def rows(self, index: Rows) -> Context:
        """Of some of the images."""
        return Context(
            self.labels[index],
            _rows(self.accepted, index),
            _rows(self.targets, index),
            _rows(self.clean_images, index),
            _rows(self.clean_logits, index),
            tuple(routing.rows(index) for routing in self.clean_routes),
        )


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
        """The same objective for some of its images."""
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


@torch.no_grad()
def predict(
    model: Classifier,
    images: Images,
    *,
    batches: Batches,
    view: View = FULL,
    context: Context | None = None,
    draws: int = 1,
) -> Logits:
    """The logits of all images in float32, in padded batches; the mean of some draws.

    Args:
        model: Frozen, in evaluation mode.
        images: In [0, 1].
        batches: How many go through it at once.
        view: Full, or another that is no surrogate.
        context: What that view asks for.
        draws: Passes whose mean counts, for models that draw random numbers.
    """

    def one(rows: Rows, count: int) -> Logits:
        about = None if context is None else context.rows(rows)
        passes = [seen(model, images[rows], view, about).logits for _ in range(draws)]
        return torch.stack(passes).mean(dim=0)[:count]

    return torch.cat(batches.over(images, one)).detach()


@torch.no_grad()
def clean_pass(model: Classifier, samples: Samples, *, batches: Batches, draws: int = 1) -> Context:
    """What the clean images give, which all attacks share."""
    logits = predict(model, samples.images, batches=batches, draws=draws)
    routes: tuple[Routing, ...] = ()
    if isinstance(model, RoutedClassifier):
        routed = model.routed

        def one(rows: Rows, count: int) -> tuple[Routing, ...]:
            kept = torch.arange(count, device=rows.device)
            return tuple(routing.rows(kept) for routing in routed(samples.images[rows]).routes)

        layers = zip(*batches.over(samples.images, one), strict=True)
        routes = tuple(_joined_routing(parts) for parts in layers)
    return Context(samples.labels, samples.accepted, None, samples.images, logits, routes)


def seen(
    model: Classifier, images: Images, view: View = FULL, context: Context | None = None
) -> Routed:
    """One forward pass in a view; a dense model has no routes and no auxiliary loss.

    Raises:
        AttackError: The view asks for routes, and the model has none.
    """
    if not isinstance(model, RoutedClassifier):
        if view.name != "full":
            raise AttackError(
                f"view {view.name!r} looks at routes, and the model has none; take view 'full'"
            )
        logits = model(images)
        return Routed(logits, (), logits.new_zeros(len(logits)))
    if view.name in ("full", "detached", "relaxed"):
        return model.routed(
            images, relaxed=view.name == "relaxed", detach_router=view.name == "detached"
        )
    if context is None or context.clean_images is None:
        raise AttackError(f"view {view.name!r} needs the clean images and their routes")
    if view.name == "router":
        routes = model.routed(images).routes
        return model.routed(context.clean_images, routes=routes, relaxed=view.is_mixed)
    routes = context.clean_routes
    if view.name == "forced":
        routes = tuple(routing.forced(view.rank) for routing in routes)
    return model.routed(images, routes=routes)


def input_gradient(loss: Tensor, images: Images) -> Images:
    """The gradient of the summed loss, or zeros where the model lets none through."""
    if not loss.requires_grad:
        return torch.zeros_like(images)
    (gradient,) = torch.autograd.grad(loss.sum(), images, allow_unused=True)
    return torch.zeros_like(images) if gradient is None else gradient


def fitting(view: View, model: Classifier) -> View:
    """The view as the model can be seen in it: a dense one has nothing to detach, mix or force."""
    if isinstance(model, RoutedClassifier) or view.name in DIAGNOSTIC:
        return view
    return FULL


def router_is_hard(model: RoutedClassifier, images: Images) -> bool:
    """No gradient comes from the logits through the routes to the image."""
    with torch.enable_grad():
        attacked = images.detach().clone().requires_grad_()
        logits = model.routed(images.detach(), routes=model.routed(attacked).routes).logits
        return not bool(input_gradient(logits.square().sum(dim=1), attacked).any())


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
        tuple(_in_float32(routing) for routing in found.routes),
        context.clean_routes,
        found.auxiliary_loss.float().repeat_interleave(len(logits) // groups),
    )
    with torch.autocast(logits.device.type, enabled=False):
        return logits, loss(outcome)


def _in_float32(routing: Routing) -> Routing:
    return replace(routing, gate_logits=routing.gate_logits.float(), gates=routing.gates.float())


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


def _rows(part: Tensor | None, index: Rows) -> Tensor | None:
    return None if part is None else part[index]


def _joined_routing(parts: tuple[Routing, ...]) -> Routing:
    return Routing(
        torch.cat([part.gate_logits for part in parts]),
        torch.cat([part.gates for part in parts]),
        torch.cat([part.experts for part in parts]),
        torch.cat([part.kept for part in parts]),
    )

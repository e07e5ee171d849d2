"""One look at a model: a forward pass in a view of it, and what its clean images give."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from harness.errors import AttackError
from harness.numerics import Batches
from harness.routing import Routing
from harness.tensors import (
    Accepted,
    Classifier,
    Images,
    Labels,
    Logits,
    Routed,
    RoutedClassifier,
    Rows,
    Samples,
)
from harness.views import DIAGNOSTIC, FULL, View


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
    return looked(model, images, batches=batches, view=view, context=context, draws=draws).logits


class Look(NamedTuple):
    """What all images give in one view."""

    logits: Logits
    routes: tuple[Routing, ...]  # one for each MoE layer

    def replaced(self, index: Rows, other: Look) -> Look:
        """The same, but of some images another's, whose rows are those of `index`."""
        pairs = zip(self.routes, other.routes, strict=True)
        routes = tuple(mine.replaced(index, theirs) for mine, theirs in pairs)
        return Look(self.logits.index_copy(0, index, other.logits), routes)


@torch.no_grad()
def looked(
    model: Classifier,
    images: Images,
    *,
    batches: Batches,
    view: View = FULL,
    context: Context | None = None,
    draws: int = 1,
) -> Look:
    """What `predict` gives, and the routes that led there; of several draws, the first's."""

    def one(rows: Rows, count: int) -> Look:
        about = None if context is None else context.rows(rows)
        passes = [seen(model, images[rows], view, about) for _ in range(draws)]
        logits = torch.stack([found.logits for found in passes]).mean(dim=0)
        true = torch.arange(count, device=rows.device)
        routes = tuple(routing.rows(true) for routing in passes[0].routes)
        return Look(logits[:count].detach(), routes)

    logits, routes = zip(*batches.over(images, one), strict=True)
    layers = tuple(_joined_routing(parts) for parts in zip(*routes, strict=True))
    return Look(torch.cat(logits), layers)


def clean_pass(model: Classifier, samples: Samples, *, batches: Batches, draws: int = 1) -> Context:
    """What the clean images give, which all attacks share."""
    found = looked(model, samples.images, batches=batches, draws=draws)
    about = (samples.labels, samples.accepted, None, samples.images)
    return Context(*about, found.logits, found.routes)


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


def _rows(part: Tensor | None, index: Rows) -> Tensor | None:
    return None if part is None else part[index]


def _joined_routing(parts: tuple[Routing, ...]) -> Routing:
    return Routing(
        torch.cat([part.gate_logits for part in parts]),
        torch.cat([part.gates for part in parts]),
        torch.cat([part.experts for part in parts]),
        torch.cat([part.kept for part in parts]),
    )

"""Recipes of mixtures: standard and adversarial training, RT-ER (Zhang et al., 2025, 2502.06832).

Every loss is computed in training mode, from one pass, so that batch norm takes the statistics of
all images that it is given and keeps their average; every attack is made in evaluation mode and
moves no statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.api import TrainingError
from harness.tensors import Labels
from harness.training import Batch, Phase, Training, TrainingContext
from harness_dual_moe.mixture import Mixture
from harness_dual_moe.robustify import Robustified, Robustifier
from harness_dual_moe.settings import Settings

Watch = Callable[[Batch], Mapping[str, float]]


def moe_standard(context: TrainingContext, **parameters: Any) -> Training:
    """Minimise the mean cross-entropy of clean images; the attack is only watched.

    Args:
        context: A mixture and its data.
        parameters: Those of `Settings`.

    Raises:
        TrainingError: The model is no mixture.
    """
    mixture_of(unwrapped(context.model), "moe-standard")

    def loss(batch: Batch) -> Tensor:
        return functional.cross_entropy(context.model(batch.images), batch.labels)

    return _training(context, Settings(**parameters), loss)


def moe_adversarial(context: TrainingContext, **parameters: Any) -> Training:
    """Minimise the mean cross-entropy of images attacked at the whole mixture.

    Args:
        context: A mixture and its data.
        parameters: Those of `Settings`.

    Raises:
        TrainingError: The model is no mixture.
    """
    mixture_of(unwrapped(context.model), "moe-adversarial")
    settings = Settings(**parameters)

    def loss(batch: Batch) -> Tensor:
        return functional.cross_entropy(
            context.model(settings.attacked(context, batch)), batch.labels
        )

    return _training(context, settings, loss)


def rt_er(
    context: TrainingContext, *, beta: float, robustified: Robustified, **parameters: Any
) -> Training:
    """Minimise the cross-entropy of the attacked mixture and the divergence of one more expert.

    Args:
        context: A mixture and its data.
        beta: Weight of the divergence.
        robustified: "second" or "all" experts; see `Robustifier`.
        parameters: Those of `Settings`.

    Raises:
        TrainingError: The model is no mixture, or has one expert.
    """
    mixture = mixture_of(unwrapped(context.model), "rt-er")
    settings = Settings(**parameters)
    loss = Robustifier(context, settings, mixture, beta, robustified)
    return _training(context, settings, loss)


def watched(context: TrainingContext, settings: Settings, halves: Mapping[str, nn.Module]) -> Watch:
    """What is told of held-out images after every epoch.

    Args:
        context: Whose model is attacked as a whole.
        settings: Of the attack.
        halves: Mixtures by their name: "" for the whole model. Of each the share of clean images
            that its fullest expert is given is told; of a half its clean accuracy, too.
    """

    def watch(batch: Batch) -> dict[str, float]:
        told: dict[str, float] = {}
        if settings.watch_steps:
            images = settings.attacked(context, batch, steps=settings.watch_steps)
            right = _is_right(context, batch) & _is_right(context, batch._replace(images=images))
            told["robust_accuracy"] = _share(right)
        for name, half in halves.items():
            found = context.looked_at(batch, model=half)
            if name:
                told[f"{name}_accuracy"] = _share(found.logits.argmax(dim=1) == batch.labels)
            key = f"{name}_fullest_expert" if name else "fullest_expert"
            told[key] = fullest(found.clean_routes[0].experts[:, 0, 0])
        return told

    return watch


def fullest(experts: Labels) -> float:
    """The share of images that the busiest expert is given."""
    return float(experts.bincount().max()) / len(experts)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model that Fabric wrapped."""
    inner = getattr(model, "module", model)
    assert isinstance(inner, nn.Module)  # noqa: S101 - Fabric's own
    return inner


def mixture_of(model: nn.Module, recipe: str) -> Mixture:
    """The model, which is a mixture of complete classifiers.

    Raises:
        TrainingError: It is another model.
    """
    if not isinstance(model, Mixture):
        raise TrainingError(
            f"recipe {recipe!r} trains mixtures of complete classifiers, not a "
            f"{type(model).__name__}; take a model such as 'moe/digits', see 'harness ls models'"
        )
    return model


def _training(
    context: TrainingContext, settings: Settings, loss: Callable[[Batch], Tensor]
) -> Training:
    optimizer = settings.optimizer(context.model.parameters())
    watch = watched(context, settings, {"": context.model})
    return settings.training(context, [Phase(optimizer, loss)], watch)


def _is_right(context: TrainingContext, batch: Batch) -> Tensor:
    return context.looked_at(batch).logits.argmax(dim=1) == batch.labels


def _share(right: Tensor) -> float:
    return float(right.to(torch.float64).mean())

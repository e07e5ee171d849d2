"""Recipes of dual models: joint training (JTDMoE, Zhang et al., 2025, arXiv 2502.06832), control.

Each step is two phases: the robust half, a mixture, takes a step of RT-ER; then the standard half
takes its own. Each half has its own optimiser, so that no gradient of one reaches the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional

from harness.api import TrainingError
from harness.training import Batch, Phase, Training, TrainingContext
from harness_dual_moe.dual import RoutedDual
from harness_dual_moe.mixture import Mixture
from harness_dual_moe.recipes import mixture_of, unwrapped, watched
from harness_dual_moe.robustify import Robustified, Robustifier
from harness_dual_moe.settings import Settings


def jtdmoe(
    context: TrainingContext, *, beta: float, robustified: Robustified, **parameters: Any
) -> Training:
    """Train the robust half by RT-ER, and the standard half by the whole model's clean loss.

    The dual model's alpha is the one that it was built with. In the second phase the robust half
    is in evaluation mode and has no gradient: it is the answer of the lower level to which the
    standard half adapts.

    Args:
        context: A dual model of mixtures and its data.
        beta: Weight of the robust half's divergence.
        robustified: "second" or "all" of its experts; see `Robustifier`.
        parameters: Those of `Settings`.

    Raises:
        TrainingError: The model is no dual model whose robust half is a mixture.
    """
    dual = _dual(context, "jtdmoe")

    def loss(batch: Batch) -> Tensor:
        robust = context.looked_at(batch, model=dual.robust).logits
        logits = dual.combination(dual.standard(batch.images), robust)
        return functional.cross_entropy(logits, batch.labels)

    settings = Settings(**parameters)
    robustifier = Robustifier(
        context, settings, mixture_of(dual.robust, "jtdmoe"), beta, robustified
    )
    return _training(context, settings, dual, robustifier, loss)


def dual_separate(
    context: TrainingContext, *, beta: float, robustified: Robustified, **parameters: Any
) -> Training:
    """Train the halves side by side, each as if it were alone: RT-ER, and clean cross-entropy.

    What joint training is compared with: alpha plays no part.

    Args:
        context: A dual model of mixtures and its data.
        beta: Weight of the robust half's divergence.
        robustified: "second" or "all" of its experts; see `Robustifier`.
        parameters: Those of `Settings`.

    Raises:
        TrainingError: The model is no dual model whose robust half is a mixture.
    """
    dual = _dual(context, "dual-separate")

    def loss(batch: Batch) -> Tensor:
        return functional.cross_entropy(dual.standard(batch.images), batch.labels)

    settings = Settings(**parameters)
    robustifier = Robustifier(
        context, settings, mixture_of(dual.robust, "dual-separate"), beta, robustified
    )
    return _training(context, settings, dual, robustifier, loss)


def _dual(context: TrainingContext, recipe: str) -> RoutedDual:
    """The model without its wrapper.

    Raises:
        TrainingError: It is another model.
    """
    model = unwrapped(context.model)
    if not isinstance(model, RoutedDual):
        raise TrainingError(
            f"recipe {recipe!r} trains dual models, not a {type(model).__name__}; "
            "take a model such as 'dual/digits', see 'harness ls models'"
        )
    return model


def _training(
    context: TrainingContext,
    settings: Settings,
    dual: RoutedDual,
    robust_loss: Callable[[Batch], Tensor],
    standard_loss: Callable[[Batch], Tensor],
) -> Training:
    halves = {"standard_half": dual.standard, "robust_half": dual.robust}
    phases = [
        Phase(settings.optimizer(dual.robust.parameters()), robust_loss),
        Phase(settings.optimizer(dual.standard.parameters()), standard_loss),
    ]
    mixtures = {name: half for name, half in halves.items() if isinstance(half, Mixture)}
    return settings.training(context, phases, watched(context, settings, mixtures))

"""The dual model: a standard and a robust classifier, combined (Zhang et al., 2025, 2502.06832)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from harness.api import ModelContext, ModelError, Routing
from harness.tensors import Images, Logits, Routed, RoutedClassifier

COMBINATIONS = ("logits", "probabilities")

Routes = tuple[Routing, ...]


class Combination(NamedTuple):
    """How much the robust half counts, and what is added up."""

    alpha: float
    combine: str  # one of COMBINATIONS

    def __call__(self, standard: Logits, robust: Logits) -> Logits:
        """(1 - alpha) * standard + alpha * robust, in logits or, as their log, in probabilities."""
        if self.combine == "logits":
            return (1 - self.alpha) * standard + self.alpha * robust
        # float32 logarithms differ in the last bit by an element's place in memory
        parts = [half.double().log_softmax(dim=1) for half in (standard, robust)]
        shares = parts[0].new_tensor([1 - self.alpha, self.alpha]).log()
        return torch.logaddexp(parts[0] + shares[0], parts[1] + shares[1]).to(standard.dtype)


class Dual(nn.Module):
    """Two dense classifiers, combined."""

    def __init__(self, standard: nn.Module, robust: nn.Module, combination: Combination) -> None:
        super().__init__()
        self.standard = standard
        self.robust = robust
        self.combination = combination

    def forward(self, images: Images) -> Logits:
        """The combined logits."""
        return self.combination(self.standard(images), self.robust(images))


class RoutedDual(nn.Module):
    """Two classifiers, combined, of which one at least has routes; the standard's come first.

    Where both have routes, they have equally many layers with experts.
    """

    def __init__(self, standard: nn.Module, robust: nn.Module, combination: Combination) -> None:
        super().__init__()
        self.standard = standard
        self.robust = robust
        self.combination = combination

    def forward(self, images: Images) -> Logits:
        """The combined logits."""
        return self.routed(images).logits

    def routed(
        self,
        images: Images,
        *,
        routes: Routes | None = None,
        relaxed: bool = False,
        detach_router: bool = False,
    ) -> Routed:
        """The logits and the routes of both halves, in order; see `RoutedClassifier`."""
        first, second = (None, None) if routes is None else self._split(routes)
        how = {"relaxed": relaxed, "detach_router": detach_router}
        standard = _seen(self.standard, images, first, how)
        robust = _seen(self.robust, images, second, how)
        self._check(standard.routes, robust.routes)
        return Routed(
            self.combination(standard.logits, robust.logits),
            standard.routes + robust.routes,
            standard.auxiliary_loss + robust.auxiliary_loss,
        )

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters of the routers, of the experts, and others, of both halves."""
        halves = [_groups(half) for half in (self.standard, self.robust)]
        return {
            name: [parameter for half in halves for parameter in half.get(name, [])]
            for name in ("router", "experts", "other")
        }

    def active_parameters(self) -> int:
        """Those of both halves, which always work both."""
        return _active(self.standard) + _active(self.robust)

    def _split(self, routes: Routes) -> tuple[Routes, Routes]:
        if not isinstance(self.robust, RoutedClassifier):
            return routes, ()
        if not isinstance(self.standard, RoutedClassifier):
            return (), routes
        half = len(routes) // 2
        return routes[:half], routes[half:]

    def _check(self, standard: Routes, robust: Routes) -> None:
        if standard and robust and len(standard) != len(robust):
            raise ModelError(
                f"the halves have {len(standard)} and {len(robust)} layers with experts; "
                "take halves with equally many, so that their routes can be told apart"
            )


def dual(  # noqa: PLR0913 - one for each registered parameter
    context: ModelContext,
    *,
    standard: str,
    robust: str,
    standard_parameters: Mapping[str, Any],
    robust_parameters: Mapping[str, Any],
    alpha: float,
    combine: str,
) -> nn.Module:
    """Two registered classifiers, each with weights of its own, combined.

    Args:
        context: Passed on to the halves.
        standard: Name of the model that is to be accurate.
        robust: Name of the model that is to be robust.
        standard_parameters: Its parameters.
        robust_parameters: Its parameters.
        alpha: Weight of the robust half, in [0, 1]; no part of the weights, so that one training
            serves all.
        combine: "logits" as in the released code, "probabilities" as in the paper's theory.

    Raises:
        ModelError: alpha or combine has no meaning.
    """
    if not 0 <= alpha <= 1:
        raise ModelError(f"alpha is {alpha}; it must lie in [0, 1]")
    if combine not in COMBINATIONS:
        raise ModelError(
            f"combine {combine!r} is not known; write one of {', '.join(COMBINATIONS)}"
        )
    halves = (
        context.model(standard, **standard_parameters),
        context.model(robust, **robust_parameters),
    )
    is_routed = any(isinstance(half, RoutedClassifier) for half in halves)
    return (RoutedDual if is_routed else Dual)(*halves, Combination(alpha, combine))


def _seen(
    half: nn.Module, images: Images, routes: Routes | None, how: Mapping[str, bool]
) -> Routed:
    """A pass through one half, with one auxiliary loss for each image."""
    if not isinstance(half, RoutedClassifier):
        logits = half(images)
        return Routed(logits, (), logits.new_zeros(len(logits)))
    found = half.routed(images, routes=routes, **how)
    loss = found.auxiliary_loss
    return found._replace(auxiliary_loss=loss.repeat_interleave(len(images) // len(loss)))


def _groups(half: nn.Module) -> Mapping[str, list[nn.Parameter]]:
    if not hasattr(half, "parameter_groups"):
        return {"other": list(half.parameters())}
    groups: Mapping[str, list[nn.Parameter]] = half.parameter_groups()  # type: ignore[operator]
    return groups


def _active(half: nn.Module) -> int:
    if hasattr(half, "active_parameters"):
        return int(half.active_parameters())  # type: ignore[operator]
    return sum(parameter.numel() for parameter in half.parameters())

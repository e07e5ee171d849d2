"""Magnitude pruning (Han et al., 2015, https://arxiv.org/abs/1506.02626) of a robust network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.api import TrainingError
from harness.recipes import Course, Opponent
from harness.training import Batch, Phase, Training, TrainingContext

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.api import Norm


class Pruning:
    """Convolution weights of which the smallest are held at zero, once it is time.

    What is kept is read from the weights themselves at the first call that finds it is time: the
    largest ones. A training that goes on therefore keeps the same, all others being zero.

    Args:
        weights: Of all convolutions, changed in place.
        density: Share of them that is kept, counted over all together.
        start: Share of the training from which on.
    """

    def __init__(self, weights: Sequence[Tensor], *, density: float, start: float) -> None:
        self.weights = weights
        self.density = density
        self.start = start
        self._masks: list[Tensor] = []

    def begin(self, done: float) -> None:
        """Choose what is kept, if it is time and nothing has been chosen."""
        if done >= self.start and not self._masks:
            self._masks = largest(self.weights, self.density)
            self.hold()

    @torch.no_grad()
    def hold(self) -> None:
        """Set to zero again what is not kept."""
        for weight, mask in zip(self.weights, self._masks, strict=False):  # none before the start
            weight.mul_(mask)

    def told(self, _: Batch) -> dict[str, float]:
        """The share of the convolutions' weights that is not zero."""
        kept = sum(int(weight.count_nonzero()) for weight in self.weights)
        return {"density": kept / sum(weight.numel() for weight in self.weights)}


@torch.no_grad()
def largest(weights: Sequence[Tensor], density: float) -> list[Tensor]:
    """For each tensor which of its numbers are among the largest by magnitude of all together.

    Their number is exact, rounded to the nearest: among equal ones the first are taken.
    """
    sizes = torch.cat([weight.flatten().abs() for weight in weights])
    order = sizes.argsort(descending=True, stable=True)[: round(density * len(sizes))]
    kept = torch.zeros_like(sizes, dtype=torch.bool)
    kept[order] = True
    parts = kept.split([weight.numel() for weight in weights])
    return [part.view_as(weight) for part, weight in zip(parts, weights, strict=True)]


def sparse_robust(  # noqa: PLR0913 - every parameter of a recipe is explicit
    context: TrainingContext,
    *,
    density: float,
    prune_at: float,
    norm: Norm,
    epsilon: str,
    attack: str,
    steps: int,
    relative_step_size: float,
    **course: Any,
) -> Training:
    """Adversarial training that goes on with the largest convolution weights alone.

    PGD adversarial training; then the convolution weights with the smallest magnitudes, over all
    layers together, become zero and stay so, while the same training goes on. Linear layers and
    BatchNorms stay dense. One schedule of the learning rate spans both parts.

    Args:
        context: A dense model and its data.
        density: Share of the convolution weights that is kept.
        prune_at: Share of the training after which they are pruned, rounded down to an epoch.
        norm: Of the threat model.
        epsilon: Radius, such as "8/255".
        attack: Registered attack with the parameters of PGD.
        steps: Gradient steps of the attack.
        relative_step_size: As a fraction of epsilon.
        course: See `Course`.

    Raises:
        TrainingError: No convolutions, or shares that are none.
    """
    settled = Course(**course)
    opponent = Opponent(norm, epsilon, attack, steps, relative_step_size)
    weights = _convolutions(context.model)
    _check(weights, density, prune_at)
    pruning = Pruning(weights, density=density, start=_start(prune_at, settled.epochs))
    optimizer = settled.optimizer_of(context.model.parameters())
    optimizer.register_step_post_hook(lambda *_: pruning.hold())

    def loss(batch: Batch) -> Tensor:
        pruning.begin(batch.done)
        attacked = opponent.attacked(context, batch)
        return functional.cross_entropy(context.model(attacked), batch.labels)

    return settled.training(context, [Phase(optimizer, loss)], pruning.told)


def _convolutions(model: nn.Module) -> list[Tensor]:
    return [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]


def _start(prune_at: float, epochs: int) -> float:
    """The share of the training that is done when the epoch of the pruning begins."""
    return min(int(prune_at * epochs), epochs - 1) / epochs


def _check(weights: Sequence[Tensor], density: float, prune_at: float) -> None:
    if not weights:
        raise TrainingError(
            "sparse-robust prunes convolutions, and the model has none; take a model such as "
            "'cnn/resnet18', or recipe 'pgd-adversarial'"
        )
    if not 0 < density <= 1:
        raise TrainingError(f"density must be above 0 and at most 1, got {density}")
    if not 0 <= prune_at < 1:
        raise TrainingError(
            f"prune_at must be a share of the training from 0 to below 1, got {prune_at}"
        )

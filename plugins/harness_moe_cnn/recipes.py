"""Recipes of AdvMoE: joint, alternating, and as released (Zhang et al., 2023, 2308.10110)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.api import TrainingError, View
from harness.recipes import Course, Opponent, trades_loss
from harness.tensors import Images, RoutedClassifier
from harness.training import Batch, Phase, Training, TrainingContext
from harness_moe_cnn.losses import expert_shares, router_loss

if TYPE_CHECKING:
    from torch import nn

    from harness.api import Norm
    from harness.views import ViewName

FEW = 8
"""Experts up to which each one's share is told."""


def moe_trades(  # noqa: PLR0913 - every parameter of a recipe is explicit
    context: TrainingContext,
    *,
    beta: float,
    view: ViewName,
    norm: Norm,
    epsilon: str,
    attack: str,
    steps: int,
    relative_step_size: float,
    **course: Any,
) -> Training:
    """Train router and experts together with TRADES, as if the network were dense.

    What AdvMoE compares itself with. Nothing balances the experts: see `watched_loads`.

    Args:
        context: A routed model and its data.
        beta: Weight of the divergence.
        view: How the attack looks at the model: "full", or "detached", without the gradient
            through the router, which is many times as large as the experts' and hides it.
        norm: Of the threat model.
        epsilon: Radius, such as "8/255".
        attack: Registered attack with the parameters of PGD.
        steps: Gradient steps of the attack.
        relative_step_size: As a fraction of epsilon.
        course: See `Course`.

    Raises:
        TrainingError: The model has no routes.
    """
    _check_routed(context.model, "moe-trades", "trades")
    settled, looks = Course(**course), View(view)
    opponent = Opponent(norm, epsilon, attack, steps, relative_step_size)

    def loss(batch: Batch) -> Tensor:
        attacked = opponent.attacked(
            context, batch, objective="trades-kl", view=looks, is_anchored=True
        )
        clean = context.model(batch.images)
        return trades_loss(clean, context.model(attacked), batch.labels, beta=beta)

    phase = Phase(settled.optimizer_of(context.model.parameters()), loss)
    return settled.training(context, [phase], watched_loads(context))


def advmoe_alternating(  # noqa: PLR0913 - every parameter of a recipe is explicit
    context: TrainingContext,
    *,
    beta: float,
    router_learning_rate: float,
    reuses_batch: bool,
    norm: Norm,
    epsilon: str,
    attack: str,
    steps: int,
    relative_step_size: float,
    **course: Any,
) -> Training:
    """Train experts and router in turn, each against an attack made for it, both with TRADES.

    Our reading of the paper's abstract, as two levels: the experts, with all that is no router,
    minimise the loss of the whole network while the router is held still; then the router
    minimises the same loss, through its straight-through gradient, while the experts are held
    still, on other images. The statistics of BatchNorms move in both.

    Args:
        context: A routed model with `parameter_groups()`, and its data.
        beta: Weight of the divergence.
        router_learning_rate: At the end of the warm-up; `learning_rate` is that of the rest.
        reuses_batch: Both train on the whole batch, in place of a half of it each.
        norm: Of the threat model.
        epsilon: Radius, such as "8/255".
        attack: Registered attack with the parameters of PGD.
        steps: Gradient steps of each attack.
        relative_step_size: As a fraction of epsilon.
        course: See `Course`.

    Raises:
        TrainingError: The model has no routes.
    """
    _check_routed(context.model, "advmoe-alternating", "trades")
    settled = Course(**course)
    opponent = Opponent(norm, epsilon, attack, steps, relative_step_size)
    router, rest = _parted(context.model)

    def whole_loss(batch: Batch) -> Tensor:
        attacked = opponent.attacked(context, batch, objective="trades-kl", is_anchored=True)
        clean = context.model(batch.images)
        return trades_loss(clean, context.model(attacked), batch.labels, beta=beta)

    def expert_loss(batch: Batch) -> Tensor:
        with _held_still(router):
            return whole_loss(batch if reuses_batch else _half(batch, 0))

    def router_phase_loss(batch: Batch) -> Tensor:
        with _held_still(rest):
            return whole_loss(_afresh(batch if reuses_batch else _half(batch, 1)))

    phases = [
        Phase(settled.optimizer_of(rest), expert_loss),
        Phase(settled.optimizer_of(router, learning_rate=router_learning_rate), router_phase_loss),
    ]
    return settled.training(context, phases, watched_loads(context))


def advmoe_released(  # noqa: PLR0913 - every parameter of a recipe is explicit
    context: TrainingContext,
    *,
    alpha: float,
    beta: float,
    router_learning_rate: float,
    norm: Norm,
    epsilon: str,
    attack: str,
    steps: int,
    relative_step_size: float,
    **course: Any,
) -> Training:
    """Train experts and router in turn on each batch, as the released code does.

    An attack climbs the divergences of prediction and gates together; the experts, with all that
    is no router, minimise TRADES' loss. Then another attack of the same kind, on the new experts,
    and the router minimises `router_loss`: it is taught the labels counted round, and never sees
    a loss of the whole network.

    Left out, as plain bugs: divergences from probabilities, whose NaN ends the routing within a
    few batches at the published learning rate; the target of the attacks being a score in
    training mode, where all else in them is in evaluation mode; passes that only move BatchNorm's
    statistics; attacks' starts that leave the range of pixels.

    Args:
        context: A model with one router that reads the image, and its data.
        alpha: Weight of the labels that the router is taught.
        beta: Weight of the divergences.
        router_learning_rate: At the end of the warm-up; `learning_rate` is that of the rest.
        norm: Of the threat model.
        epsilon: Radius, such as "8/255".
        attack: Registered attack with the parameters of PGD.
        steps: Gradient steps of each attack.
        relative_step_size: As a fraction of epsilon.
        course: See `Course`.

    Raises:
        TrainingError: The model has no router of that kind.
    """
    scores = _image_router(context.model)
    settled = Course(**course)
    opponent = Opponent(norm, epsilon, attack, steps, relative_step_size)
    router, rest = _parted(context.model)

    def attacked(batch: Batch) -> Images:
        return opponent.attacked(context, batch, objective="joint-kl", is_anchored=True)

    def expert_loss(batch: Batch) -> Tensor:
        candidates = attacked(batch)
        with _held_still(router):
            clean = context.model(batch.images)
            return trades_loss(clean, context.model(candidates), batch.labels, beta=beta)

    def router_phase_loss(batch: Batch) -> Tensor:
        candidates = attacked(_afresh(batch))
        clean = scores(batch.images)
        return router_loss(clean, scores(candidates), batch.labels, alpha=alpha, beta=beta)

    phases = [
        Phase(settled.optimizer_of(rest), expert_loss),
        Phase(settled.optimizer_of(router, learning_rate=router_learning_rate), router_phase_loss),
    ]
    return settled.training(context, phases, watched_loads(context))


def watched_loads(context: TrainingContext) -> Callable[[Batch], Mapping[str, float]]:
    """What tells how clean held-out images are spread over the experts, at the end of an epoch.

    `fullest_expert` is the share of the images, or tokens, that the fullest expert of a layer
    takes, of the layer where it is largest: 1 / experts where all are equally full; 1.0 where
    the router has collapsed, and one expert does all the work of a layer whatever the image. A
    network with few experts and one router tells the share of each, `expert_0` and so on.
    """

    def watch(batch: Batch) -> dict[str, float]:
        routes = context.looked_at(batch).clean_routes
        shares = [expert_shares(routing.experts, routing.gates.shape[2]) for routing in routes]
        told = {"fullest_expert": max(float(share.max()) for share in shares)}
        if len(shares) > 1 or len(shares[0]) > FEW:
            return told
        return told | {f"expert_{place}": float(share) for place, share in enumerate(shares[0])}

    return watch


@contextmanager
def _held_still(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """No gradient of some parameters is prepared by the passes made meanwhile."""
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)  # noqa: FBT003 - torch's own signature
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)  # noqa: FBT003


def _parted(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters of the routers, and all others."""
    groups = model.parameter_groups()  # type: ignore[operator]
    return groups["router"], [*groups["experts"], *groups["other"]]


def _half(batch: Batch, which: int) -> Batch:
    """The first or the second half of a batch; the whole of a single image."""
    rows = torch.arange(len(batch.labels), device=batch.labels.device)
    chosen = rows.tensor_split(2)[which] if len(rows) > 1 else rows
    return batch._replace(
        images=batch.images[chosen], labels=batch.labels[chosen], noise=batch.noise.rows(chosen)
    )


def _afresh(batch: Batch) -> Batch:
    """The same batch with other random numbers."""
    return batch._replace(noise=batch.noise.named("router"))


def _image_router(model: nn.Module) -> nn.Module:
    if not getattr(model, "is_global", False):
        raise TrainingError(
            "advmoe-released trains one router that reads the image, and the model has none; "
            "take a model such as 'moe-cnn/resnet18', or recipe 'advmoe-alternating'"
        )
    router: nn.Module = model.routers[0]  # type: ignore[assignment, index]
    return router


def _check_routed(model: nn.Module, recipe: str, other: str) -> None:
    if not isinstance(model, RoutedClassifier) or not hasattr(model, "parameter_groups"):
        raise TrainingError(
            f"{recipe} trains models with routers, and this one is dense; take a model such as "
            f"'moe-cnn/resnet18', or recipe {other!r}"
        )

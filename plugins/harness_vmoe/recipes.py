"""How the V-MoE papers train: from scratch, on another task, and on attacked images.

Riquelme et al., 2021, arXiv 2106.05974; Puigcerver et al., 2022, arXiv 2210.10253; where both are
silent the configurations of google-research/vmoe. A dense model has no auxiliary loss and is
trained by the same recipes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.api import Norm, Routing, ThreatModel, radius
from harness.augmentation import Augment, cropped, flipped, in_turn
from harness.tensors import Images, Outcome, Routed, RoutedClassifier
from harness.training import (
    Batch,
    Phase,
    Schedule,
    Training,
    TrainingContext,
    cosine,
    warmed_up,
)
from harness_vmoe.moe import share_places

MOMENTUM = 0.9


def pretrain(  # noqa: PLR0913 - every parameter of a recipe is explicit
    context: TrainingContext,
    *,
    epochs: int,
    batch_size: int,
    objective: str,
    learning_rate: float,
    last_rate: float,
    warm_up: float,
    weight_decay: float,
    clip: float,
    auxiliary: float,
    group_size: int,
    capacity_factor: float,
    crop: int,
    flip: bool,
) -> Training:
    """Minimise a loss of clean images and the auxiliary loss with Adam, its rate falling linearly.

    Args:
        context: Model and data.
        epochs: Passes over the training images.
        batch_size: Images of one step.
        objective: Registered loss: "sigmoid-ce" as the papers pre-train, or "ce".
        learning_rate: At the end of the warm-up.
        last_rate: At the end of the training.
        warm_up: Share of all steps in which the rate rises.
        weight_decay: Of all parameters, decoupled.
        clip: Largest L2 norm of the gradient of all parameters together; 0 clips nothing.
        auxiliary: Factor of the auxiliary loss, whose own weights the model brings.
        group_size: Consecutive images that share the experts' places.
        capacity_factor: Places as a multiple of what balanced tokens need; 0 drops nothing.
        crop: Most pixels by which an image is shifted each way, its edges mirrored.
        flip: Mirror every second image.
    """
    share_places(context.model, group_size=group_size, capacity_factor=capacity_factor)
    optimizer = torch.optim.AdamW(
        context.model.parameters(), lr=learning_rate, weight_decay=weight_decay
    )
    return Training(
        phases=[Phase(optimizer, _balanced(context, objective, auxiliary), clip or None)],
        epochs=epochs,
        batch_size=min(batch_size, context.num_images),
        schedule=warmed_up(warm_up, falling_to(last_rate / learning_rate, _linear)),
        augment=_changed(crop=crop, flip=flip),
        watch=expert_loads(context),
    )


def finetune(  # noqa: PLR0913 - every parameter of a recipe is explicit
    context: TrainingContext,
    *,
    epochs: int,
    batch_size: int,
    objective: str,
    learning_rate: float,
    last_rate: float,
    warm_up: float,
    clip: float,
    auxiliary: float,
    group_size: int,
    capacity_factor: float,
    crop: int,
    flip: bool,
) -> Training:
    """Minimise the same with momentum and half a cosine; `--start` names what it starts from.

    Args:
        context: Model and data.
        epochs: Passes over the training images.
        batch_size: Images of one step.
        objective: Registered loss: "ce" as the papers fine-tune.
        learning_rate: At the end of the warm-up.
        last_rate: At the end of the training.
        warm_up: Share of all steps in which the rate rises.
        clip: Largest L2 norm of the gradient of all parameters together; 0 clips nothing.
        auxiliary: Factor of the auxiliary loss, whose own weights the model brings.
        group_size: Consecutive images that share the experts' places.
        capacity_factor: Places as a multiple of what balanced tokens need; 0 drops nothing.
        crop: Most pixels by which an image is shifted each way, its edges mirrored.
        flip: Mirror every second image.
    """
    share_places(context.model, group_size=group_size, capacity_factor=capacity_factor)
    optimizer = torch.optim.SGD(context.model.parameters(), lr=learning_rate, momentum=MOMENTUM)
    return Training(
        phases=[Phase(optimizer, _balanced(context, objective, auxiliary), clip or None)],
        epochs=epochs,
        batch_size=min(batch_size, context.num_images),
        schedule=warmed_up(warm_up, falling_to(last_rate / learning_rate, cosine)),
        augment=_changed(crop=crop, flip=flip),
        watch=expert_loads(context),
    )


def adversarial_finetune(  # noqa: PLR0913 - the parameters of the attack
    context: TrainingContext,
    *,
    norm: Norm,
    epsilon: str,
    attack: str,
    steps: int,
    relative_step_size: float,
    init: str,
    attacked_objective: str,
    **parameters: Any,
) -> Training:
    """Fine-tune on attacked images and on nothing else.

    Unlike the released code the attack looks at the model in evaluation mode, without noise and
    with a place for every token: what it is measured on.

    Args:
        context: Model and data.
        norm: Of the threat model.
        epsilon: Radius in [0, 1] units, such as "8/255".
        attack: Registered attack with the parameters of PGD.
        steps: Gradient steps of the attack.
        relative_step_size: As a fraction of epsilon.
        init: "clean" begins at the image itself, "random" anywhere in the ball.
        attacked_objective: What the attack climbs; "ce+aux" attacks the auxiliary loss, too.
        parameters: Those of `finetune`.
    """
    threat = ThreatModel(norm, radius(epsilon))
    plain = finetune(context, **parameters)
    [phase] = plain.phases

    def attacked(batch: Batch) -> Images:
        return context.attack(
            attack,
            batch,
            threat,
            objective=attacked_objective,
            steps=steps,
            relative_step_size=relative_step_size,
            init=init,
            stop="never",
        )

    def loss(batch: Batch) -> Tensor:
        return phase.loss(batch._replace(images=attacked(batch)))

    return replace(plain, phases=[replace(phase, loss=loss)])


def falling_to(last: float, fall: Schedule) -> Schedule:
    """A schedule from 1 to 0 made to end at a share of the rate that it began with."""

    def schedule(done: float) -> float:
        return last + (1 - last) * fall(done)

    return schedule


def expert_loads(context: TrainingContext) -> Callable[[Batch], Mapping[str, float]] | None:
    """Tells the smallest and the largest share of a layer's choices that one expert has.

    Where all experts work for each token, the shares are those of the gates. An expert without
    work shows as 0; in balance both shares are 1 / experts. None for a model
    without experts.
    """
    if not isinstance(context.model, RoutedClassifier):
        return None

    def watch(batch: Batch) -> Mapping[str, float]:
        loads = [_load(routing) for routing in context.looked_at(batch).clean_routes]
        return {
            "emptiest_expert": min(float(load.min()) for load in loads),
            "fullest_expert": max(float(load.max()) for load in loads),
        }

    return watch


def _load(routing: Routing) -> Tensor:
    """The share of all choices that each expert has; of all gates, where everybody is chosen."""
    if routing.experts.shape[2] == routing.gates.shape[2]:
        return routing.gates.mean(dim=(0, 1))
    chosen = routing.experts.flatten()
    return chosen.bincount(minlength=routing.gates.shape[2]) / chosen.numel()


def _balanced(
    context: TrainingContext, objective: str, auxiliary: float
) -> Callable[[Batch], Tensor]:
    """The mean loss of the images, and the mean auxiliary loss of the groups."""
    loss_of = context.loss_named(objective)
    is_routed = isinstance(context.model, RoutedClassifier)

    def loss(batch: Batch) -> Tensor:
        if not is_routed:
            return loss_of(Outcome(context.model(batch.images), batch.labels)).mean()
        routed: Routed = context.model.routed(batch.images)  # type: ignore[operator]
        own = loss_of(Outcome(routed.logits, batch.labels)).mean()
        return own + auxiliary * routed.auxiliary_loss.mean()

    return loss


def _linear(done: float) -> float:
    return 1 - done


def _changed(*, crop: int, flip: bool) -> Augment:
    return in_turn([*([cropped(crop)] if crop else []), *([flipped] if flip else [])])

"""The loop that every recipe shares: steps, schedules, checkpoints, exact resume.

A recipe is a function of a `TrainingContext` and its own parameters that returns a `Training`:
optimisers with their losses, how long, and how images are augmented. The loop does the rest.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from harness.api import EpochEnd
from harness.augmentation import Augment
from harness.checkpoints import plain_state
from harness.errors import CheckpointError, TrainingError
from harness.numerics import Batches, frozen
from harness.passes import objective_of
from harness.seeing import predict
from harness.store import write_atomically
from harness.tensors import Images, Labels, Loss, Noise, Pixels, Rows, noise_key
from harness.threat import ThreatModel

Schedule: TypeAlias = Callable[[float], float]
"""Share of the training that is done, 0 to 1, to the factor of the learning rate."""


class Batch(NamedTuple):
    """What one step trains on."""

    images: Images
    labels: Labels
    noise: Noise  # keyed by seed and sample; its `restart` is the epoch


@dataclass(frozen=True)
class Phase:
    """One optimiser with what it minimises; a training may alternate several.

    Attributes:
        optimizer: Over the parameters of this phase.
        loss: One number for a batch; called in training mode.
    """

    optimizer: torch.optim.Optimizer
    loss: Callable[[Batch], Tensor]


@dataclass(frozen=True)
class Training:
    """What a recipe asks of the loop.

    Attributes:
        phases: Done in turn on every batch.
        epochs: Passes over the training images.
        batch_size: Images of one step; an incomplete last batch is left out.
        schedule: Of all learning rates.
        augment: What is done to the images of a batch.
    """

    phases: Sequence[Phase]
    epochs: int
    batch_size: int
    schedule: Schedule
    augment: Augment


@dataclass(frozen=True)
class TrainingContext:
    """What a recipe is given.

    Attributes:
        model: In training mode, wrapped by Fabric; call it, read its parameters.
        num_images: Images to train on.
        seed: Of the whole training.
        attack_named: A registered attack and its parameters with defaults filled in.
        loss_named: A registered objective's loss.
        batch_size: Most images of one pass of an attack.
    """

    model: nn.Module
    num_images: int
    seed: int
    attack_named: Callable[..., tuple[Callable[..., Images], dict[str, Any]]]
    loss_named: Callable[[str], Loss]
    batch_size: int = 1024

    def attack(
        self,
        name: str,
        batch: Batch,
        threat: ThreatModel,
        *,
        objective: str = "ce",
        **parameters: Any,
    ) -> Images:
        """Attacked images of a batch.

        The model is attacked in evaluation mode, its parameters frozen, so that BatchNorm
        statistics stay as they are and only the images' gradient is computed.

        Args:
            name: Registered attack.
            batch: Images, labels and where random starts come from.
            threat: Ball to stay in.
            objective: Registered objective.
            parameters: Those that differ from the attack's defaults.
        """
        run, settled = self.attack_named(name, **parameters)
        loss = self.loss_named(objective)
        with frozen(self.model) as model:
            bound = objective_of(model, loss, batch.labels, batch_size=self.batch_size)
            proposed = run(bound, batch.images, batch.labels, threat, noise=batch.noise, **settled)
        return threat.project(proposed.detach(), batch.images)


@dataclass(frozen=True)
class TrainingData:
    """Images as bytes: on the device where they fit, else a memory map beside it."""

    pixels: Pixels
    labels: Labels

    def rows(self, ids: Rows, device: torch.device) -> tuple[Images, Labels]:
        """Some images in [0, 1] and their labels, on the device."""
        here = ids.to(self.pixels.device)
        images = self.pixels[here].to(device, non_blocking=True).to(torch.float32) / 255
        return images, self.labels[here].to(device)


@dataclass(frozen=True)
class Progress:
    """Where a training stands, and who wants to know.

    Attributes:
        path: Checkpoint of the last finished epoch.
        name: Row that is being trained.
        told: Called after every epoch.
    """

    path: Path
    name: str
    told: Callable[[EpochEnd], None]


def cosine(done: float) -> float:
    """Half a cosine from 1 to 0 (Loshchilov & Hutter, 2017)."""
    return 0.5 * (1 + math.cos(math.pi * done))


def warmed_up(share: float, then: Schedule = cosine) -> Schedule:
    """A linear rise over the first share of the training, then another schedule."""

    def schedule(done: float) -> float:
        return done / share if done < share else then((done - share) / (1 - share))

    return schedule


def new_fabric(device: torch.device) -> Fabric:
    """The one process and device that a recipe runs on."""
    accelerator = "cuda" if device.type == "cuda" else "cpu"
    return Fabric(accelerator=accelerator, devices=1)


def fit(
    fabric: Fabric,
    training: Training,
    context: TrainingContext,
    data: TrainingData,
    held_out: TrainingData | None,
    progress: Progress,
) -> list[dict[str, float]]:
    """Train a model to the last epoch, going on where an earlier process was stopped.

    The checkpoint that counts is the last: nothing is chosen by looking at images.

    Args:
        fabric: Device and precision.
        training: From the recipe.
        context: Whose model is trained, in place.
        data: Images to train on.
        held_out: Images whose accuracy is reported; never test images.
        progress: Where checkpoints go.

    Returns:
        The numbers of each epoch.

    Raises:
        TrainingError: A loss or a weight is NaN or infinite; the last good checkpoint stays.
    """
    phases = _set_up(fabric, training.phases)
    with torch.random.fork_rng():
        torch.manual_seed(context.seed)
        history = _restore(progress.path, context.model, phases)
        for epoch in range(len(history), training.epochs):
            loss = _epoch(fabric, training, phases, context, data, epoch)
            history.append({"loss": loss} | _watched(context, held_out))
            _save(progress.path, context.model, phases, history)
            progress.told(EpochEnd(progress.name, epoch + 1, training.epochs, history[-1]))
    return history


def _set_up(fabric: Fabric, phases: Sequence[Phase]) -> list[Phase]:
    return [
        Phase(cast(torch.optim.Optimizer, fabric.setup_optimizers(phase.optimizer)), phase.loss)
        for phase in phases
    ]


def _epoch(
    fabric: Fabric,
    training: Training,
    phases: Sequence[Phase],
    context: TrainingContext,
    data: TrainingData,
    epoch: int,
) -> float:
    """One pass over the images; the mean loss of the last phase."""
    context.model.train()
    batches = _order(context, epoch).split(training.batch_size)
    if len(batches) > 1 and len(batches[-1]) < training.batch_size:
        batches = batches[:-1]
    rates = [[group["lr"] for group in phase.optimizer.param_groups] for phase in phases]
    total = 0.0
    for step, ids in enumerate(batches):
        done = (epoch + step / len(batches)) / training.epochs
        batch = _batch(training, context, data, ids, epoch)
        for phase, base in zip(phases, rates, strict=True):
            _set_rates(phase.optimizer, base, training.schedule(done))
            loss = phase.loss(batch)
            _refuse_non_finite(loss, epoch, step)
            phase.optimizer.zero_grad()
            fabric.backward(loss)
            phase.optimizer.step()
        total += float(loss.detach())
    for phase, base in zip(phases, rates, strict=True):
        _set_rates(phase.optimizer, base, 1.0)
    _refuse_broken(context.model, epoch)
    return total / len(batches)


def _order(context: TrainingContext, epoch: int) -> Rows:
    """The order of the images in one epoch, from the seed alone."""
    generator = torch.Generator().manual_seed(noise_key(context.seed, "order", str(epoch)) >> 1)
    return torch.randperm(context.num_images, generator=generator)


def _batch(
    training: Training, context: TrainingContext, data: TrainingData, ids: Rows, epoch: int
) -> Batch:
    device = next(context.model.parameters()).device
    images, labels = data.rows(ids, device)
    shape = (images.shape[1], images.shape[2], images.shape[3])
    noise = Noise(noise_key(context.seed, "training", str(epoch)), ids.to(device), shape)
    return Batch(training.augment(images, noise), labels, noise)


def _set_rates(optimizer: torch.optim.Optimizer, base: list[float], factor: float) -> None:
    for group, rate in zip(optimizer.param_groups, base, strict=True):
        group["lr"] = rate * factor


def _refuse_non_finite(loss: Tensor, epoch: int, step: int) -> None:
    if not loss.isfinite().all():
        raise TrainingError(
            f"the loss is {float(loss.detach())} in epoch {epoch + 1}, step {step + 1}; the "
            "checkpoint of the epoch before is kept: lower the learning rate, or mend the loss"
        )


def _refuse_broken(model: nn.Module, epoch: int) -> None:
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise TrainingError(
                f"{name} holds NaN or infinite values after epoch {epoch + 1}; the checkpoint "
                "of the epoch before is kept: lower the learning rate"
            )


def _watched(context: TrainingContext, held_out: TrainingData | None) -> dict[str, float]:
    if held_out is None:
        return {}
    with frozen(context.model) as model:
        device = next(model.parameters()).device
        right = 0
        for ids in torch.arange(len(held_out.labels)).split(context.batch_size):
            images, labels = held_out.rows(ids, device)
            logits = predict(model, images, batches=Batches(context.batch_size))
            right += int((logits.argmax(dim=1) == labels).sum())
    return {"validation_accuracy": right / len(held_out.labels)}


def _save(
    path: Path, model: nn.Module, phases: Sequence[Phase], history: list[dict[str, float]]
) -> None:
    """Keep all that the next epoch depends on."""
    buffer = io.BytesIO()
    torch.save(
        {
            "model": plain_state(model),
            "optimizers": [phase.optimizer.state_dict() for phase in phases],
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all(),
            "history": history,
        },
        buffer,
    )
    write_atomically(path, buffer.getvalue())


def _restore(path: Path, model: nn.Module, phases: Sequence[Phase]) -> list[dict[str, float]]:
    """Go back to the last finished epoch; the numbers of the epochs so far."""
    if not path.exists():
        return []
    try:
        state: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise CheckpointError(
            f"{path}: damaged: {error}; remove it to train from the start"
        ) from error
    model.load_state_dict(state["model"])
    for phase, saved in zip(phases, state["optimizers"], strict=True):
        phase.optimizer.load_state_dict(saved)
    torch.set_rng_state(state["random"])
    torch.cuda.set_rng_state_all(state["random_cuda"])
    return list(state["history"])

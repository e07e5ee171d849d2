"""The loop that every recipe shares: steps, schedules, checkpoints, exact resume.

A recipe is a function of a `TrainingContext` and its own parameters that returns a `Training`:
optimisers with their losses, how long, and how images are augmented. The loop does the rest.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MethodType
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from harness.api import EpochEnd
from harness.augmentation import Augment
from harness.checkpoints import plain_state
from harness.errors import CheckpointError, TrainingError
from harness.modes import PLAIN, TrainingMode
from harness.numerics import Batches, frozen
from harness.passes import objective_of
from harness.seeing import Context, clean_pass
from harness.store import write_atomically
from harness.tensors import (
    Images,
    Labels,
    Loss,
    Noise,
    Pixels,
    Routed,
    RoutedClassifier,
    Rows,
    Samples,
    noise_key,
)
from harness.threat import ThreatModel
from harness.views import FULL, View

Schedule: TypeAlias = Callable[[float], float]
"""Share of the training that is done, 0 to 1, to the factor of the learning rate."""


class Batch(NamedTuple):
    """What one step trains on."""

    images: Images
    labels: Labels
    noise: Noise  # keyed by seed, epoch and sample
    done: float = 0.0  # share of the training before this step


@dataclass(frozen=True)
class Phase:
    """One optimiser with what it minimises; a training may alternate several.

    Attributes:
        optimizer: Over the parameters of this phase.
        loss: One number for a batch; called in training mode.
        clip: Largest L2 norm of the gradient of all its parameters together.
    """

    optimizer: torch.optim.Optimizer
    loss: Callable[[Batch], Tensor]
    clip: float | None = None


@dataclass(frozen=True)
class Training:
    """What a recipe asks of the loop.

    Attributes:
        phases: Done in turn on every batch.
        epochs: Passes over the training images.
        batch_size: Images of one step; an incomplete last batch is left out.
        schedule: Of all learning rates.
        augment: What is done to the images of a batch.
        watch: Numbers of interest at the end of an epoch, from all held-out images at once;
            nothing is chosen by them.
    """

    phases: Sequence[Phase]
    epochs: int
    batch_size: int
    schedule: Schedule
    augment: Augment
    watch: Callable[[Batch], Mapping[str, float]] | None = None


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

    def attack(  # noqa: PLR0913 - what is attacked, and how
        self,
        name: str,
        batch: Batch,
        threat: ThreatModel,
        *,
        objective: str = "ce",
        model: nn.Module | None = None,
        view: View = FULL,
        is_anchored: bool = False,
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
            model: A part of the model that is attacked alone; None attacks the whole.
            view: How the model is looked at.
            is_anchored: The objective or the view looks at the clean images' logits or routes,
                for which a pass more is made.
            parameters: Those that differ from the attack's defaults.
        """
        run, settled = self.attack_named(name, **parameters)
        loss = self.loss_named(objective)
        with frozen(self.model if model is None else model) as attacked:
            bound = objective_of(attacked, loss, batch.labels, batch_size=self.batch_size)
            if is_anchored:
                bound = replace(bound, context=self.looked_at(batch, model=model))
            proposed = run(
                bound.through(view), batch.images, batch.labels, threat, noise=batch.noise,
                **settled,
            )  # fmt: skip
        return threat.project(proposed.detach(), batch.images)

    def looked_at(self, batch: Batch, *, model: nn.Module | None = None) -> Context:
        """Logits and routes of any number of images, in evaluation mode, without a gradient."""
        samples = Samples(batch.noise.samples, batch.images, batch.labels)
        with frozen(self.model if model is None else model) as looking:
            return clean_pass(looking, samples, batches=Batches(self.batch_size))


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


def in_steps(done: float) -> float:
    """1, a tenth after three quarters, a hundredth after nine tenths."""
    if done < 0.75:  # noqa: PLR2004 - as the docstring says
        return 1.0
    return 0.1 if done < 0.9 else 0.01  # noqa: PLR2004


def warmed_up(share: float, then: Schedule = cosine) -> Schedule:
    """A linear rise over the first share of the training, then another schedule."""

    def schedule(done: float) -> float:
        return done / share if done < share else then((done - share) / (1 - share))

    return schedule


def new_fabric(device: torch.device) -> Fabric:
    """The one process and device that a recipe runs on."""
    accelerator = "cuda" if device.type == "cuda" else "cpu"
    return Fabric(accelerator=accelerator, devices=1)


def wrapped_for_training(fabric: Fabric, model: nn.Module, mode: TrainingMode = PLAIN) -> nn.Module:
    """The model on Fabric's device; routes may be asked of it as of the model itself.

    Its logits and routes are float32, whatever its passes are in; so is what a recipe computes
    from them, or asks of a part of the model.
    """
    set_passes(model, mode, fabric.device)
    wrapped = fabric.setup_module(model.to(memory_format=torch.channels_last))
    if isinstance(model, RoutedClassifier):
        wrapped.mark_forward_method("routed")
        wrapped.__dict__["routed"] = wrapped.routed  # Python 3.12 looks for protocols no deeper
    return wrapped


def set_passes(model: nn.Module, mode: TrainingMode, device: torch.device) -> None:
    """Let a model compute its passes, with and without routes, as a mode says.

    Unlike under Fabric's own mixed precision, gradients may be taken by anybody, as attacks do.
    """
    names = ["routed", "forward"] if isinstance(model, RoutedClassifier) else ["forward"]
    for name in names if mode != PLAIN else ():
        run = getattr(model, name)
        run = torch.compile(run) if mode.is_compiled else run
        run = _shortened(run, device) if mode.numbers == "bfloat16-mixed" else run
        model.__dict__[name] = MethodType(_unbound(run), model)  # Fabric asks for methods


def _unbound(run: Callable[..., Any]) -> Callable[..., Any]:
    return lambda _, *arguments, **keywords: run(*arguments, **keywords)


def _shortened(run: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """Passes in bfloat16 where that is safe, with results in float32."""

    def shortened(*arguments: Any, **keywords: Any) -> Tensor | Routed:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            found = run(*arguments, **keywords)
        if isinstance(found, Tensor):
            return found.float()
        routes = tuple(routing.in_float32() for routing in found.routes)
        return Routed(found.logits.float(), routes, found.auxiliary_loss.float())

    return shortened


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
            start = time.perf_counter()
            done = _epoch(fabric, training, phases, context, data, epoch)
            seconds = time.perf_counter() - start
            history.append({"loss": done.loss} | _watched(training, context, held_out))
            _save(progress.path, context.model, phases, history)
            numbers, total = history[-1], training.epochs
            progress.told(EpochEnd(progress.name, epoch + 1, total, numbers, done.images, seconds))
    return history


class _Epoch(NamedTuple):
    loss: float  # mean of the last phase's
    images: int


def _set_up(fabric: Fabric, phases: Sequence[Phase]) -> list[Phase]:
    return [
        replace(
            phase,
            optimizer=cast(torch.optim.Optimizer, fabric.setup_optimizers(phase.optimizer)),
        )
        for phase in phases
    ]


def _epoch(
    fabric: Fabric,
    training: Training,
    phases: Sequence[Phase],
    context: TrainingContext,
    data: TrainingData,
    epoch: int,
) -> _Epoch:
    """One pass over the images."""
    context.model.train()
    batches = _order(context, epoch).split(training.batch_size)
    if len(batches) > 1 and len(batches[-1]) < training.batch_size:
        batches = batches[:-1]
    rates = [[group["lr"] for group in phase.optimizer.param_groups] for phase in phases]
    total = 0.0
    for step, ids in enumerate(batches):
        done = (epoch + step / len(batches)) / training.epochs
        batch = _batch(training, context, data, ids, epoch)._replace(done=done)
        for phase, base in zip(phases, rates, strict=True):
            _set_rates(phase.optimizer, base, training.schedule(done))
            loss = phase.loss(batch)
            _refuse_non_finite(loss, epoch, step)
            phase.optimizer.zero_grad()
            fabric.backward(loss)
            if phase.clip is not None:
                torch.nn.utils.clip_grad_norm_(_parameters(phase.optimizer), phase.clip)
            phase.optimizer.step()
        total += float(loss.detach())
    for phase, base in zip(phases, rates, strict=True):
        _set_rates(phase.optimizer, base, 1.0)
    _refuse_broken(context.model, epoch)
    return _Epoch(total / len(batches), sum(map(len, batches)))


def _order(context: TrainingContext, epoch: int) -> Rows:
    """The order of the images in one epoch, from the seed alone."""
    generator = torch.Generator().manual_seed(noise_key(context.seed, "order", str(epoch)) >> 1)
    return torch.randperm(context.num_images, generator=generator)


def _batch(
    training: Training, context: TrainingContext, data: TrainingData, ids: Rows, epoch: int
) -> Batch:
    batch = _keyed(context, *data.rows(ids, _device(context)), ids, str(epoch))
    return batch._replace(images=training.augment(batch.images, batch.noise))


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


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


def _watched(
    training: Training, context: TrainingContext, held_out: TrainingData | None
) -> dict[str, float]:
    """What is told of the held-out images; their random starts are the same in every epoch."""
    if held_out is None:
        return {}
    everything, right = torch.arange(len(held_out.labels)), 0
    for ids in everything.split(context.batch_size):
        batch = _keyed(context, *held_out.rows(ids, _device(context)), ids, "held out")
        right += int((context.looked_at(batch).logits.argmax(dim=1) == batch.labels).sum())
    told = {"validation_accuracy": right / len(everything)}
    if training.watch is None:
        return told
    whole = held_out.rows(everything, _device(context))
    return told | dict(training.watch(_keyed(context, *whole, everything, "held out")))


def _keyed(context: TrainingContext, images: Images, labels: Labels, ids: Rows, name: str) -> Batch:
    """A batch whose noise depends on the seed, a name and the images' ids."""
    shape = (images.shape[1], images.shape[2], images.shape[3])
    key = noise_key(context.seed, "training", name)
    return Batch(images, labels, Noise(key, ids.to(images.device), shape))


def _device(context: TrainingContext) -> torch.device:
    return next(context.model.parameters()).device


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

"""What most recipes have in common: the course of a training, its opponent, and TRADES' losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.augmentation import Augment, cropped, cut_out, flipped, in_turn, translated
from harness.errors import TrainingError
from harness.hints import did_you_mean
from harness.tensors import Images, Labels, Logits, PerImage
from harness.threat import Norm, ThreatModel, radius
from harness.training import (
    Batch,
    Phase,
    Schedule,
    Training,
    TrainingContext,
    cosine,
    in_steps,
    warmed_up,
)
from harness.views import FULL, View

OPTIMIZERS = ("adamw", "sgd")
SCHEDULES: Mapping[str, Schedule] = {"cosine": cosine, "steps": in_steps}


@dataclass(frozen=True)
class Course:
    """How long, how fast and on which augmented images a model is trained.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images of one step.
        optimizer: "adamw" (Loshchilov & Hutter, 2019) or "sgd".
        learning_rate: At the end of the warm-up.
        momentum: Of "sgd"; "adamw" keeps torch's betas.
        nesterov: Its momentum looks ahead.
        weight_decay: Decoupled under "adamw", added to the gradient under "sgd".
        schedule: "cosine", or "steps": a tenth after 75 %, a hundredth after 90 %.
        warm_up: Share of all steps in which the rate rises.
        translate: Most pixels by which an image is shifted each way, black coming in.
        crop: The same with mirrored edges, the usual random crop of small images.
        flip: Mirror every second image.
        cutout: Side of a square that is made grey.
    """

    epochs: int
    batch_size: int
    optimizer: str
    learning_rate: float
    momentum: float
    nesterov: bool
    weight_decay: float
    schedule: str
    warm_up: float
    translate: int
    crop: int
    flip: bool
    cutout: int

    def __post_init__(self) -> None:
        _check_word("optimizer", self.optimizer, OPTIMIZERS)
        _check_word("schedule", self.schedule, SCHEDULES)

    def optimizer_of(
        self, parameters: Iterable[nn.Parameter], *, learning_rate: float | None = None
    ) -> torch.optim.Optimizer:
        """An optimiser of some parameters, at another learning rate where one is given.

        Its step is one kernel on a CUDA device. On a CPU that would change the last bits and save
        less than a hundredth of a step that attacks its images.
        """
        rate = self.learning_rate if learning_rate is None else learning_rate
        chosen = list(parameters)
        is_fused = all(parameter.is_cuda for parameter in chosen)
        if self.optimizer == "adamw":
            return torch.optim.AdamW(
                chosen, lr=rate, weight_decay=self.weight_decay, fused=is_fused or None
            )
        return torch.optim.SGD(
            chosen,
            lr=rate,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            fused=is_fused or None,
        )

    def training(
        self,
        context: TrainingContext,
        phases: Sequence[Phase],
        watch: Callable[[Batch], Mapping[str, float]] | None = None,
    ) -> Training:
        """What is asked of the loop, for phases that are done on every batch."""
        return Training(
            phases=phases,
            epochs=self.epochs,
            batch_size=min(self.batch_size, context.num_images),
            schedule=warmed_up(self.warm_up, SCHEDULES[self.schedule]),
            augment=self._augment(),
            watch=watch,
        )

    def _augment(self) -> Augment:
        return in_turn(
            [
                *([translated(self.translate)] if self.translate else []),
                *([cropped(self.crop)] if self.crop else []),
                *([flipped] if self.flip else []),
                *([cut_out(self.cutout)] if self.cutout else []),
            ]
        )


@dataclass(frozen=True)
class Opponent:
    """The attack that a model is trained against.

    Attributes:
        norm: Of the threat model.
        epsilon: Radius, such as "8/255".
        attack: Registered attack with the parameters of PGD.
        steps: Gradient steps.
        relative_step_size: As a fraction of epsilon.
    """

    norm: Norm
    epsilon: str
    attack: str
    steps: int
    relative_step_size: float

    def attacked(
        self,
        context: TrainingContext,
        batch: Batch,
        *,
        objective: str = "ce",
        view: View = FULL,
        is_anchored: bool = False,
    ) -> Images:
        """The last iterate for each image; see `TrainingContext.attack`."""
        return context.attack(
            self.attack,
            batch,
            ThreatModel(self.norm, radius(self.epsilon)),
            objective=objective,
            view=view,
            is_anchored=is_anchored,
            steps=self.steps,
            relative_step_size=self.relative_step_size,
            stop="never",
        )


def divergence(clean: Logits, attacked: Logits) -> PerImage:
    """KL(clean || attacked) of each image in nats, with a finite gradient for all finite logits.

    Taken from logarithms: where it is taken from the clean probabilities, the gradient of one
    that underflows to 0, at a gap of 104 between two logits, is NaN.
    """
    apart = functional.kl_div(
        attacked.log_softmax(dim=1), clean.log_softmax(dim=1), reduction="none", log_target=True
    )
    return apart.sum(dim=1)


def trades_loss(clean: Logits, attacked: Logits, labels: Labels, *, beta: float) -> Tensor:
    """The mean of CE(clean) + beta KL(clean || attacked); both sides have a gradient.

    (Zhang et al., 2019, https://arxiv.org/abs/1901.08573, eq. 5, with beta for 1 / lambda)
    """
    apart = divergence(clean, attacked).mean()
    return functional.cross_entropy(clean, labels) + beta * apart


def _check_word(what: str, word: str, known: Iterable[str]) -> None:
    if word not in known:
        raise TrainingError(f"{what} {word!r} is not known{did_you_mean(word, known)}")

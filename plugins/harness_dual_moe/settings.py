"""What the recipes of mixtures and dual models have in common: length, rates, images, attack."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from harness.api import Norm, ThreatModel, radius
from harness.augmentation import Augment, cropped, cut_out, flipped, in_turn, translated
from harness.tensors import Images
from harness.training import Batch, Phase, Schedule, Training, TrainingContext, warmed_up

LOWEST = 0.5
"""Of a triangular rate, as a share of its top: 5e-5 of 1e-4 in the released scripts."""


@dataclass(frozen=True)
class Settings:
    """Parameters that every recipe of this family has.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images of one step.
        learning_rate: The highest.
        weight_decay: Decoupled (Loshchilov & Hutter, 2019); with 0, AdamW is Adam.
        warm_up: Share of all steps in which the rate rises, before half a cosine.
        cycle: Steps in which the rate rises in a line from half to all and falls back, again
            and again (Smith, 2017, https://arxiv.org/abs/1506.01186), without warm-up or cosine;
            0 for these.
        translate: Most pixels by which an image is shifted each way, black coming in.
        crop: The same with mirrored edges, the usual random crop of small images.
        flip: Mirror every second image.
        cutout: Side of a square that is made grey.
        norm: Of the threat model that is trained against, or only watched.
        epsilon: Its radius, such as "8/255".
        attack: Registered attack with the parameters of PGD.
        steps: Its gradient steps in training.
        relative_step_size: Their length as a fraction of epsilon.
        watch_steps: Its steps on held-out images after every epoch; 0 does not attack them.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warm_up: float
    cycle: int
    translate: int
    crop: int
    flip: bool
    cutout: int
    norm: Norm
    epsilon: str
    attack: str
    steps: int
    relative_step_size: float
    watch_steps: int

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """AdamW over those parameters that are to be trained."""
        return torch.optim.AdamW(
            [parameter for parameter in parameters if parameter.requires_grad],
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
        )

    def attacked(
        self,
        context: TrainingContext,
        batch: Batch,
        *,
        model: nn.Module | None = None,
        steps: int | None = None,
    ) -> Images:
        """The last iterate of the attack on each image, the model in evaluation mode.

        Args:
            context: Whose model is attacked.
            batch: Images, labels and random starts.
            model: A part that is attacked alone.
            steps: Other than in training.
        """
        return context.attack(
            self.attack,
            batch,
            ThreatModel(self.norm, radius(self.epsilon)),
            model=model,
            steps=self.steps if steps is None else steps,
            relative_step_size=self.relative_step_size,
            stop="never",
        )

    def training(
        self,
        context: TrainingContext,
        phases: Sequence[Phase],
        watch: Callable[[Batch], Mapping[str, float]],
    ) -> Training:
        """The training with these phases."""
        batch_size = min(self.batch_size, context.num_images)
        total = self.epochs * (context.num_images // batch_size)
        return Training(
            phases=phases,
            epochs=self.epochs,
            batch_size=batch_size,
            schedule=triangular(self.cycle, total) if self.cycle else warmed_up(self.warm_up),
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


def triangular(cycle: int, total: int) -> Schedule:
    """A rate that goes from half to all and back in each cycle of so many steps.

    Args:
        cycle: Steps up and down.
        total: Steps of the whole training.
    """

    def schedule(done: float) -> float:
        place = round(done * total) % cycle / cycle
        return LOWEST + (1 - LOWEST) * (1 - abs(2 * place - 1))

    return schedule

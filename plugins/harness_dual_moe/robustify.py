"""The loss of RT-ER: robustify one additional expert (Zhang et al., 2025, arXiv 2502.06832)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.api import Routing, TrainingError, did_you_mean
from harness.tensors import Images, Labels, Logits, PerImage
from harness.training import Batch, TrainingContext
from harness_dual_moe.mixture import Mixture
from harness_dual_moe.settings import Settings

Robustified = Literal["second", "all"]


class Alone(NamedTuple):
    """One expert for each image, and the images attacked at that expert alone."""

    experts: Labels  # numbers, (batch,)
    images: Images


class Attacked(NamedTuple):
    """What the loss looks at beside the clean images."""

    whole: Images  # at the whole mixture
    alone: tuple[Alone, ...]


class OneExpert(nn.Module):
    """One expert of a mixture as a classifier of its own, whatever the router says."""

    def __init__(self, mixture: Mixture, number: int) -> None:
        super().__init__()
        self.mixture = mixture
        self.number = number

    def forward(self, images: Images) -> Logits:
        """Its logits."""
        numbers = torch.full((len(images),), self.number, device=images.device)
        routing = routing_to(self.mixture, numbers)
        return self.mixture.routed(images, routes=(routing,)).logits


@dataclass(frozen=True)
class Robustifier:
    """RT-ER on a mixture, which may be a part of the model that is trained.

    Attributes:
        context: Of the training.
        settings: Of the attacks.
        mixture: Whose experts become robust.
        beta: Weight of the divergence.
        robustified: "second", for each image the expert that its router ranks second, as in
            RT-ER; "all", every expert on every image, as in the released JTDMoE.
    """

    context: TrainingContext
    settings: Settings
    mixture: Mixture
    beta: float
    robustified: Robustified

    def __post_init__(self) -> None:
        known = get_args(Robustified)
        if self.robustified not in known:
            raise TrainingError(
                f"robustified {self.robustified!r} is not known"
                f"{did_you_mean(self.robustified, known)}; write one of {', '.join(known)}"
            )
        if len(self.mixture.experts) == 1:
            raise TrainingError(
                "the mixture has one expert, and no additional one can become robust; "
                "take recipe 'pgd-adversarial'"
            )

    def __call__(self, batch: Batch) -> Tensor:
        """The loss of a batch, attacked now."""
        return robust_loss(
            self.mixture, batch.images, batch.labels, self.attacked(batch), beta=self.beta
        )

    def attacked(self, batch: Batch) -> Attacked:
        """The attacks on the whole and on experts alone, in evaluation mode."""
        return Attacked(
            self.settings.attacked(self.context, batch, model=self.mixture),
            tuple(Alone(experts, self._alone(batch, experts)) for experts in self._chosen(batch)),
        )

    def _chosen(self, batch: Batch) -> tuple[Labels, ...]:
        if self.robustified == "second":
            (routing,) = self.context.looked_at(batch, model=self.mixture).clean_routes
            return (second_ranked(routing),)
        return tuple(
            torch.full_like(batch.labels, number) for number in range(len(self.mixture.experts))
        )

    def _alone(self, batch: Batch, experts: Labels) -> Images:
        """Each image attacked at its expert alone."""
        found = batch.images.clone()
        for number in experts.unique().tolist():
            rows = (experts == number).nonzero()[:, 0]
            part = Batch(batch.images[rows], batch.labels[rows], batch.noise.rows(rows))
            expert = OneExpert(self.mixture, number)
            found[rows] = self.settings.attacked(self.context, part, model=expert)
        return found


def robust_loss(
    mixture: Mixture, images: Images, labels: Labels, attacked: Attacked, *, beta: float
) -> Tensor:
    """Cross-entropy of the attacked mixture + beta * mean divergence of experts attacked alone.

    All images that an expert is given, by the router or alone, go through it in one pass: batch
    norm takes one set of statistics of them, whose average serves them all in evaluation.

    Args:
        mixture: With gradients, also of the clean side of the divergence, as released.
        images: Clean, in [0, 1].
        labels: Correct classes.
        attacked: Images; for each expert that is robustified one term of the sum.
        beta: 6 in the released scripts; the paper's ablation has 1, 3, 6 and 9.
    """
    given, routes = [attacked.whole], [mixture.routing(attacked.whole)]
    for experts, moved in attacked.alone:
        given += [images, moved]
        routes += 2 * [routing_to(mixture, experts)]
    logits = mixture.routed(torch.cat(given), routes=(_joined(routes),)).logits
    whole, *alone = logits.split(len(images))

    loss = functional.cross_entropy(whole, labels)
    for clean, moved in zip(alone[::2], alone[1::2], strict=True):
        loss = loss + beta * divergence(clean, moved).mean()
    return loss


def divergence(clean: Logits, moved: Logits) -> PerImage:
    """KL(softmax of the clean logits || softmax of the moved ones), a gradient through both."""
    before, after = clean.log_softmax(dim=1), moved.log_softmax(dim=1)
    return (before.exp() * (before - after)).sum(dim=1)


def routing_to(mixture: Mixture, experts: Labels) -> Routing:
    """Routes to one expert for each image, in all its places, so that its weight is 1.

    Args:
        mixture: Whose experts they are.
        experts: Number of the expert of each image.
    """
    gates = functional.one_hot(experts, len(mixture.experts)).to(torch.float32)[:, None]
    chosen = experts[:, None, None].expand(-1, 1, mixture.mixing.num_selected)
    return Routing(gates, gates, chosen, torch.ones_like(chosen).bool())


def second_ranked(routing: Routing) -> Labels:
    """The number of the expert with the second largest gate, for each image."""
    order = routing.gate_logits[:, 0].argsort(dim=1, descending=True, stable=True)
    return order[:, 1]


def _joined(parts: Sequence[Routing]) -> Routing:
    return Routing(
        torch.cat([part.gate_logits for part in parts]),
        torch.cat([part.gates for part in parts]),
        torch.cat([part.experts for part in parts]),
        torch.cat([part.kept for part in parts]),
    )

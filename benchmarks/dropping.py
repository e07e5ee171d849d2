"""What leaving fooled images out changes: verdicts with and without, and passes.

python benchmarks/dropping.py --data DIR --weights FILE
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - typer reads it
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from torch.nn import functional

from harness.api import ThreatModel, View, radius
from harness.building import build_model
from harness.checkpoints import load_weights
from harness.data import load_images
from harness.ledger import Ledger
from harness.numerics import Batches, frozen
from harness.passes import LossObjective
from harness.plugins import load_plugins
from harness.provenance import versions
from harness.seeing import clean_pass
from harness.sources import Place
from harness.suite import find_suite
from harness.tensors import Noise, Samples, noise_key

if TYPE_CHECKING:
    from harness.registry import Registry
    from harness.tensors import Images, Labels, Loss, Mask, Rows, Score

ATTACKS = {"pgd-20": {}, "apgd": {"steps": 50}}
EPSILONS = ("1/255", "2/255", "4/255", "8/255")


def main(
    data: Annotated[Path | None, typer.Option(help="Folder with local copies.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Of cnn/resnet14w24.")] = None,
    images: Annotated[int, typer.Option(help="First images of CIFAR-10's test split.")] = 500,
) -> None:
    """Print one JSON object: for each attack and epsilon what either way fools and costs."""
    torch.set_num_threads(1)
    registry = load_plugins()
    spec = find_suite("cifar10-linf", registry).data
    found = load_images(registry, spec, "test", Place(data))
    model = build_model(
        registry, "cnn/resnet14w24", num_classes=10, image_shape=(3, 32, 32), seed=0
    )
    if weights is not None:
        load_weights(model, weights)
    model = model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad():
        samples = found.samples(torch.arange(images))
        right = (model(samples.images).argmax(dim=1) == samples.labels).nonzero()[:, 0]
    told = {
        f"{attack} at {epsilon}": _both(registry, model, samples.rows(right), attack, epsilon)
        for attack in ATTACKS
        for epsilon in EPSILONS
    }
    about = {"n": images, "attacked": len(right), "versions": versions()}
    json.dump({**told, **about}, sys.stdout, indent=1)


def _both(
    registry: Registry, model: torch.nn.Module, samples: Samples, attack: str, epsilon: str
) -> dict[str, Any]:
    first, kept = (
        _run(registry, model, samples, attack, epsilon, stop) for stop in ("first", "never")
    )
    return {
        "robust": int((~first[0]).sum()),
        "robust without dropping": int((~kept[0]).sum()),
        "verdicts that differ": int((first[0] != kept[0]).sum()),
        "passes": first[1],
        "passes without dropping": kept[1],
        "cpu seconds": first[2],
        "cpu seconds without dropping": kept[2],
    }


def _run(
    registry: Registry,
    model: torch.nn.Module,
    samples: Samples,
    attack: str,
    epsilon: str,
    stop: str,
) -> tuple[Mask, float, float]:
    """Which images were fooled at any step, passes an image, CPU seconds."""
    entry = registry.find("attacks", attack)
    parameters = entry.settle({**ATTACKS[attack], "stop": stop}, attack)  # type: ignore[dict-item]
    rows, ledger = torch.arange(len(samples.ids)), Ledger(len(samples.ids), samples.ids.device)
    fooled = torch.zeros(len(samples.ids), dtype=torch.bool)
    noise = Noise(noise_key(0, attack), samples.ids, (3, 32, 32))
    start = time.process_time()
    with frozen(model):
        context = clean_pass(model, samples, batches=Batches(128))
        plain = LossObjective(model, _loss, context, ledger, rows, Batches(128))
        entry.load()(
            Watched(plain, rows, fooled),
            samples.images,
            samples.labels,
            ThreatModel("linf", radius(epsilon)),
            noise=noise,
            **parameters,
        )
    seconds = time.process_time() - start
    passes = float((ledger.forwards + ledger.backwards).float().mean())
    return fooled, round(passes, 1), round(seconds, 1)


@dataclass(frozen=True)
class Watched:
    """An objective that notes every image that a pass saw fooled."""

    inner: LossObjective
    index: Rows
    fooled: Mask

    @property
    def num_experts(self) -> tuple[int, ...]:
        """Of the model."""
        return self.inner.num_experts

    def score(self, candidates: Images) -> Score:
        """The score, noted."""
        return self._noted(self.inner.score(candidates))

    def gradient(self, candidates: Images) -> tuple[Score, Images]:
        """The score, noted, and the gradient."""
        score, gradient = self.inner.gradient(candidates)
        return self._noted(score), gradient

    def rows(self, index: Rows) -> Watched:
        """For some of the images."""
        return Watched(self.inner.rows(index), self.index[index], self.fooled)

    def under(self, loss: Loss) -> Watched:
        """Another loss."""
        return Watched(self.inner.under(loss), self.index, self.fooled)

    def toward(self, targets: Labels) -> Watched:
        """With targets."""
        return Watched(self.inner.toward(targets), self.index, self.fooled)

    def through(self, view: View) -> Watched:
        """In another view."""
        return Watched(self.inner.through(view), self.index, self.fooled)

    def averaged(self, draws: int) -> Watched:
        """Each pass the mean of some."""
        return Watched(self.inner.averaged(draws), self.index, self.fooled)

    def _noted(self, score: Score) -> Score:
        self.fooled[self.index[score.fooled]] = True
        return score


def _loss(outcome: Any) -> torch.Tensor:
    return functional.cross_entropy(outcome.logits, outcome.labels, reduction="none")


if __name__ == "__main__":
    typer.run(main)

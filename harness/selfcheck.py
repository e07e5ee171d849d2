"""A few seconds of arithmetic that the harness relies on, tried on this machine."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from harness.numerics import frozen, resolve_device
from harness.passes import objective_of
from harness.tensors import Images, Noise, Outcome, PerImage

if TYPE_CHECKING:
    from collections.abc import Iterator

FIRST_NOISE = (-0.217149019241333, -0.24064862728118896, 0.027339696884155273)
"""The first three elements of the noise of key 0, sample 0: integer arithmetic, the same
everywhere."""


def machine() -> dict[str, str]:
    """What computes here."""
    device = resolve_device("auto")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "device": name,
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "cpu kernels": torch.backends.cpu.get_cpu_capability(),
    }


def arithmetic() -> Iterator[tuple[str, bool, str]]:
    """Name, verdict and finding of each check."""
    noise = Noise(0, torch.zeros(1, dtype=torch.int64), (1, 1, 3)).uniform(0).flatten().tolist()
    yield "keyed noise", tuple(noise) == FIRST_NOISE, f"first elements {noise}"
    for name, model in (("convolution", _convolutional()), ("attention", _attentive())):
        different = _differing_batches(model.to(resolve_device("auto")))
        told = f"gradients differ at batch sizes {different}" if different else "rows identical"
        yield f"padded batches, {name}", not different, told


def _differing_batches(model: nn.Module) -> list[int]:
    """The batch sizes at which some row's logits or gradient is not what it is among 64."""
    device = next(model.parameters()).device
    images = Noise(1, torch.arange(64), (3, 16, 16)).uniform(0).to(device) / 2 + 0.5
    with frozen(model):
        logits, gradient = _pass(model, images, 64)
        return [
            size
            for size in (1, 2, 3, 5, 7, 8, 13, 32, 63)
            for some_logits, some_gradient in [_pass(model, images, size)]
            if not torch.equal(some_logits, logits) or not torch.equal(some_gradient, gradient)
        ]


def _pass(model: nn.Module, images: Images, batch_size: int) -> tuple[torch.Tensor, Images]:
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    objective = objective_of(model, _loss, labels, batch_size=batch_size)
    score, gradient = objective.gradient(images)
    return score.logits, gradient


def _loss(outcome: Outcome) -> PerImage:
    return functional.cross_entropy(outcome.logits, outcome.labels, reduction="none")


def _convolutional() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, 10),
        )


class _Attentive(nn.Module):
    """A transformer of one block on patches of 4x4 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 64, 4, stride=4)
        self.block = nn.TransformerEncoderLayer(64, 4, 128, 0.0, "gelu", batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, images: Images) -> torch.Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        logits: torch.Tensor = self.head(self.block(tokens).mean(dim=1))
        return logits


def _attentive() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _Attentive()

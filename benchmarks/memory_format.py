"""Gradients of images with channels last and with channels first, side by side in one run.

python benchmarks/memory_format.py [--repeat 7]
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from torch import nn
from torch.nn import functional

from harness.building import build_model
from harness.numerics import frozen
from harness.passes import objective_of
from harness.plugins import load_plugins
from harness.provenance import versions

if TYPE_CHECKING:
    from harness.tensors import Outcome, PerImage

MODELS = {
    "cnn/resnet14w24": 32,
    "cnn/resnet18": 32,
    "timm/tf_efficientnet_lite0": 64,
    "vit/ti4": 32,
}
BATCH = 64


def main(repeat: Annotated[int, typer.Option(help="Times that each way is run.")] = 7) -> None:
    """Print one JSON object: CPU seconds of each way and their ratio, for each model."""
    registry = load_plugins()
    told = {}
    for name, size in MODELS.items():
        shape = (3, size, size)
        model = build_model(registry, name, num_classes=10, image_shape=shape, seed=0).eval()
        images = torch.rand(BATCH, *shape, generator=torch.Generator().manual_seed(0))
        seconds: dict[str, list[float]] = {"first": [], "last": []}
        for _ in range(repeat):
            for way, layout in (
                ("first", torch.contiguous_format),
                ("last", torch.channels_last),
            ):
                model = model.to(memory_format=layout)  # type: ignore[call-overload]
                seconds[way].append(round(_gradient_seconds(model, images), 4))
        ratio = min(seconds["first"]) / min(seconds["last"])
        told[name] = {"cpu_seconds": seconds, "ratio": round(ratio, 2)}
    about = {"batch": BATCH, "threads": torch.get_num_threads(), "versions": versions()}
    json.dump({**told, **about}, sys.stdout, indent=1)


def _gradient_seconds(model: nn.Module, images: torch.Tensor) -> float:
    labels = torch.zeros(len(images), dtype=torch.int64)
    start = time.process_time()
    with frozen(model):
        objective_of(model, _loss, labels, batch_size=len(images)).gradient(images)
    return time.process_time() - start


def _loss(outcome: Outcome) -> PerImage:
    return functional.cross_entropy(outcome.logits, outcome.labels, reduction="none")


if __name__ == "__main__":
    typer.run(main)

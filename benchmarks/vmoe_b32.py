"""V-MoE-B/32 with 32 experts at 384 pixels: a forward pass and a step of PGD, and their memory.

python benchmarks/vmoe_b32.py [--threads 2]
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from torch.nn import functional

from harness.api import ThreatModel
from harness.building import build_model
from harness.flops import count_flops
from harness.numerics import frozen
from harness.passes import objective_of
from harness.plugins import load_plugins
from harness.provenance import versions
from harness.tensors import Noise

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.registry import Registry
    from harness.tensors import Images, Outcome, PerImage

NAME, SIZE, CLASSES = "vmoe/b32-e32", 384, 1000
SHAPE = (3, SIZE, SIZE)
THREAT = ThreatModel("linf", 8 / 255)


def main(threads: Annotated[int, typer.Option(help="Of torch.")] = 2) -> None:
    """Print one JSON object: seconds and peak memory of building, a pass and a step."""
    torch.set_num_threads(threads)
    registry = load_plugins()
    model, told = _timed(lambda: _built(registry, "cpu"))
    found: dict[str, Any] = {"build": told}
    with torch.no_grad():
        model(torch.zeros(1, *SHAPE))  # what is set up once is not counted
    for count in (1, 4):
        images = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            _, found[f"forward, {count}"] = _timed(lambda images=images: model(images))
        _, found[f"pgd step, {count}"] = _timed(
            lambda images=images: _stepped(registry, model, images)
        )
    about = {
        "gflops an image": round(count_flops(_built(registry, "meta"), SHAPE, NAME) / 1e9, 2),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "threads": threads,
        "versions": versions(),
    }
    json.dump({**found, **about}, sys.stdout, indent=1)


def _built(registry: Registry, device: str) -> torch.nn.Module:
    with torch.device(device):
        model = build_model(registry, NAME, num_classes=CLASSES, image_shape=SHAPE, seed=0)
    return model.eval()


def _stepped(registry: Registry, model: torch.nn.Module, images: Images) -> Images:
    """One step of PGD from a random start; the last iterate is not judged."""
    labels = torch.zeros(len(images), dtype=torch.int64)
    entry = registry.find("attacks", "pgd")
    parameters = entry.settle({"steps": 1, "stop": "never"}, "pgd")
    noise = Noise(0, torch.arange(len(images)), SHAPE)
    with frozen(model):
        objective = objective_of(model, _loss, labels, batch_size=len(images))
        found: Images = entry.load()(objective, images, labels, THREAT, noise=noise, **parameters)
    return found


def _loss(outcome: Outcome) -> PerImage:
    return functional.cross_entropy(outcome.logits, outcome.labels, reduction="none")


def _timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What it gives; its seconds, and the process's peak memory so far."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return result, {
        "seconds": round(wall, 2),
        "cpu seconds": round(cpu, 2),
        "peak GiB": round(_peak() / 2**30, 2),
    }


def _peak() -> int:
    """Bytes of memory that the process held at most."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    [line] = [line for line in lines if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    typer.run(main)

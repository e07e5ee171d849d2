"""MoE convolutions grouped by expert and all experts under a mask, side by side in one run.

python benchmarks/experts_speed.py [--rounds 7]
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torch.nn import functional

from harness.building import build_model
from harness.flops import count_flops
from harness.numerics import frozen
from harness.plugins import load_plugins
from harness.provenance import versions
from harness.routing import Routing
from harness_moe_cnn.convolution import Assignment, MoEConv, assigned
from harness_moe_cnn.network import MoENetwork, moe_layers

if TYPE_CHECKING:
    from harness.registry import Registry

BATCH, SHAPE = 64, (3, 32, 32)
MODEL = "moe-cnn/resnet18"
STAGES = ((32, 32), (64, 16), (128, 8), (256, 4))
"""Channels of one expert at ratio 0.5, and pixels a side, of its four stages."""

Run = Callable[[], object]


def main(
    rounds: Annotated[int, typer.Option(help="Times that each way is run; one more warms up.")] = 7,
) -> None:
    """Print one JSON object: CPU seconds of each way, medians of ratios and ceilings by MACs."""
    torch.set_num_threads(1)
    registry = load_plugins()
    told = {}
    for num_experts in (2, 5):
        layers = {
            f"{width} channels, {side} px": _layer(width, side, num_experts, rounds)
            for width, side in STAGES
        }
        told[f"{num_experts} experts"] = {
            "convolutions": layers,
            "network": _network(registry, num_experts, rounds),
        }
    about = {"model": MODEL, "batch": BATCH, "threads": torch.get_num_threads()}
    json.dump({**told, **about, "rounds": rounds, "versions": versions()}, sys.stdout, indent=1)


def _layer(width: int, side: int, num_experts: int, rounds: int) -> dict[str, Any]:
    layer = MoEConv(width, width, 3, num_experts=num_experts).requires_grad_(False)  # noqa: FBT003
    features = _random(width, side).to(memory_format=torch.channels_last)
    assignment = assigned(_spread(num_experts))
    ways = {
        "grouped": lambda points: layer(points, assignment),
        "masked": lambda points: _masked(layer, points, assignment),
    }
    return {"ceiling": num_experts, **_compared(ways, features, rounds)}


def _network(registry: Registry, num_experts: int, rounds: int) -> dict[str, Any]:
    grouped, masked = (_built(registry, num_experts) for _ in range(2))
    for layer in moe_layers(masked.backbone):
        layer.forward = _masking(layer)  # type: ignore[method-assign]
    routes = (_spread(num_experts),)
    images = _random(*SHAPE[:2])

    def alone(model: MoENetwork) -> Callable[[Tensor], Tensor]:
        return lambda points: model.routed(points, routes=routes, detach_router=True).logits

    def routed(model: MoENetwork) -> Callable[[Tensor], Tensor]:
        return lambda points: alone(model)(points) + model.routers[0](points).sum() * 0

    operations = count_flops(_built(registry, num_experts, "meta"), SHAPE, MODEL)
    router = count_flops(grouped.routers[0], SHAPE, "router")
    extra = _extra(grouped) * (num_experts - 1)
    with frozen(grouped), frozen(masked):
        return {
            "gflops": {"with_router": operations / 1e9, "without": (operations - router) / 1e9},
            "without_router": {
                "ceiling": round(1 + extra / (operations - router), 2),
                **_compared({"grouped": alone(grouped), "masked": alone(masked)}, images, rounds),
            },
            "with_router": {
                "ceiling": round(1 + extra / operations, 2),
                **_compared({"grouped": routed(grouped), "masked": routed(masked)}, images, rounds),
            },
        }


def _built(registry: Registry, num_experts: int, device: str = "cpu") -> MoENetwork:
    with torch.device(device):
        model = build_model(
            registry, MODEL, num_classes=10, image_shape=SHAPE, seed=0, num_experts=num_experts
        )
    return model.eval().to(memory_format=torch.channels_last)  # type: ignore[return-value, call-overload]


def _masking(layer: MoEConv) -> Callable[[Tensor, Assignment], Tensor]:
    return lambda features, assignment: _masked(layer, features, assignment)


def _masked(layer: MoEConv, features: Tensor, assignment: Assignment) -> Tensor:
    """The form of the released code: every expert for every image, a mask, the chosen one."""
    every = functional.conv2d(
        features, layer.weight, None, layer.stride, layer.weight.shape[2] // 2
    ).unflatten(1, (layer.num_experts, -1))
    chosen = torch.empty(len(features), dtype=torch.int64)
    for expert, rows, length in assignment.groups:
        chosen[rows[:length]] = expert
    hard = functional.one_hot(chosen, layer.num_experts).to(every.dtype)
    return (every * hard[:, :, None, None, None])[torch.arange(len(features)), chosen]


def _extra(model: MoENetwork) -> int:
    """Operations of one expert of every MoE convolution, for one image."""
    found: list[int] = []

    def note(layer: nn.Module, _: object, output: Tensor) -> None:
        found.append(2 * output[0, 0].numel() * layer.weight.numel() // layer.num_experts)  # type: ignore[operator, union-attr, call-overload]

    hooks = [layer.register_forward_hook(note) for layer in moe_layers(model.backbone)]
    model(_random(*SHAPE[:2])[:8])
    for hook in hooks:
        hook.remove()
    return sum(found)


def _spread(num_experts: int) -> Routing:
    """As many images for each expert as can be, one after the other."""
    experts = (torch.arange(BATCH) % num_experts)[:, None, None]
    gates = functional.one_hot(experts[:, :, 0], num_experts).float()
    return Routing(gates, gates.softmax(2), experts, torch.ones_like(experts, dtype=torch.bool))


def _compared(
    ways: dict[str, Callable[[Tensor], Tensor]], points: Tensor, rounds: int
) -> dict[str, Any]:
    """CPU seconds of a forward pass and of a gradient in each way, in turn, and their ratios."""
    tasks: dict[str, Callable[[Callable[[Tensor], Tensor]], float]] = {
        "forward": lambda way: _forward_seconds(way, points),
        "gradient": lambda way: _gradient_seconds(way, points),
    }
    found = {}
    for task, timed in tasks.items():
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(rounds + 1):
            for name in list(ways)[:: 1 if turn % 2 else -1]:
                seconds[name].append(timed(ways[name]))
        kept = {name: [round(item, 4) for item in all_[1:]] for name, all_ in seconds.items()}
        pairs = zip(kept["masked"], kept["grouped"], strict=True)
        ratios = sorted(slow / fast for slow, fast in pairs)
        median = round(statistics.median(ratios), 2)
        bounds = [round(ratios[0], 2), round(ratios[-1], 2)]
        found[task] = {"cpu_seconds": kept, "ratio": median, "range": bounds}
    return found


@torch.no_grad()
def _forward_seconds(way: Callable[[Tensor], Tensor], points: Tensor) -> float:
    start = time.process_time()
    way(points)
    return time.process_time() - start


def _gradient_seconds(way: Callable[[Tensor], Tensor], points: Tensor) -> float:
    wanted = points.detach().clone().requires_grad_()
    start = time.process_time()
    torch.autograd.grad(way(wanted).square().sum(), wanted)
    return time.process_time() - start


def _random(channels: int, side: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(BATCH, channels, side, side, generator=generator)


if __name__ == "__main__":
    typer.run(main)

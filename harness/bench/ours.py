"""Our own attacks on the images of a contest, through the engine of a run."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

import torch

from harness.cell import Protocol, Setting, evaluate
from harness.judging import BoundAttack, Defence
from harness.modes import Mode
from harness.numerics import ROW_GROUP, Batches, frozen
from harness.prepare import prepared
from harness.threat import ThreatModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.bench.contest import Contest
    from harness.bench.tasks import Manner, Task
    from harness.cell import Findings
    from harness.records import Record
    from harness.tensors import Images


def attacked(
    contest: Contest,
    task: Task,
    manner: Manner,
    *,
    epsilons: Mapping[str, float],
    protocol: str = "nested",
    shares_start: bool = False,
) -> Findings:
    """What a run finds on these images: clean pass, attack, judgement and records included.

    Args:
        contest: Its model is copied, and the copy is made ready as a run makes its model.
        task: Which attack.
        manner: Whether fooled images leave, and in which precision.
        epsilons: Radius in Linf for each epsilon, upwards.
        protocol: How they share work.
        shares_start: PGD and AutoPGD begin where the peers do, not at noise of our own.
    """
    find = contest.registry.find
    entry = find("attacks", task.registered)
    parameters = entry.settle({**task.parameters, "stop": manner.stop}, f"task {task.name}")
    if shares_start and task.kind in ("pgd", "apgd"):
        parameters = {**parameters, "start": [start(contest, task)]}
    model = deepcopy(contest.model).to(memory_format=torch.channels_last)
    images = contest.samples.images
    defence = Defence(
        model,
        Batches(len(images)),
        surrogate=prepared(model, images[:ROW_GROUP], Mode(manner.precision)),
    )
    setting = Setting(
        defence=defence,
        attacks=[
            BoundAttack(
                task.name,
                entry.load(),
                find("objectives", entry.card.objective).load(),
                parameters,
            )
        ],
        threats={text: ThreatModel("linf", radius) for text, radius in epsilons.items()},
        protocol=Protocol(protocol),
        seed=contest.seed,
    )
    with frozen(model):
        return evaluate(setting, contest.samples)


def start(contest: Contest, task: Task) -> Images:
    """Where the peers that are written in PyTorch begin, drawn as they draw from the seed.

    PGD begins anywhere in the ball; AutoPGD at noise of which the largest value of each image is
    epsilon. So no verdict differs because of another start.
    """
    images = contest.samples.images
    with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        torch.manual_seed(contest.seed)
        if task.kind == "pgd":
            noise = torch.empty_like(images).uniform_(-contest.epsilon, contest.epsilon)
            return (images + noise).clamp(0, 1)
        noise = (2 * torch.rand(images.shape) - 1).to(images)
    largest = noise.flatten(1).abs().amax(dim=1)[:, None, None, None]
    return (images + contest.epsilon * noise / largest).clamp(0, 1)


def passes(records: list[Record]) -> int:
    """Forward and backward passes of all images: each costs one forward pass of one image."""
    return sum(record.forwards + record.backwards for record in records)

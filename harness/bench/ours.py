"""Our own attacks on the images of a contest, through the engine of a run."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch

from harness.cell import BoundAttack, Protocol, Setting, evaluate
from harness.numerics import frozen
from harness.threat import ThreatModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.bench.contest import Contest
    from harness.bench.tasks import Manner, Task
    from harness.cell import Findings
    from harness.records import Record


def attacked(
    contest: Contest,
    task: Task,
    manner: Manner,
    *,
    epsilons: Mapping[str, float],
    protocol: str = "nested",
) -> Findings:
    """What a run finds on these images: clean pass, attack, judgement and records included.

    Args:
        contest: Its model is copied, and the copy is made ready as a run makes its model.
        task: Which attack.
        manner: Whether fooled images leave, and in which precision.
        epsilons: Radius in Linf for each epsilon, upwards.
        protocol: How they share work.
    """
    find = contest.registry.find
    entry = find("attacks", task.registered)
    parameters = entry.settle({**task.parameters, "stop": manner.stop}, f"task {task.name}")
    precision: dict[str, Any] = {"precision": manner.precision} if _has_precision() else {}
    setting = Setting(
        model=deepcopy(contest.model).to(memory_format=torch.channels_last),
        attacks=[
            BoundAttack(
                task.name,
                entry.load(),
                find("objectives", entry.card.objective).load(),
                parameters,
            )
        ],
        probes=[],
        threats={text: ThreatModel("linf", radius) for text, radius in epsilons.items()},
        protocol=Protocol(protocol),
        seed=contest.seed,
        batch_size=len(contest.samples.ids),
        **precision,
    )
    with frozen(setting.model):
        return evaluate(setting, contest.samples)


def shortcoming(manner: Manner) -> str:
    """Why we cannot do a task in a manner; empty where we can."""
    if manner.precision == "float32" or _has_precision():
        return ""
    return f"not available: the engine has no precision {manner.precision!r} yet"


def passes(records: list[Record]) -> int:
    """Forward and backward passes of all images: each costs one forward pass of one image."""
    return sum(record.forwards + record.backwards for record in records)


def _has_precision() -> bool:
    return "precision" in {field.name for field in fields(Setting)}

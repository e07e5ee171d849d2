"""A whole comparison: the tables for people, and one document with all rounds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness import checkpoints, provenance
from harness.bench import report
from harness.bench.contest import set_up
from harness.bench.gauge import ceiling, hardware
from harness.bench.peers import presence
from harness.bench.program import held
from harness.bench.sweep import gains, swept
from harness.plan import PRETRAINED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.bench.contest import Conditions, Contest
    from harness.bench.peers import Peer
    from harness.bench.tasks import Task
    from harness.registry import Registry


class Table(NamedTuple):
    """One table for people."""

    title: str
    heads: list[str]
    lines: list[list[str]]
    caption: str = ""


class Measured(NamedTuple):
    """What a comparison ended with."""

    tables: list[Table]
    document: dict[str, Any]  # for JSON
    given_up: list[str]  # what raised, and why


def measured(
    conditions: Conditions,
    registry: Registry,
    *,
    tasks: Sequence[Task],
    peers: Sequence[Peer],
    told: Callable[[str], None],
) -> Measured:
    """Race the peers and ourselves on each task.

    Args:
        conditions: Model, images, epsilon, rounds.
        registry: Brings our side.
        tasks: One after the other.
        peers: Everybody asked for, there or not.
        told: Called after each run.
    """
    contest = set_up(conditions, registry)
    scale = report.scale(contest, ceiling(contest.device), conditions.model)
    present = {peer.name: presence(peer) for peer in peers}
    facts = report.facts(conditions, contest, scale, present)
    tables = [_conditions(facts, peers)]
    standings = []
    for task in tasks:
        told(f"{task.name}: {task.rule}")
        standing = held(
            contest,
            task,
            peers,
            present,
            rounds=conditions.rounds,
            told=lambda lap: told(f"{_turn(lap.number)}: {lap.entrant}, {lap.seconds:.2f} s"),
        )
        standings.append(standing)
        runs = report.runs(standing, contest, scale)
        tables += [
            Table(f"{task.name}: {task.rule}", report.RUNS, runs),
            Table(f"{task.name}: ratios", report.RATIOS, report.ratios(standing, peers)),
        ]
    tables[-1] = tables[-1]._replace(caption=report.rules(contest.device))
    document = {
        **_origin(conditions, contest, facts),
        "peers": {name: found._asdict() for name, found in present.items()},
        "ceiling": {**scale.ceiling._asdict(), "flops_forward": scale.flops},
        "tasks": [standing.to_json() for standing in standings],
    }
    failures = {
        f"{standing.task.name}, {name}": reason
        for standing in standings
        for name, reason in standing.race.failures.items()
    }
    return Measured(tables, document, [f"{who}: {why}" for who, why in failures.items()])


def measured_sweep(
    conditions: Conditions, registry: Registry, task: Task, told: Callable[[str], None]
) -> Measured:
    """Our own protocols over a grid of epsilons against a run for each.

    Args:
        conditions: Model, images, rounds; its epsilon does not count.
        registry: Brings our side.
        task: Which attack.
        told: Called after each run.
    """
    contest = set_up(conditions, registry)
    scale = report.scale(contest, ceiling(contest.device), conditions.model)
    facts = report.facts(conditions, contest, scale, {}) | {"epsilon": "nine, in the table; Linf"}
    laps = swept(
        contest,
        task,
        rounds=conditions.rounds,
        told=lambda lap: told(f"{_turn(lap.number)}: {lap.way}, {lap.seconds:.2f} s"),
    )
    lines = report.sweeps(laps, contest, scale)
    title = f"{task.name} over nine epsilons: images left at each"
    document = {
        **_origin(conditions, contest, facts),
        "ceiling": {**scale.ceiling._asdict(), "flops_forward": scale.flops},
        "sweep": [lap.to_json() for lap in laps],
        "gains": {way: gain._asdict() for way, gain in gains(laps).items()},
    }
    return Measured(
        [_conditions(facts, []), Table(title, report.SWEEPS, lines, report.SWEEP_RULES)],
        document,
        [],
    )


def _turn(number: int) -> str:
    return f"round {number}" if number > 0 else "warm-up"


def _conditions(facts: dict[str, str], peers: Sequence[Peer]) -> Table:
    notes = "\n".join(f"{peer.name}: {peer.note}" for peer in peers if peer.note)
    return Table("what everybody shares", ["", ""], [list(fact) for fact in facts.items()], notes)


def _origin(conditions: Conditions, contest: Contest, facts: dict[str, str]) -> dict[str, Any]:
    """Where the numbers come from, without anything that names a place."""
    is_file = conditions.weights not in ("", PRETRAINED)
    return {
        "conditions": facts,
        "weights_sha256": checkpoints.file_hash(Path(conditions.weights)) if is_file else None,
        "images_fingerprint": contest.fingerprint,
        "provenance": provenance.collect(
            contest.registry, device=hardware(contest.device), threads=conditions.threads
        ),
    }

"""One task from beginning to end: who takes part, the race, and each peer beside each of ours."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.bench.ours import attacked, passes
from harness.bench.race import Comparison, Entrant, Lap, Proposal, Race, compared, raced
from harness.bench.tasks import MANNERS, Manner, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from harness.bench.contest import Contest
    from harness.bench.peers import Peer, Presence

KINDS = {"pgd": "PGD", "apgd": "AutoPGD", "autoattack": "standard AutoAttack"}
"""How messages call the kinds of task."""


class Standing(NamedTuple):
    """How a task ended."""

    task: Task
    race: Race
    comparisons: tuple[Comparison, ...]
    missing: dict[str, str]  # peers and manners that took no part, or gave up, and why

    def to_json(self) -> dict[str, Any]:
        """The standing as a JSON object, with all laps."""
        return {
            "attack": self.task.name,
            "rule": self.task.rule,
            "laps": [lap.to_json() for lap in self.race.laps],
            "comparisons": [comparison.to_json() for comparison in self.comparisons],
            "missing": self.missing,
        }


def held(
    contest: Contest,
    task: Task,
    peers: Sequence[Peer],
    present: Mapping[str, Presence],
    *,
    rounds: int,
    told: Callable[[Lap], None],
) -> Standing:
    """Race the peers and our manners on one task.

    Args:
        contest: Model and images.
        task: Which attack.
        peers: Everybody asked for.
        present: Whether they are there, by name.
        rounds: The first is warm-up.
        told: Called after each lap.
    """
    reasons = {peer.name: _absence(peer, present[peer.name], task) for peer in peers}
    entrants = [
        *(
            Entrant(ours(manner), partial(_own, contest, task, manner), is_peer=False)
            for manner in MANNERS
        ),
        *(
            Entrant(peer.name, partial(_theirs, contest, task, peer), is_peer=True)
            for peer in peers
            if not reasons[peer.name]
        ),
    ]
    race = raced(contest, entrants, rounds=rounds, told=told)
    finished = [entrant for entrant in entrants if entrant.name not in race.failures]
    return Standing(
        task=task,
        race=race,
        comparisons=tuple(
            compared(race, peer.name, own.name, epsilon=contest.epsilon)
            for peer in finished
            for own in finished
            if peer.is_peer and not own.is_peer
        ),
        missing={name: reason for name, reason in (reasons | race.failures).items() if reason},
    )


def ours(manner: Manner) -> str:
    """The name under which a manner runs."""
    return f"ours, {manner.name}"


def _absence(peer: Peer, found: Presence, task: Task) -> str:
    if found.reason:
        return found.reason
    return "" if task.kind in peer.adapters else f"n/a: {peer.name} has no {KINDS[task.kind]}"


def _own(contest: Contest, task: Task, manner: Manner) -> Proposal:
    grid = {"epsilon": contest.epsilon}
    findings = attacked(contest, task, manner, epsilons=grid, shares_start=True)
    return Proposal(findings.adversarial[task.name, "epsilon"], passes(findings.records))


def _theirs(contest: Contest, task: Task, peer: Peer) -> Proposal:
    return Proposal(peer.adapters[task.kind](contest, task))

"""What a comparison of speed asks of everybody, and the manners in which we do it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from harness.errors import UsageError
from harness.hints import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from harness.modes import Numbers

Item = TypeVar("Item")


@dataclass(frozen=True)
class Task:
    """One attack that everybody runs.

    Attributes:
        name: As `--attack` gives it.
        kind: What a peer must have: "pgd", "apgd" or "autoattack".
        steps: Gradient steps of each run.
        registered: Our attack of this kind.
        rule: Step size and start, for people.
        parameters: Of ours, where they differ from the registered defaults.
    """

    name: str
    kind: str
    steps: int
    registered: str
    rule: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


class Manner(NamedTuple):
    """One way in which we do a task."""

    name: str
    stop: str  # "never": every image takes every step; "first": fooled images leave
    precision: Numbers


MANNERS = (
    Manner("equal protocol", "never", "float32"),
    Manner("dropping", "first", "float32"),
    Manner("bfloat16", "first", "bfloat16-gradients"),
)
_TASKS = (
    Task(
        "pgd-20",
        "pgd",
        20,
        "pgd-20",
        "steps of epsilon / 4 from a uniform start in the ball, the same as torchattacks'",
    ),
    Task(
        "apgd-ce-50",
        "apgd",
        50,
        "apgd",
        "cross-entropy, steps of 2 * epsilon at first, one random start, the same as officially",
        {"steps": 50},
    ),
    Task(
        "autoattack-standard",
        "autoattack",
        100,
        "autoattack-standard",
        "APGD-CE, APGD-T and FAB-T of 100 steps, Square of 5,000 queries; peers drop between them",
    ),
)
TASKS = {task.name: task for task in _TASKS}


def chosen(names: Iterable[str], known: Mapping[str, Item], option: str) -> tuple[Item, ...]:
    """The items of these names, each once.

    Args:
        names: As the command line gives them.
        known: All items, by name.
        option: Which option gave them, for the message.

    Raises:
        UsageError: A name that is not known.
    """
    for name in names:
        if name not in known:
            raise UsageError(f"{option} {name!r} is not known{did_you_mean(name, known)}")
    return tuple(known[name] for name in dict.fromkeys(names))

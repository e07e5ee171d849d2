"""Where shards are done: a bundled plugin, like all others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api import Card, hookimpl

if TYPE_CHECKING:
    from harness.api import Register


@hookimpl
def register_executors(register: Register) -> None:
    """Bring the two executors of one machine."""
    register(
        "inline",
        "harness.executors.inline:inline",
        card=Card("One shard after the other, in the process of the run."),
    )
    register(
        "process",
        "harness.executors.process:process",
        card=Card("Several processes of this machine; a dead one is replaced, its shard redone."),
    )

"""Tells plugins and the terminal what happens in a run; none of them can stop it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pluggy

    from harness.api import EpochEnd, RunEnd, RunStart, ShardEnd
    from harness.registry import Registry


class Observers:
    """All that implement one of the watching hooks, each called by itself."""

    def __init__(self, registry: Registry, others: Sequence[object] = ()) -> None:
        self._manager: pluggy.PluginManager = registry.observers()
        for other in others:
            self._manager.register(other)

    def run_started(self, event: RunStart) -> None:
        """Before the first shard."""
        self._tell("run_started", event)

    def epoch_finished(self, event: EpochEnd) -> None:
        """After an epoch of a training."""
        self._tell("epoch_finished", event)

    def shard_finished(self, event: ShardEnd) -> None:
        """After a shard."""
        self._tell("shard_finished", event)

    def run_finished(self, event: RunEnd) -> None:
        """After the last shard."""
        self._tell("run_finished", event)

    def _tell(self, hook: str, event: object) -> None:
        for implementation in getattr(self._manager.hook, hook).get_hookimpls():
            try:
                implementation.function(**dict.fromkeys(implementation.argnames, event))
            except Exception as error:  # noqa: BLE001 - a watcher never stops a run
                name = implementation.plugin_name
                warnings.warn(
                    f"plugin {name!r}: its hook {hook} raised {type(error).__name__}: {error}",
                    stacklevel=2,
                )

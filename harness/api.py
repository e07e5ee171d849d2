"""All that a plugin needs to be listed, free of torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pluggy

from harness.cards import AttackCard, Card, DatasetCard, MetricCard, ModelCard, Parameters
from harness.errors import (
    AttackError,
    CheckpointError,
    DataError,
    HarnessError,
    ModelError,
    PluginError,
    StoreError,
    SuiteError,
    TrainingError,
    UnknownName,
    UsageError,
    WorkerError,
)
from harness.hints import did_you_mean
from harness.records import Record, Value
from harness.routing import Routing
from harness.threat import Box, Norm, ThreatModel, radius

__all__ = [
    "AttackCard",
    "AttackError",
    "Box",
    "Card",
    "CheckpointError",
    "DataError",
    "DatasetCard",
    "EpochEnd",
    "Evidence",
    "Executor",
    "HarnessError",
    "MetricCard",
    "ModelCard",
    "ModelContext",
    "ModelError",
    "Norm",
    "Parameters",
    "PluginError",
    "Record",
    "Register",
    "Routing",
    "RunEnd",
    "RunStart",
    "ShardEnd",
    "StoreError",
    "SuiteError",
    "ThreatModel",
    "TrainingError",
    "UnknownName",
    "UsageError",
    "Value",
    "WorkerError",
    "did_you_mean",
    "hookimpl",
    "radius",
]

hookimpl = pluggy.HookimplMarker("harness")


class Register(Protocol):
    """What a `register_...` hook is given: call it once for each thing you bring."""

    def __call__(
        self,
        name: str,
        target: str | Callable[..., Any],
        *,
        card: Any = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        """Bring one thing.

        Args:
            name: `family/variant` for models, kebab-case for the rest; a name that ends in
                `/<name>` brings a whole family, whose target gets the rest as `name=`.
            target: `"module:attribute"`, imported when first needed; `":attribute"` for one of
                the plugin's own file; or the function itself.
            card: Facts about it, such as a `ModelCard`; a plain `Card` where there is no other.
            defaults: Every parameter that a suite may set, with its default.
        """


@dataclass(frozen=True)
class ModelContext:
    """What a model is built for.

    Attributes:
        num_classes: Length of the logits.
        image_shape: (channel, height, width) of the suite's canvas; resize inside the model.
        model: Builds another registered model for the same data, by name.
    """

    num_classes: int
    image_shape: tuple[int, int, int]
    model: Callable[..., Any] = field(repr=False)


@dataclass(frozen=True)
class Evidence:
    """All that a metric may look at: the records of one model, and facts about it.

    Attributes:
        records: One for each sample, attack and epsilon.
        epsilons: The grid as the suite writes it, upwards, with its values in [0, 1] units.
        headline: The epsilon by which the board is sorted.
        facts: Numbers about the model itself: parameters, active_parameters, flops (one forward
            pass of one image, multiply and add counted apart).
    """

    records: Sequence[Record]
    epsilons: Mapping[str, float]
    headline: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class RunStart:
    """Told to observers before the first shard.

    Attributes:
        suite: Name of the suite.
        models: Rows that the run is for.
        shards: Shards to do.
        finished: Shards that an earlier run has done already.
    """

    suite: str
    models: tuple[str, ...]
    shards: int
    finished: int


@dataclass(frozen=True)
class EpochEnd:
    """Told to observers after each epoch of a training.

    Attributes:
        model: Row that is being trained.
        epoch: Epochs done.
        epochs: Epochs in all.
        numbers: Loss and whatever else the recipe reports.
    """

    model: str
    epoch: int
    epochs: int
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class ShardEnd:
    """Told to observers after each shard.

    Attributes:
        model: Row that the shard belongs to.
        shard: Its number.
        images: Images in it.
        seconds: Time that it took, in its worker.
        error: Why it could not be done; empty where it was.
    """

    model: str
    shard: int
    images: int
    seconds: float
    error: str = ""


@dataclass(frozen=True)
class RunEnd:
    """Told to observers after the last shard.

    Attributes:
        suite: Name of the suite.
        rows: The table, one JSON object for each model.
    """

    suite: str
    rows: tuple[Mapping[str, Any], ...]


class Executor(Protocol):
    """Does jobs somewhere and reports their end; results travel as files.

    A job is a value that can be pickled; `harness.workbench.Workbench(registry).perform(job)`
    does it in any process.
    """

    def __call__(self, jobs: Sequence[Any], *, registry: Any, workers: int) -> Iterator[ShardEnd]:
        """Do every job once and tell of each as it ends, in any order.

        Args:
            jobs: Shards to do.
            registry: Plugins of this process; another process loads its own from
                `registry.sources` and `registry.without`.
            workers: Most processes to use.
        """

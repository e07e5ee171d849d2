"""All that a plugin needs to be listed, free of torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pluggy

from harness.cards import (
    AttackCard,
    Card,
    DatasetCard,
    MetricCard,
    ModelCard,
    ObjectiveCard,
    Parameters,
    ProbeCard,
)
from harness.errors import (
    AttackError,
    CheckpointError,
    DataError,
    EntryError,
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
from harness.views import View

__all__ = [
    "AttackCard",
    "AttackError",
    "AttackFacts",
    "Box",
    "Card",
    "CheckpointError",
    "DataContext",
    "DataError",
    "DatasetCard",
    "EntryError",
    "EpochEnd",
    "Evidence",
    "Executor",
    "HarnessError",
    "ImageRows",
    "MetricCard",
    "ModelCard",
    "ModelContext",
    "ModelError",
    "Norm",
    "ObjectiveCard",
    "Parameters",
    "PluginError",
    "ProbeCard",
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
    "View",
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
        model: Builds another registered model for the same data, by name; two of one name get
            weights of their own.
    """

    num_classes: int
    image_shape: tuple[int, int, int]
    model: Callable[..., Any] = field(repr=False)


@dataclass(frozen=True)
class DataContext:
    """What a data set is asked for.

    Attributes:
        split: One of the card's.
        card: Facts about the data set.
        data_dir: Folder with local copies, each laid out as on the hub; None for none.
        is_offline: Nothing may touch the network.
        is_fetching: Files that are not here are downloaded into `data_dir`, and checked.
        ids: Samples that are needed; None for all of the split.
    """

    split: str
    card: DatasetCard
    data_dir: Path | None = None
    is_offline: bool = False
    is_fetching: bool = False
    ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ImageRows:
    """Where a data set's images are, and how to read them.

    Attributes:
        open: Gives a `datasets.Dataset` or `datasets.IterableDataset` in the order of the ids.
        where: Folder or hub id, for people.
        identity: Changes whenever the rows may have changed; decoded images are kept under it.
            Empty where decoding is too cheap to keep them.
        count: Number of rows, where it is known without reading them.
        is_prefix: Reading every row is too much (they are streamed): stop at the last id.
    """

    open: Callable[[], Any]
    where: str
    identity: str = ""
    count: int | None = None
    is_prefix: bool = False


@dataclass(frozen=True)
class AttackFacts:
    """What a metric may ask of an attack of a suite.

    Attributes:
        is_control: A yardstick that is no attack.
        shows_last: It never stops early and returned its last iterate for every image.
    """

    is_control: bool
    shows_last: bool


@dataclass(frozen=True)
class Evidence:
    """All that a metric may look at: the records of one model, and facts about it.

    Attributes:
        records: One for each sample, attack and epsilon, of the model as it is.
        diagnoses: The same for attacks that were judged in a part of a routed model.
        attacks: What is known of each attack by its label; of one that is another model's, nothing.
        epsilons: The grid as the suite writes it, upwards, with its values in [0, 1] units.
        headline: The epsilon by which the board is sorted.
        protocol: How epsilons share work; under "nested" what fools an image at one epsilon
            fools it at every larger one, also where an attack did not run there.
        facts: Numbers about the model itself: parameters, active_parameters, flops (one forward
            pass of one image, multiply and add counted apart).
    """

    records: Sequence[Record]
    epsilons: Mapping[str, float]
    headline: str
    facts: Mapping[str, Any]
    protocol: str = "independent"
    diagnoses: Sequence[Record] = ()
    attacks: Mapping[str, AttackFacts] = field(default_factory=dict)


@dataclass(frozen=True)
class RunStart:
    """Told to observers before the first shard.

    Attributes:
        suite: Name of the suite.
        models: Rows that the run is for.
        shards: Shards to do.
        finished: Shards that an earlier run has done already.
        workers: Processes that work at once.
    """

    suite: str
    models: tuple[str, ...]
    shards: int
    finished: int
    workers: int = 1


@dataclass(frozen=True)
class EpochEnd:
    """Told to observers after each epoch of a training.

    Attributes:
        model: Row that is being trained.
        epoch: Epochs done.
        epochs: Epochs in all.
        numbers: Loss and whatever else the recipe reports.
        images: Trained on in this epoch.
        seconds: Time that it took, without what looks at held-out images.
    """

    model: str
    epoch: int
    epochs: int
    numbers: Mapping[str, float]
    images: int = 0
    seconds: float = 0.0


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

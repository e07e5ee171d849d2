"""The hooks: what a plugin may bring to the harness, and what it may watch.

A plugin is a module. It implements any of these functions, each marked with `@hookimpl`:

    from harness import hookimpl

Every `register_...` hook is called once, alone, when the harness starts; its body is a list of
`register(name, target, card=..., defaults=...)` statements and imports nothing heavy: the target
is a string, imported when the thing is first needed (see `harness.api.Register`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from harness.api import EpochEnd, Register, RunEnd, RunStart, ShardEnd

hookspec = pluggy.HookspecMarker("harness")


@hookspec
def register_models(register: Register) -> None:
    """Bring models: `build(context: ModelContext, **defaults) -> nn.Module`.

    The module maps float32 images in [0, 1], (batch, channel, height, width), to logits;
    normalisation and resizing are inside it.

        @hookimpl
        def register_models(register):
            register("mine/linear", "my_plugin.model:build", card=ModelCard("A linear model."))
    """


@hookspec
def register_recipes(register: Register) -> None:
    """Bring training recipes: `recipe(context: TrainingContext, **defaults) -> Training`.

    @hookimpl
    def register_recipes(register):
        register("my-recipe", "my_plugin.train:recipe", defaults={"epochs": 10})
    """


@hookspec
def register_attacks(register: Register) -> None:
    """Bring attacks: `attack(objective, images, labels, threat, *, noise, **defaults) -> images`.

    @hookimpl
    def register_attacks(register):
        register("my-attack", "my_plugin.attack:attack", defaults={"steps": 20})
    """


@hookspec
def register_objectives(register: Register) -> None:
    """Bring objectives: `loss(outcome: Outcome) -> one number an image`, which attacks climb.

    @hookimpl
    def register_objectives(register):
        register("my-loss", "my_plugin.losses:loss", card=Card("What it measures."))
    """


@hookspec
def register_metrics(register: Register) -> None:
    """Bring metrics: `metric(evidence: Evidence) -> tuple[Value, ...]`, a column of the table.

    @hookimpl
    def register_metrics(register):
        register("my-metric", "my_plugin.metrics:metric", card=MetricCard("Its formula."))
    """


@hookspec
def register_probes(register: Register) -> None:
    """Bring probes: `probe(observation: Observation) -> dict of name to one number an image`.

    With `on="clean"` in its card a probe is given a `CleanObservation`, once for each image.

    @hookimpl
    def register_probes(register):
        register("my-probe", "my_plugin.probes:probe", card=ProbeCard("What it measures."))
    """


@hookspec
def register_datasets(register: Register) -> None:
    """Bring data sets: `load(context: DataContext, **defaults) -> ImageRows`.

    @hookimpl
    def register_datasets(register):
        register("my-data", "my_plugin.data:load", card=DatasetCard("What it shows.", ...))
    """


@hookspec
def register_suites(register: Register) -> None:
    """Bring suites: the target is the path of a TOML file beside the plugin.

    @hookimpl
    def register_suites(register):
        register("my-suite", str(Path(__file__).with_name("my-suite.toml")))
    """


@hookspec
def register_executors(register: Register) -> None:
    """Bring executors: `executor(jobs, *, registry, workers) -> ShardEnd each`.

    @hookimpl
    def register_executors(register):
        register("my-cluster", "my_plugin.cluster:executor", card=Card("Where it runs."))
    """


@hookspec
def register_converters(register: Register) -> None:
    """Bring converters: `convert(path) -> state dict` of a foreign checkpoint.

    @hookimpl
    def register_converters(register):
        register("my-format", "my_plugin.convert:convert", card=Card("What it reads."))
    """


@hookspec
def run_started(event: RunStart) -> None:
    """Watch: a run is about to do its first shard.

    @hookimpl
    def run_started(event):
        print(event.suite, event.shards)
    """


@hookspec
def epoch_finished(event: EpochEnd) -> None:
    """Watch: a training has finished an epoch.

    @hookimpl
    def epoch_finished(event):
        print(event.model, event.epoch, event.numbers)
    """


@hookspec
def shard_finished(event: ShardEnd) -> None:
    """Watch: a shard is done, or was given up.

    @hookimpl
    def shard_finished(event):
        print(event.model, event.shard, event.seconds)
    """


@hookspec
def run_finished(event: RunEnd) -> None:
    """Watch: a run has ended and its table is known.

    @hookimpl
    def run_finished(event):
        print(event.rows)
    """

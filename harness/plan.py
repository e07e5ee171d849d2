"""The plan of a run: which rows, which trainings, which cells, which shards; without torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import hashing
from harness.errors import CheckpointError, UsageError
from harness.modes import PLAIN
from harness.store import Shard
from harness.suite import ModelSpec, Suite, member_spec, members_of
from harness.views import DIAGNOSTIC, View

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from harness.cards import DatasetCard, ModelCard, ObjectiveCard
    from harness.modes import TrainingMode
    from harness.registry import Registry
    from harness.suite import AttackSpec

KEY_VERSION = 3
"""Raised when the rules of judging change, so that old records are not mixed with new ones."""

ALL = "all"
PRETRAINED = "pretrained"
"""Weights that a model's builder fetches itself, where it has a parameter of this name."""


@dataclass(frozen=True)
class Contender:
    """One row of the table: a model with its weights.

    Attributes:
        model: Registered name.
        recipe: What trains it; empty where the weights come otherwise.
        weights: File or URL; "included" where building the model brings them, "pretrained"
            where it does when asked to.
        sha256: Hash that the file must have; empty where nobody stated one.
        start: File of weights that the recipe starts from; empty for the model's own start.
    """

    model: str
    recipe: str = ""
    weights: str = ""
    sha256: str = ""
    start: str = ""

    @property
    def row(self) -> str:
        """Its name in tables and files."""
        return f"{self.model}.{self.recipe}" if self.recipe else self.model


def contenders(
    suite: Suite,
    wanted: Sequence[str],
    registry: Registry,
    *,
    weights: str = "",
    start: str = "",
) -> tuple[Contender, ...]:
    """The rows that a run is for.

    Args:
        suite: Whose default rows stand where nothing is wanted.
        wanted: Names as `--model` gives them: a model takes the suite's rows of it, or the
            suite's recipe; `model.recipe` takes that recipe; "all" takes every registered model
            that fits the images, beside the suite's rows.
        registry: Where names are looked up.
        weights: File that replaces the recipe of the one model wanted.
        start: File of weights that the training of the one model wanted starts from.

    Raises:
        UnknownName: A model that nobody registered.
        UsageError: Weights for more or fewer than one model, or for one that is not trained.
    """
    if start and (weights or len(wanted) != 1 or wanted[0] == ALL):
        raise UsageError(
            "--start belongs to the training of one model: give exactly one --model with it, "
            "and no --weights"
        )
    if weights and (len(wanted) != 1 or wanted[0] == ALL):
        raise UsageError("--weights belongs to one model: give exactly one --model with it")
    if weights:
        entry = registry.find("models", wanted[0])
        if weights == PRETRAINED and PRETRAINED not in entry.defaults:
            raise UsageError(
                f"model {wanted[0]!r} brings no pretrained weights; give a file with --weights"
            )
        return (Contender(wanted[0], weights=weights),)
    specs: list[ModelSpec] = [] if wanted else list(suite.models)
    for name in wanted:
        specs += _everything(suite, registry) if name == ALL else _named(suite, name, registry)
    found = tuple(dict.fromkeys(_contender(spec, registry) for spec in specs))
    return tuple(_started(contender, start) for contender in found) if start else found


def _started(contender: Contender, start: str) -> Contender:
    if not contender.recipe:
        raise UsageError(
            f"--start: {contender.row} has its weights already; name a recipe with --recipe"
        )
    return replace(contender, start=start)


def _everything(suite: Suite, registry: Registry) -> list[ModelSpec]:
    height = suite.data.canvas.height
    listed = {spec.name for spec in suite.models}
    others = [
        ModelSpec(entry.name, suite.recipe)
        for entry in registry.listed("models")
        if not entry.is_family and entry.name not in listed and _fits(entry.card, height)
    ]
    return [*suite.models, *others]


def _fits(card: ModelCard, height: int) -> bool:
    return not card.sizes or height in card.sizes


def _named(suite: Suite, name: str, registry: Registry) -> list[ModelSpec]:
    model, _, recipe = name.rpartition(".")
    if model and recipe in registry.names("recipes"):
        registry.find("models", model)
        return [ModelSpec(model, recipe)]
    listed = [spec for spec in suite.models if spec.name == name]
    if listed:
        return listed
    registry.find("models", name)
    return [ModelSpec(name, suite.recipe)]


def _contender(spec: ModelSpec, registry: Registry) -> Contender:
    card: ModelCard = registry.find("models", spec.name).card
    if card.weights:
        return Contender(spec.name, weights=card.weights, sha256=card.sha256)
    return Contender(spec.name, recipe=spec.recipe)


def trained_as(contender: Contender, registry: Registry) -> Contender:
    """The row whose training gives a row its weights: its own, but where its card says another."""
    card: ModelCard = registry.find("models", contender.model).card
    return replace(contender, model=card.trained_as) if card.trained_as else contender


def training_ingredients(
    suite: Suite,
    contender: Contender,
    registry: Registry,
    *,
    fingerprint: str,
    seed: int,
    mode: TrainingMode = PLAIN,
) -> dict[str, Any]:
    """All that trained weights depend on.

    Args:
        suite: Whose parameters of the recipe count.
        contender: Model and recipe.
        registry: Where both are looked up.
        fingerprint: Of the images to train on.
        seed: Of initialisation, order and augmentation.
        mode: How passes are computed; the plain one leaves the key as it is without it.

    Raises:
        CheckpointError: The file that the training starts from cannot be read.
    """
    contender = trained_as(contender, registry)
    recipe = registry.find("recipes", contender.recipe)
    model = registry.find("models", contender.model)
    set_by_suite = suite.recipes.get(contender.recipe, {})
    return {
        "algorithm": KEY_VERSION,
        "model": contender.model,
        "model_parameters": dict(model.defaults),
        "recipe": contender.recipe,
        "recipe_parameters": recipe.settle(set_by_suite, f"suite {suite.name}"),
        "code": {entry.plugin.name: entry.plugin.sha256 for entry in (model, recipe)},
        "data": fingerprint,
        "seed": seed,
        **({"start": _hash_of(Path(contender.start))} if contender.start else {}),
        **({"mode": mode.name} if mode != PLAIN else {}),
    }


def _hash_of(start: Path) -> str:
    try:
        return hashing.of_file(start)
    except OSError as error:
        raise CheckpointError(
            f"{start}: cannot be read: {error.strerror}; give --start a file of weights"
        ) from error


def cell_ingredients(
    suite: Suite,
    contender: Contender,
    registry: Registry,
    *,
    sources: Sequence[dict[str, Any]] = (),
    **facts: str | int,
) -> dict[str, Any]:
    """All that the records of a cell depend on: never host, time, path, limit or workers.

    Args:
        suite: What is measured.
        contender: On which row.
        registry: Whose code does it.
        sources: Identities of the images that were made on other models; none for most cells.
        facts: `data` (fingerprint), `weights` (sha256), `seed` and `precision`.
    """
    used = {("models", contender.model), ("datasets", suite.data.name)}
    used |= {("attacks", attack.name) for attack in suite.attacks}
    used |= {("objectives", attack.objective) for attack in suite.attacks}
    used |= {("probes", probe) for probe in suite.probes}
    for attack in suite.attacks:
        members = members_of(registry.find("attacks", attack.name), attack.parameters)
        specs = [member_spec(member, registry) for member in members]
        used |= {("attacks", spec.name) for spec in specs}
        used |= {("objectives", spec.objective) for spec in specs}
    plugins = {registry.find(kind, name).plugin for kind, name in used}
    group = registry.find("models", contender.model).card.group
    return {
        "algorithm": KEY_VERSION,
        "suite": suite.science(),
        "model": contender.model,
        "model_parameters": dict(registry.find("models", contender.model).defaults),
        **({"group": group} if group > 1 else {}),
        "code": {plugin.name: plugin.sha256 for plugin in plugins},
        **({"sources": list(sources)} if sources else {}),
        **facts,
    }


def key(ingredients: dict[str, Any]) -> str:
    """The name of a cell's or a training's folder: 16 hexadecimal digits of the hash."""
    return hashing.of_value(ingredients)[:16]


def sample_ids(suite: Suite, card: DatasetCard) -> tuple[int, ...]:
    """The suite's samples in the order of its shards."""
    return suite.data.samples or tuple(range(card.splits[suite.data.split]))


def shards(ids: Sequence[int], size: int, limit: int | None = None) -> Iterator[Shard]:
    """The shards of some samples; the last one is cut where a limit falls into it.

    >>> [shard.name for shard in shards(range(10), 4, limit=6)]
    ['00000', '00001.first-2']
    """
    for index, start in enumerate(range(0, len(ids), size)):
        whole = tuple(ids[start : start + size])
        kept = whole if limit is None else whole[: max(0, limit - start)]
        if not kept:
            return
        yield Shard(index, kept, is_whole=len(kept) == len(whole))


def with_attacks(suite: Suite, attacks: Iterable[Any]) -> Suite:
    """The suite with other attacks; never for the board."""
    chosen = tuple(attacks)
    return replace(suite, attacks=chosen) if chosen else suite


def needs_routes(attack: AttackSpec, registry: Registry) -> bool:
    """The attack, its objective or all that it calls has no meaning for a dense model."""
    entry = registry.find("attacks", attack.name)
    objective: ObjectiveCard = registry.find("objectives", attack.objective).card
    if entry.card.needs_routes or objective.needs_routes or attack.view in DIAGNOSTIC:
        return True
    members = [member_spec(name, registry) for name in members_of(entry, attack.parameters)]
    return bool(members) and all(needs_routes(member, registry) for member in members)


def passes(suite: Suite, registry: Registry) -> int | None:
    """Most forward passes that one image can cost, over all attacks and epsilons.

    Returns:
        None where an attack does not say what it costs.
    """
    total = 0
    for attack in suite.attacks:
        card = registry.find("attacks", attack.name).card
        if card.passes is None:
            return None
        looks = card.passes(attack.parameters) * len(attack.epsilons or suite.epsilons)
        total += looks * View(attack.view).most_passes
    return total

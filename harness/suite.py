"""Suites: what is measured, read from TOML into frozen values, unknown keys refused."""

from __future__ import annotations

import re
import tomllib
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from harness import hashing
from harness.canvas import Canvas, Fit, Interpolation
from harness.errors import HarnessError, SuiteError
from harness.hints import did_you_mean
from harness.tables import Table
from harness.threat import Box, Norm, ThreatModel, radius
from harness.views import DIAGNOSTIC, ViewName

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from harness.cards import DatasetCard
    from harness.registry import Entry, Registry

SPACES = ("canvas", "model")
PROTOCOLS = ("nested", "independent", "descending")


@dataclass(frozen=True)
class Epsilon:
    """A radius, as the suite writes it and as a number in [0, 1] units."""

    text: str
    value: float


@dataclass(frozen=True)
class DataSpec:
    """The images of a suite.

    Attributes:
        name: Registered data set.
        canvas: Their size, and how others come to it.
        space: "canvas"; or "model", where each model is attacked at its own input size.
        split: Evaluated split.
        train: Split that recipes train on.
        validation: Split that recipes may look at while they train; empty for none.
        fingerprints: Copies of the data that this suite's board accepts; empty accepts any one
            that is not named as another.
        copies: Names of other copies, by fingerprint; each has a board of its own.
        samples: Frozen ids, in the order of the shards; empty takes the whole split.
        labels: "one" class is correct for an image, or "sets" of classes from a file.
    """

    name: str
    canvas: Canvas
    space: str = "canvas"
    split: str = "test"
    train: str = "train"
    validation: str = ""
    fingerprints: tuple[str, ...] = ()
    copies: Mapping[str, str] = field(default_factory=dict)
    samples: tuple[int, ...] = ()
    labels: str = "one"

    def copy_of(self, fingerprint: str) -> str:
        """The name of the copy with this fingerprint; empty for the one the board accepts."""
        if fingerprint in self.copies:
            return self.copies[fingerprint]
        is_known = not self.fingerprints or fingerprint in self.fingerprints
        return "" if is_known else fingerprint[:8]


@dataclass(frozen=True)
class AttackSpec:
    """One attack of a suite.

    Attributes:
        name: Registered attack.
        label: Its name in records and tables.
        objective: Registered objective that it climbs.
        parameters: All of them, defaults filled in.
        epsilons: Where it runs, as the suite writes them; empty for the whole grid.
        view: How it looks at a routed model.
    """

    name: str
    label: str
    objective: str
    parameters: Mapping[str, Any]
    epsilons: tuple[str, ...] = ()
    view: ViewName = "full"


@dataclass(frozen=True)
class ModelSpec:
    """One default row of a suite: a model, and the recipe that trains it."""

    name: str
    recipe: str


@dataclass(frozen=True)
class Suite:
    """What is measured and how.

    Attributes:
        name, version, title: Which suite this is.
        data: Its images.
        norm, box, epsilons, headline: Its threat models; epsilons upwards.
        protocol: How epsilons share work.
        shard_size: Images of one unit of work.
        attacks: In their order.
        metrics, probes, curves: Registered names; curves are metrics with many values.
        models: Default rows.
        recipe: What trains a model that the suite does not list.
        recipes: Parameters that differ from a recipe's defaults, by recipe.
        copy: Name of the only copy of the data that will do; empty for any.
    """

    name: str
    version: int
    title: str
    data: DataSpec
    norm: Norm
    epsilons: tuple[Epsilon, ...]
    headline: str
    attacks: tuple[AttackSpec, ...]
    metrics: tuple[str, ...]
    box: Box = "pixels"
    protocol: str = "nested"
    shard_size: int = 128
    probes: tuple[str, ...] = ()
    models: tuple[ModelSpec, ...] = ()
    recipe: str = "standard"
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    copy: str = ""
    curves: tuple[str, ...] = ()

    def board(self, copy: str) -> str:
        """The name under which numbers of a copy of the data stand."""
        variants = ["model-space"] if self.data.space == "model" else []
        return "@".join([self.name, *variants, *([copy] if copy else [])])

    def threats(self) -> dict[str, ThreatModel]:
        """The ball of each epsilon, upwards."""
        return {
            epsilon.text: ThreatModel(self.norm, epsilon.value, self.box)
            for epsilon in self.epsilons
        }

    def science(self) -> dict[str, Any]:
        """All that a measured number depends on, as plain values for a hash."""
        data = self.data
        return {
            "version": self.version,
            "data": {
                "name": data.name.partition("/")[0],  # of a folder, the fingerprint says which
                "split": data.split,
                "canvas": list(vars(data.canvas).values()) if data.space == "canvas" else "model",
                "samples": hashing.of_value(data.samples) if data.samples else "all",
                "labels": data.labels,
            },
            "norm": self.norm,
            "box": self.box,
            "epsilons": [[epsilon.text, epsilon.value] for epsilon in self.epsilons],
            "protocol": self.protocol,
            "shard_size": self.shard_size,
            "attacks": [asdict(attack) for attack in self.attacks],
            "probes": list(self.probes),
        }


def find_suite(name: str, registry: Registry) -> Suite:
    """The suite of a name, or of a TOML file; `name@model-space` and `name@copy` are variants.

    Raises:
        UnknownName: No suite has this name.
        SuiteError: The file is missing or wrong.
    """
    stem, is_file, rest = name.rpartition(".toml")  # a folder's name may hold an @, too
    base, *variants = rest.split("@") if is_file else name.split("@")
    base = f"{stem}{is_file}{base}" if is_file else base
    suite = _found(base, registry)
    for variant in variants:
        if variant == "model-space":
            suite = replace(suite, data=replace(suite.data, space="model"))
        else:
            suite = replace(suite, copy=variant)
    return suite


def _found(name: str, registry: Registry) -> Suite:
    if name.endswith(".toml"):
        return read_suite(Path(name), registry)
    shipped = shipped_suites()
    if name in shipped:
        return read_suite(shipped[name], registry)
    if not registry.has("suites", name):
        known = [*shipped, *registry.names("suites")]
        raise SuiteError(
            f"suite {name!r} is not known{did_you_mean(name, known, see='harness ls suites')}, "
            "or give a .toml file"
        )
    return read_suite(Path(registry.find("suites", name).target), registry)


def shipped_suites() -> dict[str, Path]:
    """The files of the suites that come with the harness, by name."""
    folder = Path(str(resources.files("harness") / "suites"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def read_suite(path: Path, registry: Registry) -> Suite:
    """The suite that a TOML file describes.

    Raises:
        SuiteError: No such file, no TOML, an unknown or missing key, an illegal value.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SuiteError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SuiteError(f"{path}: not TOML: {error}") from error
    try:
        return _suite(Table(content, str(path)), registry)
    except SuiteError:
        raise
    except HarnessError as error:
        raise SuiteError(f"{path}: {error}") from error


def attack_spec(
    name: str, objective: str, registry: Registry, *, where: str = "--attack"
) -> AttackSpec:
    """A registered attack with its default parameters; an empty objective takes the card's."""
    content = {"name": name} | ({"objective": objective} if objective else {})
    return _attack(Table(content, where), registry)


def parse_epsilon(written: object, norm: str, where: str) -> Epsilon:
    """A radius from `"8/255"`, `"0.5"` or `0.5`.

    Raises:
        SuiteError: Not a number, not positive, or in pixel values.
    """
    try:
        threat = ThreatModel(norm, radius(written))  # type: ignore[arg-type]
    except HarnessError as error:
        raise SuiteError(f"{where}: {error}") from error
    return Epsilon(str(written).replace(" ", ""), threat.epsilon)


def _suite(table: Table, registry: Registry) -> Suite:
    name = table.take("name", str)
    threat = table.table("threat")
    norm: Any = threat.choice("norm", get_args(Norm))
    epsilons = tuple(
        sorted(
            (parse_epsilon(item, norm, threat.where) for item in threat.take("epsilons", list)),
            key=lambda epsilon: epsilon.value,
        )
    )
    _check_name(name, table.where)
    suite = Suite(
        name=name,
        version=table.take("version", int),
        title=table.take("title", str, name),
        data=_data(table.table("data"), registry, Path(table.where).parent),
        norm=norm,
        box=threat.choice("box", get_args(Box), "pixels"),  # type: ignore[arg-type]
        epsilons=epsilons,
        headline=parse_epsilon(threat.take("headline", object), norm, threat.where).text,
        protocol=table.choice("protocol", PROTOCOLS, "nested"),
        shard_size=table.take("shard_size", int, 128),
        attacks=tuple(_attack(item, registry) for item in table.tables("attacks")),
        metrics=_columns(table, registry),
        curves=_curves(table, registry),
        probes=_known("probes", table.strings("probes", ()), table, registry),
        models=tuple(_model(item, registry) for item in table.tables("models")),
        recipe=_known("recipes", [table.take("recipe", str, "standard")], table, registry)[0],
        recipes=_recipes(table.table("recipes"), registry),
    )
    threat.finish()
    table.finish()
    _check(suite, table.where)
    check_objectives(suite, table.where, registry)
    return suite


_METRICS = (
    "clean-accuracy",
    "robust-accuracy",
    "auc",
    "parameters",
    "active-parameters",
    "gflops",
)


def _columns(table: Table, registry: Registry) -> tuple[str, ...]:
    names = _known("metrics", table.strings("metrics", _METRICS), table, registry)
    for name in names:
        if registry.find("metrics", name).card.is_curve:
            raise SuiteError(
                f"{table.where}: metric {name!r} has many values and is no column; list it under "
                "'curves'"
            )
    return names


def _curves(table: Table, registry: Registry) -> tuple[str, ...]:
    names = _known("metrics", table.strings("curves", ()), table, registry)
    for name in names:
        if not registry.find("metrics", name).card.is_curve:
            raise SuiteError(
                f"{table.where}: metric {name!r} is a column and no curve; list it under 'metrics'"
            )
    return names


def _check(suite: Suite, where: str) -> None:
    if not suite.attacks:
        raise SuiteError(f"{where}: at least one [[attacks]] is needed")
    texts = [epsilon.text for epsilon in suite.epsilons]
    if len({epsilon.value for epsilon in suite.epsilons}) < len(texts):
        raise SuiteError(f"{where}: an epsilon is listed twice")
    if not texts:
        raise SuiteError(f'{where}: [threat]: epsilons is empty; write some, such as ["8/255"]')
    if suite.headline not in texts:
        raise SuiteError(
            f"{where}: [threat]: headline {suite.headline} is not one of its epsilons, "
            f"{', '.join(texts)}"
        )
    if suite.shard_size < 1:
        raise SuiteError(f"{where}: shard_size must be at least 1")
    _check_attacks(suite, texts, where)


def _check_attacks(suite: Suite, grid: Sequence[str], where: str) -> None:
    labels = [attack.label for attack in suite.attacks]
    for attack in suite.attacks:
        if labels.count(attack.label) > 1:
            raise SuiteError(
                f"{where}: two attacks are labelled {attack.label!r}; give one a 'label'"
            )
        for text in attack.epsilons:
            if text not in grid:
                raise SuiteError(
                    f"{where}: attack {attack.label!r}: epsilon {text} is not one of the grid, "
                    f"{', '.join(grid)}"
                )


def check_objectives(suite: Suite, where: str, registry: Registry) -> None:
    """Refuse objectives that have no meaning for the suite's labels.

    Raises:
        SuiteError: Names the attack and other objectives.
    """
    if suite.data.labels != "sets":
        return
    for attack in suite.attacks:
        members = members_of(registry.find("attacks", attack.name), attack.parameters)
        for spec in (attack, *(member_spec(member, registry) for member in members)):
            if registry.find("objectives", spec.objective).card.one_label:
                raise SuiteError(
                    f"{where}: attack {attack.label!r}: objective {spec.objective!r} has no "
                    "meaning for images with several correct classes; take 'ce', 'margin' or "
                    "'sigmoid-ce'"
                )


def _check_name(name: str, where: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise SuiteError(f"{where}: name {name!r} must be letters, digits and any of - _ .")


def _data(table: Table, registry: Registry, folder: Path) -> DataSpec:
    name = _known("datasets", [table.take("name", str)], table, registry)[0]
    card: DatasetCard = registry.find("datasets", name).card
    split = table.choice("split", card.splits, "test" if "test" in card.splits else None)
    copies = table.table("copies")
    spec = DataSpec(
        name=name,
        canvas=_canvas(table.table("canvas"), card),
        space=table.choice("space", SPACES, "canvas"),
        split=split,
        train=table.choice("train", ["", *card.splits], "train" if "train" in card.splits else ""),
        validation=table.choice("validation", ["", *card.splits], ""),
        fingerprints=table.strings("fingerprints", ()),
        copies={copies.take(label, str): label for label in list(copies.content)},
        samples=_samples(table, card.splits[split], folder),
        labels=table.choice("labels", ("one", "sets"), "one"),
    )
    table.finish()
    return spec


def _canvas(table: Table, card: DatasetCard) -> Canvas:
    """The canvas that a suite states, or that of images which are all of one size."""
    channels, height, _ = card.image_shape
    size = table.take("size", int, height)
    if size < 1:
        raise SuiteError(f"{table.where}: the images differ in size; write one, such as size = 224")
    fit: Any = table.choice("fit", get_args(Fit), "exact" if size == height else "crop")
    interpolation: Any = table.choice("interpolation", get_args(Interpolation), "bicubic")
    resize = table.take("resize", int, size)
    table.finish()
    if resize < size:
        raise SuiteError(f"{table.where}: resize {resize} is smaller than size {size}")
    return Canvas(channels, size, size, fit, resize, interpolation)


def _samples(table: Table, count: int, folder: Path) -> tuple[int, ...]:
    """Frozen ids: a list, or the name of a text file beside the suite with one id a line."""
    written: Any = table.take("samples", object, [])
    if isinstance(written, str):
        path = folder / written
        try:
            written = [int(line) for line in path.read_text(encoding="utf-8").split()]
        except (OSError, ValueError) as error:
            raise SuiteError(f"{table.where}: samples: {path} cannot be read: {error}") from error
    if not isinstance(written, list):
        raise SuiteError(f"{table.where}: samples must be a list or a file's name")
    in_range = all(type(item) is int and 0 <= item < count for item in written)
    if len(set(written)) < len(written) or not in_range:
        raise SuiteError(
            f"{table.where}: samples must be different whole numbers from 0 to {count - 1}"
        )
    return tuple(written)


def _attack(table: Table, registry: Registry) -> AttackSpec:
    name = _known("attacks", [table.take("name", str)], table, registry)[0]
    entry = registry.find("attacks", name)
    objective = table.take("objective", str, entry.card.objective)
    _known("objectives", [objective], table, registry)
    label = table.take("label", str, name)
    epsilons = table.strings("epsilons", ())
    own_view = registry.find("objectives", objective).card.view
    view: Any = table.choice("view", get_args(ViewName), own_view)
    try:
        parameters = entry.settle(table.content, table.where)
    except HarnessError as error:
        raise SuiteError(str(error)) from error
    if entry.card.members and view != "full":
        raise SuiteError(
            f"{table.where}: attack {name!r} calls others, each in its own view; leave 'view' out"
        )
    for member in members_of(entry, parameters):
        _checked_member(member, table, registry)
    return AttackSpec(name, label, objective, parameters, epsilons, view)


def members_of(entry: Entry, parameters: Mapping[str, Any]) -> tuple[str, ...]:
    """The other attacks that an attack calls, as its parameters write them."""
    return tuple(parameters[entry.card.members]) if entry.card.members else ()


def member_spec(member: object, registry: Registry) -> AttackSpec:
    """The attack that `name` or `name:objective` means among the members of another.

    Raises:
        SuiteError: It is not known, calls others itself, or has a verdict of its own.
    """
    if not isinstance(member, str):
        raise SuiteError(f"attacks: {member!r} is no name; write each as 'apgd' or 'apgd:dlr'")
    name, _, objective = member.partition(":")
    spec = attack_spec(name, objective, registry, where="attacks")
    if registry.find("attacks", name).card.members:
        raise SuiteError(f"attack {name!r} calls others itself; list those instead")
    if spec.view in DIAGNOSTIC:
        raise SuiteError(
            f"objective {spec.objective!r} is judged in its own view; list it as an attack of "
            "its own"
        )
    return spec


def _checked_member(member: object, table: Table, registry: Registry) -> None:
    try:
        member_spec(member, registry)
    except HarnessError as error:
        raise SuiteError(f"{table.where}: {error}") from error


def _model(table: Table, registry: Registry) -> ModelSpec:
    name = _known("models", [table.take("name", str)], table, registry)[0]
    recipe = _known("recipes", [table.take("recipe", str, "standard")], table, registry)[0]
    table.finish()
    return ModelSpec(name, recipe)


def _recipes(table: Table, registry: Registry) -> dict[str, dict[str, Any]]:
    found = {}
    for name in list(table.content):
        entry = registry.find("recipes", _known("recipes", [name], table, registry)[0])
        parameters = table.take(name, dict)
        entry.settle(parameters, f"{table.where}: {name}")
        found[name] = parameters
    return found


def _known(kind: str, names: Iterable[str], table: Table, registry: Registry) -> tuple[str, ...]:
    """The names, each checked to be registered."""
    for name in names:
        try:
            registry.find(kind, name)
        except HarnessError as error:
            raise SuiteError(f"{table.where}: {error}") from error
    return tuple(names)

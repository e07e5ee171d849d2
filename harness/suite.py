"""Suites: what is measured, read from TOML into frozen values, unknown keys refused."""

from __future__ import annotations

import re
import tomllib
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from harness.errors import HarnessError, SuiteError
from harness.hints import did_you_mean
from harness.threat import Box, Norm, ThreatModel, radius

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from harness.plugins import Registry

PROTOCOLS = ("nested", "independent", "descending")
_Kind = TypeVar("_Kind")


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
        split: Evaluated split.
        train: Split that recipes train on.
        validation: Split that recipes may look at while they train; empty for none.
        fingerprints: Copies of the data that this suite accepts; empty accepts any.
        samples: Frozen ids, in the order of the shards; empty takes the whole split.
    """

    name: str
    split: str = "test"
    train: str = "train"
    validation: str = ""
    fingerprints: tuple[str, ...] = ()
    samples: tuple[int, ...] = ()


@dataclass(frozen=True)
class AttackSpec:
    """One attack of a suite.

    Attributes:
        name: Registered attack.
        label: Its name in records and tables.
        objective: Registered objective that it climbs.
        parameters: All of them, defaults filled in.
    """

    name: str
    label: str
    objective: str
    parameters: Mapping[str, Any]


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
        metrics, probes: Registered names.
        models: Default rows.
        recipe: What trains a model that the suite does not list.
        recipes: Parameters that differ from a recipe's defaults, by recipe.
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

    def threats(self) -> dict[str, ThreatModel]:
        """The ball of each epsilon, upwards."""
        return {
            epsilon.text: ThreatModel(self.norm, epsilon.value, self.box)
            for epsilon in self.epsilons
        }

    def science(self) -> dict[str, Any]:
        """All that a measured number depends on, as plain values for a hash."""
        content = asdict(self)
        for key in ("title", "metrics", "models", "recipe", "recipes"):
            del content[key]
        del content["data"]["fingerprints"]
        return content


def find_suite(name: str, registry: Registry) -> Suite:
    """The suite of a name, or of a TOML file.

    Raises:
        UnknownName: No suite has this name.
        SuiteError: The file is missing or wrong.
    """
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
        return _suite(_Table(content, str(path)), registry)
    except SuiteError:
        raise
    except HarnessError as error:
        raise SuiteError(f"{path}: {error}") from error


def attack_spec(name: str, objective: str, registry: Registry) -> AttackSpec:
    """A registered attack with its default parameters; an empty objective takes the card's."""
    return _attack(
        _Table({"name": name} | ({"objective": objective} if objective else {}), "--attack"),
        registry,
    )


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


class _Table:
    """A TOML table that is read key by key, and refuses what nobody asked for."""

    def __init__(self, content: Mapping[str, Any], where: str) -> None:
        self.content = dict(content)
        self.where = where
        self.asked: list[str] = []

    def take(self, key: str, kind: type[_Kind], default: _Kind | None = None) -> _Kind:
        """The value of a key, of one type; missing keys take the default or are an error."""
        self.asked.append(key)
        if key not in self.content:
            if default is None:
                raise SuiteError(f"{self.where}: the key {key!r} is missing")
            return default
        value = self.content.pop(key)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise SuiteError(f"{self.where}: {key} must be {_KIND_NAMES[kind]}, not {value!r}")
        return value

    def table(self, key: str) -> _Table:
        """A table inside this one; empty where it is missing."""
        return _Table(self.take(key, dict, {}), f"{self.where}: [{key}]")

    def tables(self, key: str) -> list[_Table]:
        """A list of tables inside this one."""
        found = self.take(key, list, [])
        if not all(isinstance(item, dict) for item in found):
            raise SuiteError(f"{self.where}: {key} must be a list of tables, [[{key}]]")
        return [
            _Table(item, f"{self.where}: [[{key}]] number {number}")
            for number, item in enumerate(found, 1)
        ]

    def strings(self, key: str, default: Iterable[str] | None = None) -> tuple[str, ...]:
        """A list of strings."""
        found = self.take(key, list, None if default is None else list(default))
        if not all(isinstance(item, str) for item in found):
            raise SuiteError(f"{self.where}: {key} must be a list of strings, not {found!r}")
        return tuple(found)

    def choice(self, key: str, legal: Iterable[str], default: str | None = None) -> str:
        """One of a few words."""
        value = self.take(key, str, default)
        if value not in legal:
            raise SuiteError(
                f"{self.where}: {key} {value!r} is not known{did_you_mean(value, legal)}"
            )
        return value

    def finish(self) -> None:
        """Refuse the keys that are left."""
        for key in self.content:
            raise SuiteError(
                f"{self.where}: the key {key!r} is not known{did_you_mean(key, self.asked)}"
            )


_KIND_NAMES: dict[type, str] = {
    str: "a string",
    int: "a whole number",
    list: "a list",
    dict: "a table",
    object: "a number or a string",
}


def _suite(table: _Table, registry: Registry) -> Suite:
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
        data=_data(table.table("data"), registry),
        norm=norm,
        box=threat.choice("box", get_args(Box), "pixels"),  # type: ignore[arg-type]
        epsilons=epsilons,
        headline=parse_epsilon(threat.take("headline", object), norm, threat.where).text,
        protocol=table.choice("protocol", PROTOCOLS, "nested"),
        shard_size=table.take("shard_size", int, 128),
        attacks=tuple(_attack(item, registry) for item in table.tables("attacks")),
        metrics=_known("metrics", table.strings("metrics", _METRICS), table, registry),
        probes=_known("probes", table.strings("probes", ()), table, registry),
        models=tuple(_model(item, registry) for item in table.tables("models")),
        recipe=_known("recipes", [table.take("recipe", str, "standard")], table, registry)[0],
        recipes=_recipes(table.table("recipes"), registry),
    )
    threat.finish()
    table.finish()
    _check(suite, table.where)
    return suite


_METRICS = (
    "clean-accuracy",
    "robust-accuracy",
    "auc",
    "parameters",
    "active-parameters",
    "gflops",
)


def _check(suite: Suite, where: str) -> None:
    if not suite.attacks:
        raise SuiteError(f"{where}: at least one [[attacks]] is needed")
    labels = [attack.label for attack in suite.attacks]
    for label in labels:
        if labels.count(label) > 1:
            raise SuiteError(f"{where}: two attacks are labelled {label!r}; give one a 'label'")
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


def _check_name(name: str, where: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise SuiteError(f"{where}: name {name!r} must be letters, digits and any of - _ .")


def _data(table: _Table, registry: Registry) -> DataSpec:
    name = _known("datasets", [table.take("name", str)], table, registry)[0]
    splits = registry.find("datasets", name).card.splits
    samples = table.take("samples", list, [])
    split = table.choice("split", splits, "test")
    if len(set(samples)) < len(samples) or not all(
        type(item) is int and 0 <= item < splits[split] for item in samples
    ):
        raise SuiteError(
            f"{table.where}: samples must be different whole numbers from 0 to {splits[split] - 1}"
        )
    spec = DataSpec(
        name=name,
        split=split,
        train=table.choice("train", splits, "train"),
        validation=table.choice("validation", ["", *splits], ""),
        fingerprints=table.strings("fingerprints", ()),
        samples=tuple(samples),
    )
    table.finish()
    return spec


def _attack(table: _Table, registry: Registry) -> AttackSpec:
    name = _known("attacks", [table.take("name", str)], table, registry)[0]
    entry = registry.find("attacks", name)
    objective = table.take("objective", str, entry.card.objective)
    _known("objectives", [objective], table, registry)
    label = table.take("label", str, name)
    try:
        parameters = entry.settle(table.content, table.where)
    except HarnessError as error:
        raise SuiteError(str(error)) from error
    return AttackSpec(name, label, objective, parameters)


def _model(table: _Table, registry: Registry) -> ModelSpec:
    name = _known("models", [table.take("name", str)], table, registry)[0]
    recipe = _known("recipes", [table.take("recipe", str, "standard")], table, registry)[0]
    table.finish()
    return ModelSpec(name, recipe)


def _recipes(table: _Table, registry: Registry) -> dict[str, dict[str, Any]]:
    found = {}
    for name in list(table.content):
        entry = registry.find("recipes", _known("recipes", [name], table, registry)[0])
        parameters = table.take(name, dict)
        entry.settle(parameters, f"{table.where}: {name}")
        found[name] = parameters
    return found


def _known(kind: str, names: Iterable[str], table: _Table, registry: Registry) -> tuple[str, ...]:
    """The names, each checked to be registered."""
    for name in names:
        try:
            registry.find(kind, name)
        except HarnessError as error:
            raise SuiteError(f"{table.where}: {error}") from error
    return tuple(names)

"""Plugins: found, loaded one by one, and each called alone for what it brings."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from harness import hashing, hookspecs
from harness.cards import (
    AttackCard,
    Card,
    DatasetCard,
    MetricCard,
    ModelCard,
    ObjectiveCard,
    ProbeCard,
)
from harness.errors import PluginError
from harness.hints import did_you_mean
from harness.registry import FAMILY, KINDS, Entry, Plugin, PluginSource, Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

GROUP = "harness_plugins"
OWN = "moe-robustness-harness"


def load_plugins(
    extra: Sequence[PluginSource | str] = (), *, without: Iterable[str] = ()
) -> Registry:
    """The registry of all installed plugins and of those given by file or module.

    `HARNESS_PLUGINS` names the entry points to load, separated by commas, where it is set;
    `HARNESS_STRICT_PLUGINS=1` turns a broken plugin into an error, for authors.

    Args:
        extra: Files or modules, as `--plugin` gives them.
        without: Names, or `distribution:name`, of plugins to leave out.

    Raises:
        PluginError: A file of `extra` is missing, `HARNESS_PLUGINS` names nobody, or a plugin is
            broken and the mode is strict.
    """
    sources = tuple(_source(item) for item in extra)
    left_out = set(without)
    installed = list(_installed(left_out))
    known = {plugin.module for plugin in installed if plugin.module is not None}
    given = [
        plugin
        for plugin in map(_given, sources)
        if not _is_left_out(plugin, left_out) and plugin.module not in known
    ]
    plugins, entries = _collected(_without_clashes([*installed, *given]))
    if os.environ.get("HARNESS_STRICT_PLUGINS") == "1":
        for plugin in plugins:
            if plugin.error:
                raise PluginError(f"plugin {plugin.name!r}: {plugin.error}")
    return Registry(tuple(plugins), MappingProxyType(entries), sources, tuple(sorted(left_out)))


def _is_left_out(plugin: Plugin, left_out: set[str]) -> bool:
    return bool({plugin.name, f"{plugin.distribution}:{plugin.name}"} & left_out)


def _installed(left_out: set[str]) -> Iterator[Plugin]:
    """The entry points, each loaded by itself."""
    points = sorted(metadata.entry_points(group=GROUP), key=lambda point: point.name)
    wanted = _wanted({point.name for point in points})
    for point in _without_copies(points):
        distribution = point.dist.name if point.dist else "unknown"
        if {point.name, f"{distribution}:{point.name}"} & left_out:
            continue
        if wanted is not None and point.name not in wanted:
            continue
        plugin = Plugin(
            point.name,
            distribution,
            point.dist.version if point.dist else "",
            "entry point",
            point.value,
        )
        yield _imported(plugin, point.load)


def _wanted(names: set[str]) -> set[str] | None:
    """The entry points that HARNESS_PLUGINS names; None where it is not set."""
    allowed = os.environ.get("HARNESS_PLUGINS")
    if allowed is None:
        return None
    wanted = {name.strip() for name in allowed.split(",")} - {""}
    for name in sorted(wanted - names):
        raise PluginError(
            f"HARNESS_PLUGINS: no installed plugin is called {name!r}{did_you_mean(name, names)}"
        )
    return wanted


def _without_copies(points: Iterable[metadata.EntryPoint]) -> list[metadata.EntryPoint]:
    """The entry points, once each: an editable install may be found in two folders."""
    unique = {
        (point.name, point.value, point.dist.name if point.dist else ""): point for point in points
    }
    return list(unique.values())


def _source(item: PluginSource | str) -> PluginSource:
    if isinstance(item, PluginSource):
        return item
    path = Path(item)
    if path.suffix != ".py":
        return PluginSource(item)
    if not path.is_file():
        raise PluginError(f"--plugin {item}: no such file; give the path of a .py file or a module")
    try:
        return PluginSource(item, path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise PluginError(f"--plugin {item}: not UTF-8 text: {error}") from error


def _given(source: PluginSource) -> Plugin:
    """A plugin by file, from its content, or by module."""
    if not source.content and not source.location.endswith(".py"):
        plugin = Plugin(source.location, "module", "", "module", source.location)
        return _imported(plugin, lambda: importlib.import_module(source.location))
    name = Path(source.location).stem
    content_hash = hashing.of_bytes(source.content.encode())
    plugin = Plugin(name, "file", "", "file", source.location, content_hash)
    return _imported(plugin, lambda: _executed(source, name))


def _executed(source: PluginSource, name: str) -> ModuleType:
    """The module that a file's content makes, under a stable name so that pickles find it."""
    module = ModuleType(f"harness_file_plugin_{name}")
    module.__file__ = source.location
    sys.modules[module.__name__] = module
    exec(compile(source.content, source.location, "exec"), module.__dict__)  # noqa: S102 - a plugin is code that the user asked to run
    return module


def _imported(plugin: Plugin, load: Callable[[], Any]) -> Plugin:
    """The plugin with its module and hash, or with the error that broke it."""
    try:
        module = load()
        _check_hooks(module)
        return replace(plugin, module=module, sha256=plugin.sha256 or _hash(module))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a broken plugin never stops the others
        return replace(plugin, error=_told(error))


def _check_hooks(module: Any) -> None:
    manager = pluggy.PluginManager("harness")
    manager.add_hookspecs(hookspecs)
    known = list(vars(manager.hook))
    manager.register(module)
    for name in vars(module):
        if manager.parse_hookimpl_opts(module, name) is not None and name not in known:
            raise PluginError(f"unknown hook {name!r}{did_you_mean(name, known)}")
    manager.check_pending()


def _hash(module: Any) -> str:
    file = Path(getattr(module, "__file__", None) or "")
    if file.name == "__init__.py":
        return hashing.of_sources(file.parent, file.parent.rglob("*.py"))
    return hashing.of_file(file) if file.is_file() else ""


def _told(error: BaseException) -> str:
    """The error with the last place of the plugin's own code that led to it."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = (str(Path(__file__).parent), "pluggy", "importlib")
    own = [frame for frame in frames if not any(part in frame.filename for part in ours)]
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {error}{place}"


def _without_clashes(plugins: list[Plugin]) -> list[Plugin]:
    """The plugins, those that share a name marked as broken."""
    owners: dict[str, list[Plugin]] = {}
    for plugin in plugins:
        owners.setdefault(plugin.name, []).append(plugin)
    return [
        replace(plugin, error=plugin.error or _same_name(owners[plugin.name]))
        if len(owners[plugin.name]) > 1
        else plugin
        for plugin in plugins
    ]


def _same_name(owners: list[Plugin]) -> str:
    who = " and ".join(f"{owner.distribution} ({owner.location})" for owner in owners)
    remedy = f"--no-plugin {owners[-1].distribution}:{owners[-1].name}"
    return f"{who} both bring a plugin named {owners[0].name!r}; leave one out with {remedy}"


def _collected(
    plugins: list[Plugin],
) -> tuple[list[Plugin], dict[tuple[str, str], tuple[Entry, ...]]]:
    """What each working plugin registers, each called alone; a body that raises breaks it."""
    entries: dict[tuple[str, str], tuple[Entry, ...]] = {}
    kept = []
    for plugin in plugins:
        if plugin.error:
            kept.append(plugin)
            continue
        try:
            own = _registered(plugin)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a broken one stops no others
            kept.append(replace(plugin, error=_told(error)))
            continue
        kept.append(plugin)
        for entry in own:
            key = (entry.kind, entry.name)
            entries[key] = (*entries.get(key, ()), entry)
    return kept, entries


def _registered(plugin: Plugin) -> list[Entry]:
    """The entries of one plugin."""
    manager = pluggy.PluginManager("harness")
    manager.add_hookspecs(hookspecs)
    manager.register(plugin.module)
    entries: list[Entry] = []
    for kind in KINDS:
        getattr(manager.hook, f"register_{kind}")(register=_register(plugin, kind, entries))
    return entries


def _register(plugin: Plugin, kind: str, entries: list[Entry]) -> Callable[..., None]:
    def register(
        name: str,
        target: Any,
        *,
        card: Any = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        if any(entry.name == name for entry in entries if entry.kind == kind):
            raise PluginError(f"registers {kind[:-1]} {name!r} twice")
        _check_name(name, kind)
        own = MappingProxyType(dict(defaults or {}))
        entries.append(Entry(kind, name, target, _card(card, kind, name), own, plugin))

    return register


def _card(card: Any, kind: str, name: str) -> Any:
    """The card as given, or the plainest of its kind that says the same."""
    expected = _CARDS.get(kind, Card)
    if isinstance(card, expected):
        return card
    plain = Card("") if card is None else card
    if kind == "datasets" or not isinstance(plain, Card):
        raise PluginError(
            f"registers {kind[:-1]} {name!r} with {card!r}; give a harness.{expected.__name__}"
        )
    return expected(plain.summary, source=plain.source)


_CARDS: dict[str, Any] = {
    "models": ModelCard,
    "attacks": AttackCard,
    "objectives": ObjectiveCard,
    "metrics": MetricCard,
    "probes": ProbeCard,
    "datasets": DatasetCard,
}


def _check_name(name: str, kind: str) -> None:
    legal = set("abcdefghijklmnopqrstuvwxyz0123456789-_.+/@")
    plain = name.removesuffix(FAMILY) if isinstance(name, str) else ""
    deep = plain != name and plain.count("/") != 1
    if not plain or deep or set(plain.lower()) - legal or ".." in plain or plain[0] == "/":
        raise PluginError(
            f"registers {kind[:-1]} {name!r}; a name is made of letters, digits and any of "
            f"- _ . + / @, and that of a family is word/{FAMILY}"
        )

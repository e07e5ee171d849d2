"""The registry: what plugins brought, by kind and name; nothing is added after it is made."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pluggy

from harness import hookspecs
from harness.errors import PluginError, UnknownName
from harness.hints import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

KINDS = (
    "models",
    "recipes",
    "attacks",
    "objectives",
    "metrics",
    "probes",
    "datasets",
    "suites",
    "executors",
    "converters",
)
FAMILY = "<name>"


@dataclass(frozen=True)
class PluginSource:
    """Where a plugin given on the command line comes from, ready to travel to a worker.

    Attributes:
        location: File or module name, as given.
        content: Text of the file; empty for a module.
    """

    location: str
    content: str = ""


@dataclass(frozen=True)
class Plugin:
    """One plugin, working or broken.

    Attributes:
        name: Of the entry point, the file or the module.
        distribution: Who brought it; "file" or "module" where nobody is installed.
        version: Of the distribution.
        origin: "entry point", "file" or "module".
        location: Module, or file.
        sha256: Hash of its source.
        error: Why it is broken; empty where it works.
        module: What was imported; None where that failed.
    """

    name: str
    distribution: str
    version: str
    origin: str
    location: str
    sha256: str = ""
    error: str = ""
    module: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Entry:
    """One registered thing.

    Attributes:
        kind: One of `KINDS`.
        name: As registered; for a member of a family, as asked for.
        target: `"module:attribute"`, or the thing itself.
        card: Facts about it.
        defaults: Every parameter with its default.
        plugin: Who brought it.
    """

    kind: str
    name: str
    target: Any
    card: Any
    defaults: Mapping[str, Any]
    plugin: Plugin

    @property
    def is_family(self) -> bool:
        """The name stands for many, such as "timm/<name>"."""
        return self.name.endswith(f"/{FAMILY}")

    def load(self) -> Any:
        """The thing itself, imported now.

        Raises:
            PluginError: The target cannot be imported, or is not there.
        """
        if not isinstance(self.target, str) or self.kind == "suites":
            return self.target
        module_name, _, attribute = self.target.partition(":")
        try:
            module = importlib.import_module(module_name) if module_name else self.plugin.module
            return getattr(module, attribute)
        except (Exception, SystemExit) as error:  # a plugin may do anything while it is imported
            raise PluginError(
                f"{self.kind[:-1]} {self.name!r}: its target {self.target!r} of plugin "
                f"{self.plugin.name!r} cannot be loaded: {type(error).__name__}: {error}"
            ) from error

    def settle(self, parameters: Mapping[str, Any], where: str) -> dict[str, Any]:
        """All parameters, defaults filled in.

        Args:
            parameters: What somebody set.
            where: How the message names the place that set them.

        Raises:
            PluginError: A key that the thing does not have, or a value of another type.
        """
        settled = dict(self.defaults)
        for key, value in parameters.items():
            if key not in self.defaults:
                raise PluginError(
                    f"{where}: {self.kind[:-1]} {self.name!r} has no parameter {key!r}"
                    f"{did_you_mean(key, self.defaults, see=f'harness show {self.name}')}"
                )
            settled[key] = _like(value, self.defaults[key], f"{where}: {self.name}: {key}")
        return settled


@dataclass(frozen=True)
class Registry:
    """All plugins and what they brought; nothing is added after it is made.

    Attributes:
        plugins: Working and broken ones, in the order of loading.
        entries: By kind and name; more than one where plugins contradict each other.
        sources: Plugins that were given by file or module, to be loaded again in workers.
        without: Plugins that were left out, for the same reason.
    """

    plugins: tuple[Plugin, ...]
    entries: Mapping[tuple[str, str], tuple[Entry, ...]]
    sources: tuple[PluginSource, ...] = ()
    without: tuple[str, ...] = ()

    def names(self, kind: str) -> list[str]:
        """The names of one kind, sorted."""
        return sorted(name for entry_kind, name in self.entries if entry_kind == kind)

    def listed(self, kind: str) -> list[Entry]:
        """The entries of one kind, sorted by name; all sides of a clash."""
        return [entry for name in self.names(kind) for entry in self.entries[kind, name]]

    def has(self, kind: str, name: str) -> bool:
        """Somebody registered this name, or a family that it belongs to."""
        return (kind, name) in self.entries or (kind, _family(name)) in self.entries

    def find(self, kind: str, name: str) -> Entry:
        """The entry of a name, or of the family that it belongs to.

        Raises:
            UnknownName: Nobody registered it.
            PluginError: Two plugins did.
        """
        found = self.entries.get((kind, name)) or self.entries.get((kind, _family(name)))
        if not found or name.endswith(("/", f"/{FAMILY}")):
            raise UnknownName(self._unknown(kind, name))
        if len(found) > 1:
            raise PluginError(_clash(kind, name, found))
        entry = found[0]
        if not entry.is_family:
            return entry
        member = name.removeprefix(entry.name.removesuffix(FAMILY))
        describe = getattr(entry.card, "describe", None)
        card = describe(member) if describe else entry.card
        return replace(entry, name=name, card=card, defaults={**entry.defaults, "name": member})

    def observers(self) -> pluggy.PluginManager:
        """The working plugins as one pluggy manager, for the hooks that watch a run."""
        manager = pluggy.PluginManager("harness")
        manager.add_hookspecs(hookspecs)
        for plugin in self.plugins:
            if not plugin.error and not manager.is_registered(plugin.module):
                manager.register(plugin.module, f"{plugin.distribution}:{plugin.name}")
        return manager

    def _unknown(self, kind: str, name: str) -> str:
        hint = did_you_mean(name, self.names(kind), see=f"harness ls {kind}")
        broken = [plugin for plugin in self.plugins if plugin.error]
        quotes = "".join(
            f"\n  broken plugin {plugin.name!r} may have held it: {plugin.error}"
            for plugin in broken
        )
        return f"{kind[:-1]} {name!r} is not known{hint}{quotes}"


def _like(value: Any, default: Any, where: str) -> Any:
    """The value, of the type that its default has; a whole number where fractions are legal."""
    for kind, told in ((bool, "true or false"), (int, "a whole number"), (float, "a number")):
        if not isinstance(default, kind):
            continue
        legal = (int, float) if kind is float else (kind,)
        if isinstance(value, legal) and (kind is bool or not isinstance(value, bool)):
            return kind(value)
        raise PluginError(f"{where} must be {told}, not {value!r}")
    return value


def _family(name: str) -> str:
    return f"{name.partition('/')[0]}/{FAMILY}"


def _clash(kind: str, name: str, found: Sequence[Entry]) -> str:
    who = " and ".join(
        f"{entry.plugin.distribution} (plugin {entry.plugin.name!r})" for entry in found
    )
    last = found[-1].plugin
    return (
        f"{kind[:-1]} {name!r} is brought by {who}; "
        f"leave one out with --no-plugin {last.distribution}:{last.name}"
    )

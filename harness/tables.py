"""TOML tables, read key by key: every key has one type, and what nobody asked for is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from harness.errors import SuiteError
from harness.hints import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_Kind = TypeVar("_Kind")


class Table:
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

    def table(self, key: str) -> Table:
        """A table inside this one; empty where it is missing."""
        return Table(self.take(key, dict, {}), f"{self.where}: [{key}]")

    def tables(self, key: str) -> list[Table]:
        """A list of tables inside this one."""
        found = self.take(key, list, [])
        if not all(isinstance(item, dict) for item in found):
            raise SuiteError(f"{self.where}: {key} must be a list of tables, [[{key}]]")
        return [
            Table(item, f"{self.where}: [[{key}]] number {number}")
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

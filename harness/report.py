"""Values as text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.registry import Registry
    from harness.suite import Suite

_STEPS = ((1e9, "B"), (1e6, "M"), (1e3, "k"))


def cell_text(value: Mapping[str, Any]) -> str:
    """A value in a table: a share in per cent with its interval, a count shortened.

    >>> cell_text({"value": 0.5, "low": 0.4, "high": 0.6, "n": 100})
    '50.0 [40.0, 60.0]'
    >>> cell_text({"value": 114778, "low": None, "high": None, "n": None})
    '114.8k'
    """
    number = value["value"]
    if number is None:
        return f"n/a ({value['reason']})" if value.get("reason") else "n/a"
    if value["low"] is not None:
        return f"{100 * number:.1f} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"
    for size, letter in _STEPS:
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return f"{number:.3g}"


def plain(text: str) -> str:
    r"""Text that Markdown and HTML show as it stands, in one line of one cell.

    >>> print(plain(r"a|b <script> \[x](y)"))
    a\|b &lt;script&gt; \\\[x\](y)
    """
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for letter in "\\|[]`*":
        escaped = escaped.replace(letter, f"\\{letter}")
    return " ".join(escaped.split())


def headings(suite: Suite, registry: Registry) -> list[str]:
    """The heads of the metrics' columns; one for each epsilon where a metric has many."""
    found = []
    for name in suite.metrics:
        card = registry.find("metrics", name).card
        title = card.title or name
        if card.by_epsilon:
            found += [f"{title} {epsilon.text}" for epsilon in suite.epsilons]
        else:
            found.append(title)
    return found


def cells(suite: Suite, row: Mapping[str, Any]) -> list[str]:
    """The metrics of one row as text, in the order of `headings`."""
    found = []
    for name in suite.metrics:
        value = row[name.replace("-", "_")]
        if "value" in value:
            found.append(cell_text(value))
        else:
            found += [cell_text(value[epsilon.text]) for epsilon in suite.epsilons]
    return found

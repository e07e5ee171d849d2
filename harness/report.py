"""Values as text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

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

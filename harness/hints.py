"""Near names for a name that is not known."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], *, see: str = "") -> str:
    """The end of an error message: the nearest legal names, or all of them where they are few.

    Args:
        name: What was asked for.
        known: What there is.
        see: Command that lists what there is.

    >>> did_you_mean("pdg", ["pgd", "fgsm"], see="harness ls attacks")
    "; did you mean 'pgd'? see 'harness ls attacks'"
    """
    pointer = f"see '{see}'" if see else ""
    names = sorted(known)
    folded = {candidate.casefold(): candidate for candidate in names}
    near = get_close_matches(name.casefold(), folded, n=3, cutoff=0.6)
    if near:
        guess = f"; did you mean {' or '.join(repr(folded[key]) for key in near)}?"
        return f"{guess} {pointer}".rstrip()
    if 0 < len(names) <= 12:  # noqa: PLR2004 - as many as fit on one line
        return "; ".join(["", f"known are {', '.join(names)}", *([pointer] if pointer else [])])
    return f"; {pointer}" if pointer else ""

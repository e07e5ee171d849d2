"""What attacks settle or refuse before their first pass."""

from __future__ import annotations

from collections.abc import Sequence

from harness.api import AttackError
from harness.tensors import Images, Objective

STOPS = ("first", "never")
INITS = ("random", "clean")


def check_word(name: str, word: str, legal: Sequence[str]) -> None:
    """Refuse a word that an attack does not know.

    Raises:
        AttackError: Names the legal ones.
    """
    if word not in legal:
        told = " or ".join(repr(item) for item in legal)
        raise AttackError(f"{name} {word!r} is not known; write {told}")


def check_start(start: Sequence[Images] | None, images: Images, runs: int) -> None:
    """Refuse starting points of other images, or for another number of runs.

    Raises:
        AttackError: Says how many batches of which shape.
    """
    if start is not None and [point.shape for point in start] != [images.shape] * runs:
        raise AttackError(
            f"start must hold {runs} batches of shape {tuple(images.shape)}, one a restart"
        )


def drawn(objective: Objective, draws: int) -> Objective:
    """The objective whose passes are means of some draws; as it is for one.

    Raises:
        AttackError: There is less than one.
    """
    if draws < 1:
        raise AttackError(f"draws must be at least 1, got {draws}")
    return objective if draws == 1 else objective.averaged(draws)

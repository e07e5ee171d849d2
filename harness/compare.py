"""Rows against each other, on the images that they share: what differs, and by how much."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

from harness.errors import UsageError
from harness.inference import Difference, detectable, difference, holm
from harness.seeds import Claim, claim

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.bits import Bits
    from harness.entries import Entry

SIGNIFICANT = 0.05


class Comparison(NamedTuple):
    """Two rows at one epsilon."""

    first: str
    second: str
    epsilon: str
    found: Difference
    p_adjusted: float  # Holm, over all comparisons that are shown

    @property
    def verdict(self) -> str:
        """In a word, at 5 % over all comparisons that are shown."""
        if self.p_adjusted >= SIGNIFICANT:
            return "cannot be told apart"
        better = self.first if self.found.difference > 0 else self.second
        return f"{better} is more robust"


def compared(entries: Sequence[Entry], epsilons: Sequence[str]) -> tuple[Comparison, ...]:
    """Every pair of rows at every epsilon, paired image by image.

    Raises:
        UsageError: The rows are of different suites, versions, copies or images.
    """
    _check_alike(entries)
    pairs = [
        (one, other, epsilon) for epsilon in epsilons for one, other in combinations(entries, 2)
    ]
    found = [_difference(*pair) for pair in pairs]
    adjusted = holm([item.p_value for item in found])
    return tuple(
        Comparison(one.row, other.row, epsilon, item, p)
        for (one, other, epsilon), item, p in zip(pairs, found, adjusted, strict=True)
    )


def in_words(comparison: Comparison) -> Iterator[str]:
    """What a comparison says, a sentence a line."""
    found = comparison.found
    points = [f"{100 * number:+.1f}" for number in (found.difference, found.low, found.high)]
    discordant = found.only_first + found.only_second
    yield (
        f"At {comparison.epsilon}, {comparison.first} against {comparison.second}: "
        f"{points[0]} points [{points[1]}, {points[2]}] of robust accuracy, n = {found.n} images."
    )
    yield (
        f"{found.only_first} images only the first withstands, {found.only_second} only the "
        f"second; McNemar ({found.test}) p = {found.p_value:.3g}, {comparison.p_adjusted:.3g} "
        "after Holm."
    )
    smallest = 100 * detectable(found.n, max(discordant, 1) / found.n)
    yield (
        f"Verdict: {comparison.verdict}; with this many images {smallest:.1f} points would be "
        "seen four times in five."
    )


class RecipeClaim(NamedTuple):
    """That one recipe is more robust than another, over their training seeds."""

    first: str
    second: str
    epsilon: str
    found: Claim


def claimed(
    entries: Sequence[Entry], rows: Sequence[str], epsilons: Sequence[str]
) -> tuple[RecipeClaim, ...]:
    """The first row's recipe against each of the others, over all seeds on the board.

    Raises:
        UsageError: A row is not on the board, or rows stand on different images.
    """
    seeds = {
        row: [entry for entry in entries if entry.content["model"]["row"] == row] for row in rows
    }
    for row, found in seeds.items():
        if not found:
            raise UsageError(f"row {row!r} is not on the board; publish it first")
    _check_alike([entry for found in seeds.values() for entry in found])
    head, *others = rows
    return tuple(
        RecipeClaim(
            head,
            other,
            epsilon,
            claim(_series(seeds[head], epsilon), _series(seeds[other], epsilon)),
        )
        for epsilon in epsilons
        for other in others
    )


def claim_in_words(item: RecipeClaim) -> Iterator[str]:
    """What a claim about recipes comes to, a sentence a line."""
    found = item.found
    yield (
        f"At {item.epsilon}: {item.first} is more robust than {item.second}: {found.verdict}"
        f"{f' ({found.reason})' if found.reason else ''}."
    )
    inside = ""
    if found.low is not None and found.high is not None:
        inside = f" [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    yield (
        f"{100 * found.difference:+.1f}{inside} points, over {found.seeds_first} and "
        f"{found.seeds_second} training seeds."
    )
    spreads = [
        "unknown" if spread is None else f"{100 * spread:.1f}"
        for spread in (found.seed_spread_first, found.seed_spread_second)
    ]
    yield (
        f"Spread over seeds (standard deviation): {spreads[0]} and {spreads[1]} points; error of "
        f"one checkpoint from image sampling: {100 * found.image_error:.1f} points."
    )


def _series(entries: Sequence[Entry], epsilon: str) -> list[Bits]:
    found = [entry.robust(epsilon) for entry in entries]
    if any(bits is None for bits in found):
        raise UsageError(f"{entries[0].row}: has no bits at {epsilon}")
    return [bits for bits in found if bits is not None]


def _difference(one: Entry, other: Entry, epsilon: str) -> Difference:
    first, second = one.robust(epsilon), other.robust(epsilon)
    if first is None or second is None:
        lacking = one if first is None else other
        raise UsageError(f"{lacking.row}: has no bits at {epsilon}")
    return difference(first, second)


def _check_alike(entries: Sequence[Entry]) -> None:
    head = entries[0].content
    for entry in entries[1:]:
        for key, told in (("suite", "suite, version or board"), ("samples", "images")):
            if entry.content[key] != head[key]:
                raise UsageError(
                    f"{entries[0].row} and {entry.row} stand on different {told}: only numbers of "
                    "the same images under the same attacks can be compared"
                )
        if entry.content["data"]["fingerprint"] != head["data"]["fingerprint"]:
            raise UsageError(f"{entries[0].row} and {entry.row} stand on different copies")

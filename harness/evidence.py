"""Bits of an entry as the evidence that metrics are computed from."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np

from harness.api import Evidence
from harness.records import Record

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from harness.entries import Entry
    from harness.suite import Suite


class Column(NamedTuple):
    """One attack at one epsilon."""

    attack: str  # its label
    view: str
    epsilon: str


@dataclass(frozen=True)
class Table:
    """Which images are right: a row for each, a column for the clean pass and for each attack.

    Attributes:
        columns: Of the bits after the first.
        bits: (image, 1 + column), first the clean pass.
        samples: Ids of the images.
        suite: Epsilons, headline and protocol.
        facts: Of the model.
    """

    columns: tuple[Column, ...]
    bits: NDArray[np.bool_]
    samples: tuple[int, ...]
    suite: Suite
    facts: Mapping[str, Any]

    @property
    def law(self) -> tuple[Any, ...]:
        """All but bits and facts on which a metric may depend."""
        return self.columns, self.suite.epsilons, self.suite.headline, self.suite.protocol

    def evidence(self) -> Evidence:
        """The same as records of class 1 that say no more than their bits."""
        return Evidence(
            records=_Records(self, is_whole=True),
            epsilons={epsilon.text: epsilon.value for epsilon in self.suite.epsilons},
            headline=self.suite.headline,
            facts=self.facts,
            protocol=self.suite.protocol,
            diagnoses=_Records(self, is_whole=False),
        )

    def rows(self, chosen: NDArray[np.intp]) -> Table:
        """The table of some images alone."""
        samples = tuple(self.samples[place] for place in chosen.tolist())
        return replace(self, bits=self.bits[chosen], samples=samples)

    def fooled(self) -> dict[tuple[str, str], int]:
        """How many images are wrong, clean or under an attack on the whole model.

        By epsilon and label.
        """
        robust = (self.bits[:, :1] & self.bits[:, 1:]).sum(axis=0)
        return {
            (column.epsilon, column.attack): len(self.bits) - int(number)
            for column, number in zip(self.columns, robust, strict=True)
            if column.view == "full"
        }


def tables_of(entry: Entry, suite: Suite) -> tuple[Table, ...]:
    """What metrics that ask for right and wrong alone are computed from.

    Returns:
        One, or where the clean bits are unknown two: with as many right as can be, and as few.
    """
    found = {
        Column(label, about["view"], text): entry.robust_alone(label, text)
        for label, about in entry.content["bits"]["attacks"].items()
        for text in about["robust"]
    }
    every = np.ones(entry.count, dtype=bool)
    fewest = np.logical_or.reduce([~every, *found.values()])
    clean = entry.clean()
    return tuple(
        Table(
            tuple(found),
            np.stack([right, *found.values()], axis=1),
            entry.samples,
            suite,
            entry.content["facts"],
        )
        for right in ((every, fewest) if clean is None else (clean,))
    )


class _Records(Sequence[Record]):
    """Records of a table, made when somebody looks at one: many metrics never do."""

    def __init__(self, table: Table, *, is_whole: bool) -> None:
        self._table = table
        self._is_whole = is_whole

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        return self._made[index]

    def __len__(self) -> int:
        return len(self._made)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._made)

    @cached_property
    def _made(self) -> list[Record]:
        return _records(self._table, is_whole=self._is_whole)


@contextmanager
def _uncollected() -> Iterator[None]:
    """No search for cycles, which half a million records without any would set off again and again.

    Measured: it halves the time to check an entry of 240,000 bits.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_uncollected()
def _records(table: Table, *, is_whole: bool) -> list[Record]:
    """The records in the view of the whole model, or in all others."""
    right: list[bool] = table.bits[:, 0].tolist()
    records: list[Record] = []
    for place, column in enumerate(table.columns, start=1):
        if (column.view == "full") != is_whole:
            continue
        kinds = {
            (is_right, is_robust): _record(column, is_right=is_right, is_robust=is_robust)
            for is_right in (False, True)
            for is_robust in (False, True)
        }
        bits: list[bool] = table.bits[:, place].tolist()
        records += [
            _of_sample(kinds[is_right, is_robust], sample)
            for sample, is_right, is_robust in zip(table.samples, right, bits, strict=True)
        ]
    return records


def _record(column: Column, *, is_right: bool, is_robust: bool) -> Record:
    """A record of class 1 that says no more than its bits."""
    return Record(
        sample=0,
        attack=column.attack,
        epsilon=column.epsilon,
        label=1,
        clean_prediction=int(is_right),
        clean_margin=0.0,
        adversarial_prediction=int(is_robust),
        adversarial_margin=0.0,
        view=column.view,
    )


def _of_sample(record: Record, sample: int) -> Record:
    """The same record of another sample, in a sixth of the time that `replace` takes."""
    found = object.__new__(Record)
    vars(found).update(vars(record), sample=sample)
    return found

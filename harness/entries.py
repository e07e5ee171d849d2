"""Entries: all that stands behind one row of a board, in one file that anybody can check."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.bits import Bits, as_runs, from_runs, pack, unpack
from harness.errors import EntryError, UnknownName
from harness.migrations import SCHEMA
from harness.strangers import parsed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from harness.cards import ModelCard
    from harness.registry import Registry
    from harness.scoring import Cell
    from harness.suite import Suite

LARGEST = 64 * 2**20
"""Bytes of an entry's file: a million images under thirty attacks fit."""


@dataclass(frozen=True)
class Entry:
    """One row of a board, read and found well-formed.

    Attributes:
        content: The JSON object, in the present schema.
        where: Its file, for people.
    """

    content: Mapping[str, Any]
    where: str = ""

    @property
    def row(self) -> str:
        """Its name in the table."""
        name, seed = self.content["model"]["row"], self.content["model"]["seed"]
        return f"{name} (seed {seed})" if seed else str(name)

    @property
    def count(self) -> int:
        """Its images."""
        return int(self.content["samples"]["count"])

    @property
    def samples(self) -> tuple[int, ...]:
        """Their ids, in the order of the bits."""
        return from_runs(self.content["samples"]["ids"])

    def clean(self) -> Bits | None:
        """Which images the model has right; None where an old schema did not say."""
        text = self.content["bits"]["clean"]
        return None if text is None else self._bits(text)

    def attacks(self, view: str = "full") -> tuple[str, ...]:
        """Labels of the attacks that were judged in a view."""
        found = self.content["bits"]["attacks"]
        return tuple(label for label, about in found.items() if about["view"] == view)

    def robust(self, epsilon: str, *, attacks: tuple[str, ...] | None = None) -> Bits | None:
        """Which images withstand every one of some attacks, or all; None where none ran there.

        Under protocol "nested", what fools an image in a ball is in every larger ball.
        """
        about = self.content["bits"]["attacks"]
        wanted = self.attacks() if attacks is None else attacks
        if not any(epsilon in about[label]["robust"] for label in wanted):
            return None
        texts = [
            about[label]["robust"][text]
            for label in wanted
            for text in self._balls(epsilon)
            if text in about[label]["robust"]
        ]
        bits = self._bits(texts[0])
        for text in texts[1:]:
            bits = bits & self._bits(text)
        return bits

    def robust_alone(self, attack: str, epsilon: str) -> Bits:
        """Which images withstand one attack at one epsilon, as it was recorded."""
        return self._bits(self.content["bits"]["attacks"][attack]["robust"][epsilon])

    def best_known(self, epsilon: str) -> Bits | None:
        """Which images withstand the attacks and all that others handed in."""
        bits = self.robust(epsilon)
        if bits is None:
            return None
        for found in self.content["best_known"]:
            if found["epsilon"] in self._balls(epsilon, is_nested=True):
                bits = bits & ~self._bits(found["broken"])
        return bits

    def _balls(self, epsilon: str, *, is_nested: bool | None = None) -> list[str]:
        """The epsilons whose points count at this one."""
        grid = [text for text, _ in self.content["suite"]["epsilons"]]
        if is_nested is None:
            is_nested = self.content["suite"]["protocol"] == "nested"
        return grid[: grid.index(epsilon) + 1] if is_nested else [epsilon]

    def _bits(self, text: str) -> Bits:
        try:
            return unpack(text, self.count)
        except EntryError as error:
            raise EntryError(f"{self.where}: {error}") from error


def entry_of(
    suite: Suite, row: Mapping[str, Any], cell: Cell, registry: Registry, *, evaluator: str = ""
) -> Entry:
    """The entry of a finished row.

    Args:
        suite: What was measured.
        row: Its values, as `scoring.score` gives them.
        cell: Its records.
        registry: Where the model's card is.
        evaluator: Who ran it.
    """
    manifest = cell.manifest
    ingredients = json.loads(json.dumps(manifest["ingredients"]))
    return Entry(
        {
            "schema": SCHEMA,
            "suite": {
                "name": suite.name,
                "version": suite.version,
                "board": row["board"],
                "norm": suite.norm,
                "box": suite.box,
                "protocol": suite.protocol,
                "headline": suite.headline,
                "epsilons": [[epsilon.text, epsilon.value] for epsilon in suite.epsilons],
            },
            "model": {
                "row": manifest["row"],
                "name": manifest["model"],
                "recipe": manifest["recipe"],
                "seed": ingredients["seed"],
                "card": _card(manifest["model"], registry),
            },
            "weights": manifest["weights"],
            "data": {
                "name": suite.data.name,
                "split": suite.data.split,
                "fingerprint": ingredients["data"],
            },
            "precision": manifest["precision"],
            "evaluator": evaluator,
            "ingredients": ingredients,
            "provenance": manifest["provenance"],
            "facts": manifest["facts"],
            "checks": cell.checks.to_json(),
            "flags": list(row["flags"]),
            "values": {name: row[name.replace("-", "_")] for name in suite.metrics},
            "samples": _samples(cell),
            "bits": _bits_of(suite, cell, registry),
            "costs": {
                "forwards": sum(record.forwards for record in cell.records),
                "backwards": sum(record.backwards for record in cell.records),
            },
            "best_known": [],
            "not_applicable": list(manifest["not_applicable"]),
            "reported": False,
        }
    )


def _card(model: str, registry: Registry) -> dict[str, Any]:
    """Facts of a model's card; none where its plugin is not there."""
    try:
        return card_facts(registry.find("models", model).card)
    except UnknownName:
        return {}


def card_facts(card: ModelCard) -> dict[str, Any]:
    """What a table or a reader asks of a model's card."""
    return {
        "summary": card.summary,
        "source": card.source,
        "licence": card.licence,
        "num_experts": card.num_experts,
        "num_selected": card.num_selected,
        "router_gradient": card.router_gradient,
    }


def written(entry: Entry) -> bytes:
    """The file of an entry, which `read_entry` will read.

    Raises:
        EntryError: What it says breaks the schema, such as a name that leaves the board's folder.
    """
    text = (json.dumps(entry.content, indent=1, sort_keys=True) + "\n").encode()
    parsed(text, entry.where or str(entry.content["model"]["row"]))
    return text


def read_entry(path: Path) -> Entry:
    """The entry of a file, migrated to the present schema and checked against it.

    Raises:
        EntryError: It cannot be read, is too large or too deep, or breaks the schema.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise EntryError(f"{path}: more than {LARGEST >> 20} MiB; no entry is that large")
        text = path.read_bytes()
    except OSError as error:
        raise EntryError(f"{path}: cannot be read: {error.strerror}") from error
    return Entry(parsed(text, str(path)), str(path))


def _samples(cell: Cell) -> dict[str, Any]:
    ids = list(dict.fromkeys(record.sample for record in cell.records))
    return {"count": len(ids), "ids": as_runs(ids)}


def _bits_of(suite: Suite, cell: Cell, registry: Registry) -> dict[str, Any]:
    """One bit a sample, clean and for each attack and epsilon: 1 where the model stays right."""
    controls = {
        attack.label: bool(registry.find("attacks", attack.name).card.control)
        for attack in suite.attacks
    }
    clean: dict[int, bool] = {}
    attacks: dict[str, dict[str, Any]] = {}
    for record in cell.records:
        clean[record.sample] = record.is_correct
        about = attacks.setdefault(
            record.attack,
            {"view": record.view, "is_control": controls[record.attack], "robust": {}},
        )
        about["robust"].setdefault(record.epsilon, []).append(record.is_robust)
    for about in attacks.values():
        about["robust"] = {text: pack(bits) for text, bits in about["robust"].items()}
    return {"clean": pack(list(clean.values())), "attacks": attacks}

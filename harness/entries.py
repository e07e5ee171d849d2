"""Entries: all that stands behind one row of a board, in one file that anybody can check."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import jsonschema

from harness.bits import Bits, as_runs, from_runs, pack, unpack
from harness.errors import EntryError
from harness.migrations import SCHEMA, migrated

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from harness.cards import ModelCard
    from harness.registry import Registry
    from harness.scoring import Cell
    from harness.suite import Suite

LARGEST = 64 * 2**20
"""Bytes of an entry's file: a million images under thirty attacks fit."""
DEEPEST = 30
"""Levels of an entry's file."""


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
        """Their ids, in the order of the bits.

        Raises:
            EntryError: They are not as many as it says.
        """
        ids = from_runs(self.content["samples"]["ids"])
        if len(ids) != self.count:
            raise EntryError(f"{self.where}: {len(ids)} sample ids where it counts {self.count}")
        return ids

    def clean(self) -> Bits | None:
        """Which images the model has right; None where an old schema did not say."""
        text = self.content["bits"]["clean"]
        return None if text is None else self._bits(text)

    def attacks(self, view: str = "full") -> tuple[str, ...]:
        """Labels of the attacks that were judged in a view."""
        found = self.content["bits"]["attacks"]
        return tuple(label for label, about in found.items() if about["view"] == view)

    def robust(self, epsilon: str, *, attacks: tuple[str, ...] | None = None) -> Bits | None:
        """Which images withstand every one of some attacks, or all; None where none ran.

        Under protocol "nested", what fools an image in a ball is in every larger ball.
        """
        about = self.content["bits"]["attacks"]
        wanted = self.attacks() if attacks is None else attacks
        texts = [
            about[label]["robust"][text]
            for label in wanted
            for text in self._balls(epsilon)
            if text in about[label]["robust"]
        ]
        if not any(epsilon in about[label]["robust"] for label in wanted):
            return None
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
                "card": card_facts(registry.find("models", manifest["model"]).card),
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
    """The file of an entry."""
    return (json.dumps(entry.content, indent=1, sort_keys=True) + "\n").encode()


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


def parsed(text: bytes, where: str) -> dict[str, Any]:
    """The JSON object of an entry, in the present schema.

    Raises:
        EntryError: It is no JSON, too deep, holds NaN or a key twice, or breaks the schema.
    """
    _refuse_depth(text, where)
    try:
        content = json.loads(
            text.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_no_key_twice
        )
    except (ValueError, RecursionError) as error:
        raise EntryError(f"{where}: not JSON: {str(error)[:200]}") from error
    if not isinstance(content, dict):
        raise EntryError(f"{where}: not a JSON object")
    content = migrated(content, where)
    wrong = jsonschema.exceptions.best_match(_validator().iter_errors(content))
    if wrong is not None:
        place = "/".join(str(part) for part in wrong.absolute_path) or "the entry"
        raise EntryError(f"{where}: {place}: {wrong.message[:300]}")
    _refuse_controls(content, where)
    return content


@cache
def _validator() -> jsonschema.Draft202012Validator:
    path = resources.files("harness") / "schemas" / f"entry-{SCHEMA}.json"
    return jsonschema.Draft202012Validator(json.loads(path.read_text(encoding="utf-8")))


def _refuse_depth(text: bytes, where: str) -> None:
    depth = deepest = 0
    for byte in text.translate(None, delete=_NO_BRACKETS):
        depth += 1 if byte in b"[{" else -1
        deepest = max(deepest, depth)
    if deepest > DEEPEST:
        raise EntryError(f"{where}: more than {DEEPEST} levels; no entry is that deep")


_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _refuse_controls(value: Any, where: str) -> None:
    """No string holds control characters, which could end a line or hide one."""
    if isinstance(value, str) and any(ord(letter) < ord(" ") for letter in value):
        raise EntryError(f"{where}: control characters in {value[:60]!r}")
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_controls(key, where)
            _refuse_controls(item, where)
    if isinstance(value, list):
        for item in value:
            _refuse_controls(item, where)


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

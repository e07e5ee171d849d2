"""From records to rows: metrics are pure functions, and nothing here runs a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness import plan
from harness.api import AttackFacts, Evidence
from harness.errors import StoreError
from harness.flags import NOTHING_CHECKED, Checks, record_flags

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.records import Record, Value
    from harness.registry import Registry
    from harness.store import CellFolder, Shard
    from harness.suite import AttackSpec, Suite


@dataclass(frozen=True)
class Cell:
    """What is known of one row.

    Attributes:
        key: Name of its folder.
        manifest: What it is.
        records: Of all its finished shards.
        flags: How they were made, and what the model raises by itself.
        checks: What was found before any attack.
    """

    key: str
    manifest: Mapping[str, Any]
    records: tuple[Record, ...]
    flags: tuple[str, ...]
    checks: Checks = NOTHING_CHECKED


def collect(folder: CellFolder, shards: Sequence[Shard], flags: Sequence[str] = ()) -> Cell:
    """A cell's finished records, and the flags of how they were made.

    Args:
        folder: Of the cell.
        shards: Those that were asked for.
        flags: What is known beforehand.

    Raises:
        StoreError: The cell was never opened, or was removed.
    """
    manifest = folder.manifest()
    if manifest is None:
        raise StoreError(
            f"{folder.path}: its manifest is gone: the folder was removed or replaced while the "
            "run was at work; run the same command again"
        )
    finished = [shard for shard in shards if folder.has(shard)]
    checks = folder.checks() or NOTHING_CHECKED
    known = [*manifest.get("flags", []), *checks.flags, *flags]
    if len(finished) < len(shards):
        known.append("missing-images")
    records = [record for shard in finished for record in folder.read(shard)]
    return Cell(folder.path.name, manifest, tuple(records), tuple(dict.fromkeys(known)), checks)


def score(suite: Suite, cell: Cell, registry: Registry) -> dict[str, Any]:
    """One row: names, every metric and every curve of the suite by name, flags."""
    whole = tuple(record for record in cell.records if record.view == "full")
    evidence = Evidence(
        records=whole,
        diagnoses=tuple(record for record in cell.records if record.view != "full"),
        epsilons={epsilon.text: epsilon.value for epsilon in suite.epsilons},
        headline=suite.headline,
        protocol=suite.protocol,
        facts=cell.manifest["facts"],
        attacks={attack.label: _attack_facts(attack, registry) for attack in suite.attacks},
    )
    row: dict[str, Any] = {
        "model": cell.manifest["row"],
        "recipe": cell.manifest["recipe"],
        "seed": cell.manifest["ingredients"]["seed"],
        "protocol": cell.manifest["protocol"],
        "board": suite.board(copy_of(suite, cell.manifest)),
        "precision": cell.manifest["precision"],
        "n": len({record.sample for record in cell.records}),
    }
    if "sources" in cell.manifest["ingredients"]:
        row["transfer_from"] = [
            source["name"] for source in cell.manifest["ingredients"]["sources"]
        ]
    for name in suite.metrics:
        entry = registry.find("metrics", name)
        values: Sequence[Value] = entry.load()(evidence)
        row[name.replace("-", "_")] = (
            {value.epsilon: value.to_json() for value in values}
            if entry.card.by_epsilon
            else values[0].to_json()
        )
    for name in suite.curves:
        found: Sequence[Value] = registry.find("metrics", name).load()(evidence)
        row[name.replace("-", "_")] = [_point(value) for value in found]
    controls = [label for label, attack in evidence.attacks.items() if attack.is_control]
    about_data = _data_flags(suite, cell.manifest, registry)
    exempt = [attack.label for attack in suite.attacks if plan.needs_routes(attack, registry)]
    raised = record_flags(cell.records, controls, cell.checks, exempt=exempt)
    modes = [mark for mark in row["precision"].split("+") if mark != "float32"]
    row["flags"] = [*cell.flags, *about_data, *modes, *raised]
    return row


def _attack_facts(attack: AttackSpec, registry: Registry) -> AttackFacts:
    card = registry.find("attacks", attack.name).card
    never = attack.parameters.get("stop", "never") == "never"
    return AttackFacts(is_control=card.control, shows_last=card.returns_last and never)


def _point(value: Value) -> dict[str, Any]:
    """One point of a curve."""
    where = {"group": value.group, "series": value.series, "epsilon": value.epsilon}
    return {**where, **value.to_json()}


def copy_of(suite: Suite, manifest: Mapping[str, Any]) -> str:
    """Which copy of the data a cell was measured on, by what the suite knows of copies today.

    The first images alone do not tell; such a row is no board's anyway.
    """
    images = manifest["images"]
    return "" if images["is_prefix"] else suite.data.copy_of(images["fingerprint"])


def _data_flags(suite: Suite, manifest: Mapping[str, Any], registry: Registry) -> list[str]:
    if copy_of(suite, manifest):
        return ["other-data"]
    is_official = bool(registry.find("datasets", suite.data.name).card.hub_id)
    return ["unverified-data"] if is_official and not suite.data.fingerprints else []

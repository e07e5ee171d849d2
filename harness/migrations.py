"""Entries of older schemas, in the present one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.bits import as_runs
from harness.errors import EntryError

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA = 2
"""Of the entries that are written."""


def migrated(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The same entry in the present schema.

    Raises:
        EntryError: It is of a schema that this harness does not know, or not of the one it names.
    """
    schema = content.get("schema")
    if schema == SCHEMA:
        return dict(content)
    if schema != 1:
        raise EntryError(f"{where}: schema {schema!r}; this harness reads 1 to {SCHEMA}")
    try:
        return _from_first(content)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise EntryError(
            f"{where}: not an entry of schema 1: {type(error).__name__} {error}"
        ) from error


def _from_first(old: Mapping[str, Any]) -> dict[str, Any]:
    """Schema 1 had no clean bits, views, card or costs by name, and listed every sample."""
    row, suite = dict(old["row"]), old["ingredients"]["suite"]
    names = {"model", "recipe", "protocol", "board", "n", "flags", "precision"}
    attacks = {spec["label"]: spec for spec in suite["attacks"]}
    return {
        "schema": SCHEMA,
        "suite": {
            **old["suite"],
            "norm": suite["norm"],
            "box": suite["box"],
            "protocol": row["protocol"],
            "headline": suite["epsilons"][-1][0],
            "epsilons": suite["epsilons"],
        },
        "model": {
            "row": row["model"],
            "name": old["ingredients"]["model"],
            "recipe": row["recipe"],
            "seed": old["ingredients"]["seed"],
            "card": {},
        },
        "weights": old["weights"],
        "data": {
            "name": suite["data"]["name"],
            "split": suite["data"]["split"],
            "fingerprint": old["ingredients"]["data"],
        },
        "precision": "float32",
        "evaluator": "",
        "ingredients": old["ingredients"],
        "provenance": old["provenance"],
        "facts": old["facts"],
        "checks": old.get("checks", {}),
        "flags": row["flags"],
        "values": {name.replace("_", "-"): row[name] for name in row if name not in names},
        "samples": {"count": len(old["samples"]), "ids": as_runs(old["samples"])},
        "bits": {
            "clean": None,
            "attacks": {
                label: {
                    "view": "full",
                    "is_control": attacks[label]["name"] in ("noise", "clean"),
                    "robust": by_epsilon,
                }
                for label, by_epsilon in old["bits"].items()
            },
        },
        "costs": old["passes"],
        "best_known": [],
        "not_applicable": [],
        "reported": False,
    }

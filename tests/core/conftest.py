"""Fixtures of the leaderboard: a suite of ten images, and honest entries made of bits."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from harness.bits import as_runs, pack
from harness.entries import Entry, written
from harness.evidence import tables_of
from harness.leaderboard import write_pages
from harness.page import entry_file
from harness.suite import find_suite

TEN = """
name = "ten"
version = 3
metrics = ["clean-accuracy", "robust-accuracy", "auc", "parameters"]

[data]
name = "digits"
samples = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]

[threat]
norm = "linf"
epsilons = ["8/255", "16/255"]
headline = "16/255"

[[attacks]]
name = "noise"

[[attacks]]
name = "pgd"
"""
CLEAN = "1111111110"
NEAR = "1111111100"
FAR = "1111000000"


def bits(text):
    return pack([letter == "1" for letter in text])


@pytest.fixture
def ten(tmp_path, registry):
    """The suite of ten digits."""
    path = tmp_path / "ten.toml"
    path.write_text(TEN)
    return find_suite(str(path), registry)


@pytest.fixture
def make(ten, registry):
    """Makes an honest entry of bits written as 0 and 1; `alter` then changes its content."""

    def entry(  # noqa: PLR0913 - one row of columns
        row="cnn/digits.standard",
        *,
        near=NEAR,
        far=FAR,
        clean=CLEAN,
        noise=CLEAN,
        seed=0,
        alter=None,
    ):
        content = _content(ten, row, seed)
        content["bits"] = {
            "clean": bits(clean),
            "attacks": {
                "noise": _attack(clean, noise, is_control=True),
                "pgd": _attack(near, far, is_control=False),
            },
        }
        content["values"] = _values(ten, Entry(content), registry)
        changed = copy.deepcopy(content)
        if alter is not None:
            alter(changed)
        return Entry(changed, f"{row}.json")

    return entry


@pytest.fixture
def board(ten, registry, tmp_path):
    """Writes entries and the pages that they give; the leaderboard folder."""

    def write(*entries, name="leaderboard"):
        folder = tmp_path / name
        for entry in entries:
            save(folder / "ten" / entry_file(entry), entry.content)
        write_pages(ten, "ten", folder, registry)
        return folder

    return write


def save(path: Path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


@pytest.fixture
def read_back(tmp_path):
    """An entry, written and read."""

    def call(entry):
        from harness.entries import read_entry

        path = tmp_path / "back.json"
        path.write_bytes(written(entry))
        return read_entry(path)

    return call


def _attack(near, far, *, is_control):
    robust = {"8/255": bits(near), "16/255": bits(far)}
    return {"view": "full", "is_control": is_control, "robust": robust}


def _values(suite, entry, registry):
    [table] = tables_of(entry, suite)
    evidence = table.evidence()
    found = {}
    for name in suite.metrics:
        metric = registry.find("metrics", name)
        values = metric.load()(evidence)
        whole = {value.epsilon: value.to_json() for value in values}
        found[name] = whole if metric.card.by_epsilon else values[0].to_json()
    return found


def _content(suite, row, seed):
    model, _, recipe = row.rpartition(".")
    science = json.loads(json.dumps(suite.science()))
    return {
        "schema": 2,
        "suite": {
            "name": suite.name,
            "version": suite.version,
            "board": suite.name,
            "norm": suite.norm,
            "box": suite.box,
            "protocol": suite.protocol,
            "headline": suite.headline,
            "epsilons": science["epsilons"],
        },
        "model": {"row": row, "name": model, "recipe": recipe, "seed": seed, "card": {}},
        "weights": {"sha256": "a" * 64, "source": "recipe standard"},
        "data": {"name": "digits", "split": "test", "fingerprint": "f" * 64},
        "precision": "float32",
        "evaluator": "the tests",
        "ingredients": {
            "suite": science,
            "weights": "a" * 64,
            "data": "f" * 64,
            "seed": seed,
            "model": model,
            "precision": "float32",
        },
        "provenance": {
            "started": "2026-01-01T00:00:00+00:00",
            "machine": {"device": "cpu"},
            "versions": {"torch": "2"},
        },
        "facts": {"parameters": 7, "active_parameters": 7, "flops": 14},
        "checks": {},
        "flags": [],
        "samples": {"count": 10, "ids": as_runs(range(10))},
        "costs": {"forwards": 1, "backwards": 1},
        "best_known": [],
        "not_applicable": [],
        "reported": False,
    }

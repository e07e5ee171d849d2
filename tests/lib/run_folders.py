"""What tests of the command line look for in a run folder, and in what a command says."""

from __future__ import annotations

import json
from pathlib import Path

KILLED = -9
"""Exit code of a process that SIGKILL ended."""
SUITE = ("--suite", "tiny.toml")


def contents(runs: Path) -> dict[str, bytes]:
    """All that must be the same: weights and records."""
    paths = [*runs.glob("weights/*/weights.safetensors"), *runs.glob("*/shards/*.jsonl")]
    return {str(path.relative_to(runs)): path.read_bytes() for path in paths}


def cell_of(runs: Path, seed: int = 0) -> Path:
    """The folder of the one cell that was measured from a seed."""
    [found] = [
        path.parent
        for path in runs.glob("*/manifest.json")
        if json.loads(path.read_text())["ingredients"]["seed"] == seed
    ]
    return found


def shard_of(runs: Path, index: int) -> Path:
    """A shard of the cell of seed 0."""
    return cell_of(runs) / "shards" / f"{index:05d}.jsonl"


def events(runs: Path) -> list[str]:
    """Names of the events of all cells."""
    texts = [path.read_text() for path in runs.glob("*/events-*.jsonl")]
    lines = [line for text in texts for line in text.splitlines()]
    return [json.loads(line)["event"] for line in lines]


def flat(text: str) -> str:
    """Text without the line breaks of a terminal."""
    return " ".join(text.split())

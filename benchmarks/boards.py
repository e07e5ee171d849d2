"""Pages of a large board: seconds and peak memory to write them from a thousand entries.

python benchmarks/boards.py --entries 1000 --images 10000
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from harness.bits import pack
from harness.plugins import load_plugins
from harness.stats import share
from harness.suite import find_suite

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from harness.suite import Suite

EPSILONS = ("1/255", "2/255", "4/255", "8/255", "12/255", "16/255")
ATTACKS = ("noise", "pgd", "apgd", "square")
SUITE = """
name = "large"
version = 1
metrics = ["clean-accuracy", "robust-accuracy", "parameters"]

[data]
name = "cifar10"
samples = "ids.txt"

[threat]
norm = "linf"
epsilons = [{epsilons}]
headline = "8/255"
{attacks}
"""


def main(
    entries: Annotated[int, typer.Option(help="Rows of the board.")] = 1000,
    images: Annotated[int, typer.Option(help="Images of each.")] = 10_000,
    *,
    validates: Annotated[bool, typer.Option("--validate", help="Validate the board, too.")] = False,
) -> None:
    """Print one JSON object: seconds and peak memory of `harness publish`, each command alone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        suite = _suite(folder, images)
        start = perf_counter()
        size = sum(_write(folder, suite, number, images) for number in range(entries))
        told: dict[str, Any] = {
            "entries": entries,
            "images": images,
            "bytes": size,
            "seconds to generate": round(perf_counter() - start, 1),
        }
        for command in ("publish", *(["validate"] if validates else [])):
            told[command] = _measured(folder, command)
    json.dump(told, sys.stdout, indent=1)
    sys.stdout.write("\n")


def _suite(folder: Path, images: int) -> Suite:
    (folder / "ids.txt").write_text("\n".join(str(number) for number in range(images)))
    text = SUITE.format(
        epsilons=", ".join(f'"{epsilon}"' for epsilon in EPSILONS),
        attacks="".join(f'\n[[attacks]]\nname = "{name}"\n' for name in ATTACKS),
    )
    path = folder / "large.toml"
    path.write_text(text)
    return find_suite(str(path), load_plugins())


def _write(folder: Path, suite: Suite, number: int, images: int) -> int:
    """The size of one entry's file: of images that fall at a distance of their own."""
    rng = np.random.default_rng(number)
    reach = rng.exponential(rng.uniform(0.01, 0.05), images)
    clean = rng.random(images) < rng.uniform(0.8, 0.95)
    weakness = {
        name: 1.0 + 3.0 * (name == "noise") + 0.1 * place for place, name in enumerate(ATTACKS)
    }
    robust = {
        name: {
            epsilon.text: clean & (weakness[name] * reach > epsilon.value)
            for epsilon in suite.epsilons
        }
        for name in ATTACKS
    }
    path = folder / "leaderboard" / "large" / f"model-{number}.standard.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(_content(suite, number, clean, robust), indent=1, sort_keys=True)
    return path.write_text(content + "\n")


def _content(
    suite: Suite,
    number: int,
    clean: NDArray[np.bool_],
    robust: dict[str, dict[str, NDArray[np.bool_]]],
) -> dict[str, Any]:
    science = json.loads(json.dumps(suite.science()))
    weights, name, images = sha256(str(number).encode()).hexdigest(), f"model-{number}", len(clean)
    return {
        "schema": 2,
        "suite": {
            **{key: science[key] for key in ("version", "norm", "box", "protocol", "epsilons")},
            "name": suite.name,
            "board": suite.name,
            "headline": suite.headline,
        },
        "model": {
            "row": f"{name}.standard",
            "name": name,
            "recipe": "standard",
            "seed": 0,
            "card": {"num_experts": 8, "num_selected": 2},
        },
        "weights": {"sha256": weights, "source": "recipe standard"},
        "data": {"name": "cifar10", "split": "test", "fingerprint": "0" * 64},
        "precision": "float32",
        "evaluator": "a benchmark",
        "ingredients": {
            "suite": science,
            "weights": weights,
            "data": "0" * 64,
            "seed": 0,
            "model": name,
            "precision": "float32",
        },
        "provenance": {"started": "2026-01-01T00:00:00+00:00"},
        "facts": {"parameters": 10**6, "active_parameters": 10**6, "flops": 10**9},
        "checks": {},
        "flags": [],
        "values": _values(suite, clean, robust),
        "samples": {"count": images, "ids": f"0-{images - 1}"},
        "bits": {
            "clean": pack(clean),
            "attacks": {
                name: {
                    "view": "full",
                    "is_control": name == "noise",
                    "robust": {epsilon: pack(bits) for epsilon, bits in found.items()},
                }
                for name, found in robust.items()
            },
        },
        "costs": {"forwards": 1, "backwards": 1},
        "best_known": [],
        "not_applicable": [],
        "reported": False,
    }


def _values(
    suite: Suite, clean: NDArray[np.bool_], robust: dict[str, dict[str, NDArray[np.bool_]]]
) -> dict[str, Any]:
    every = {
        epsilon.text: np.logical_and.reduce([found[epsilon.text] for found in robust.values()])
        for epsilon in suite.epsilons
    }
    return {
        "clean-accuracy": share(int(clean.sum()), len(clean)).to_json(),
        "robust-accuracy": {
            text: share(int(bits.sum()), len(bits)).to_json() for text, bits in every.items()
        },
        "parameters": {"value": 10**6, "low": None, "high": None, "n": None},
    }


def _measured(folder: Path, command: str) -> dict[str, float | int]:
    """Seconds and peak memory of a command in a process of its own."""
    start, before = perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(  # noqa: S603 - our own command line
        [sys.executable, "-m", "harness", command, "--suite", "large.toml"],
        cwd=folder,
        check=False,
        stdout=sys.stderr,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return {
        "exit code": done.returncode,
        "seconds": round(perf_counter() - start, 1),
        "CPU seconds": round(busy, 1),
        "peak MiB": after.ru_maxrss >> 10,
    }


if __name__ == "__main__":
    typer.run(main)

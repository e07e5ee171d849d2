"""Loading 10,000 CIFAR images into attack-ready batches: from our cache, and decoded each time.

Both ways are run in turn, in one process, and end with the same float32 batches in [0, 1]:

    python benchmarks/loading.py --data DIR [--repeat 5]
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
import typer
from datasets import load_dataset

from harness.data import load_images
from harness.plugins import load_plugins
from harness.provenance import versions
from harness.sources import Place
from harness.suite import find_suite

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH = 128


def main(
    data: Annotated[Path, typer.Option(help="Local copies of data sets.")],
    repeat: Annotated[int, typer.Option(help="Times that each way is run.")] = 5,
) -> None:
    """Print one JSON object: seconds of each way, and their ratio."""
    registry = load_plugins()
    spec = find_suite("cifar10-linf", registry).data
    with TemporaryDirectory() as cache:
        place = Place(data, Path(cache), is_offline=True)
        load_images(registry, spec, "test", place)  # built before the clock starts

        def cached() -> float:
            images = load_images(registry, spec, "test", place)
            return sum(float(images.samples(ids).images.mean()) for ids in images.ids.split(BATCH))

        def decoded() -> float:
            files = [str(path) for path in sorted(data.glob("cifar10/plain_text/test-*.parquet"))]
            rows = load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
            return sum(_mean(batch["img"]) for batch in rows.iter(batch_size=BATCH))

        decoded()  # its Arrow copy is written before the clock starts
        seconds: dict[str, list[float]] = {"cached": [], "decoded": []}
        sums = {}
        for _ in range(repeat):
            for name, way in (("cached", cached), ("decoded", decoded)):
                sums[name], took = _timed(way)
                seconds[name].append(round(took, 4))
    best = {name: min(times) for name, times in seconds.items()}
    told = {
        "images": 10_000,
        "seconds": seconds,
        "ratio": round(best["decoded"] / best["cached"], 1),
        "same_images": abs(sums["cached"] - sums["decoded"]) < 1e-3,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    json.dump(told, sys.stdout, indent=1)


def _mean(pictures: list[object]) -> float:
    pixels = np.stack([np.asarray(picture) for picture in pictures]).transpose(0, 3, 1, 2)
    return float((torch.from_numpy(pixels).to(torch.float32) / 255).mean())


def _timed(way: Callable[[], float]) -> tuple[float, float]:
    start = time.perf_counter()
    return way(), time.perf_counter() - start


if __name__ == "__main__":
    typer.run(main)

"""Fixtures: plugins, a fast suite, and the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from harness.plugins import load_plugins

TINY = """
name = "tiny"
version = 1
shard_size = 8
metrics = ["clean-accuracy", "robust-accuracy", "auc"]

[data]
name = "digits"
samples = [{samples}]

[threat]
norm = "linf"
epsilons = ["8/255", "32/255"]
headline = "32/255"

[[attacks]]
name = "noise"

[[attacks]]
name = "pgd"
steps = 3
relative_step_size = 0.5

[[models]]
name = "cnn/digits"
recipe = "standard"

[recipes.standard]
epochs = 2
learning_rate = 0.003
"""


class Finished(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def registry():
    return load_plugins()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Decoded images of the tests, kept apart from the user's and thrown away afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with local copies of real data sets; tests that need it skip without."""
    given = os.environ.get("HARNESS_DATA")
    folder = Path(given) if given else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder}: no local copies of data sets; name their folder in HARNESS_DATA")
    return folder


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A suite of twenty digits that a run finishes in seconds."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY.format(samples=", ".join(str(number) for number in range(20))))
    return path


@pytest.fixture
def harness(tmp_path: Path):
    """Runs the command line in a process of its own, in an empty folder."""

    def call(*arguments: object, **environment: str) -> Finished:
        done = subprocess.run(
            command(*arguments),
            cwd=tmp_path,
            env=environment_with(**environment),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    return call


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "harness", *(str(argument) for argument in arguments)]


def environment_with(**changes: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("HARNESS_")}
    cache = {"HARNESS_CACHE": os.environ["HARNESS_CACHE"]}
    return {**own, **cache, "OMP_NUM_THREADS": "1", **changes}

"""Fixtures: plugins, a fast suite, and the command line."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from harness.plugins import load_plugins
from run_folders import cell_of
from warm import Finished, Warm, cold

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

DEATH = """
import os, re, sys
event, pattern = os.environ["DIE_AT"].split(" ", 1)

def die(name, arguments):
    if name == event and re.search(pattern, str(arguments[name == "os.rename"])):
        os.kill(os.getpid(), 9)

sys.addaudithook(die)
"""
"""Kills the process just before it opens, or gives its name to, a file."""


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


@pytest.fixture(scope="session")
def warm(_own_cache):
    """A process with torch imported, of which each command is a fork."""
    process = Warm(environment_with())
    yield process
    process.close()


@pytest.fixture
def harness(tmp_path: Path, warm: Warm):
    """Runs the command line in a process of its own, in an empty folder."""

    def call(*arguments: object, **environment: str) -> Finished:
        if environment:  # which Python and libraries may read when they start
            return cold(texts(arguments), tmp_path, environment_with(**environment))
        return warm.finish(texts(arguments), tmp_path, environment_with())

    return call


@pytest.fixture
def killed(tmp_path: Path, warm: Warm):
    """Runs the command line, killed by a real SIGKILL at the moment that is named.

    The moment is "open PATTERN" or "os.rename PATTERN": just before a file is opened, or before
    one takes a name, that matches.
    """

    def call(moment: str, *arguments: object) -> Finished:
        return warm.finish(texts(arguments), tmp_path, environment_with(DIE_AT=moment), DEATH)

    return call


@pytest.fixture
def limited(tmp_path: Path, warm: Warm):
    """Runs the command line on a disk that takes no file larger than so many bytes."""

    def call(size: int, *arguments: object) -> Finished:
        limits = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"
        return warm.finish(texts(arguments), tmp_path, environment_with(), limits)

    return call


@pytest.fixture(scope="session")
def two_seeds(tmp_path_factory, warm: Warm) -> Path:
    """The tiny suite, and a run folder in which its row was measured with two seeds."""
    folder = tmp_path_factory.mktemp("two-seeds")
    suite = folder / "tiny.toml"
    suite.write_text(TINY.format(samples=", ".join(str(number) for number in range(20))))
    for seed in (0, 1):
        line = texts(("run", "--suite", suite.name, "--seed", seed))
        done = warm.finish(line, folder, environment_with())
        assert done.code == 0, done.err
    return folder


@pytest.fixture
def finished(two_seeds: Path, tmp_path: Path) -> Path:
    """A run folder with one finished cell, of seed 0; the suite lies beside it."""
    shutil.copytree(two_seeds, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(cell_of(tmp_path / "runs", seed=1))
    return tmp_path / "runs"


def texts(arguments: Iterable[object]) -> list[str]:
    return [str(argument) for argument in arguments]


def environment_with(**changes: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("HARNESS_")}
    cache = {"HARNESS_CACHE": os.environ["HARNESS_CACHE"]}
    return {**own, **cache, "OMP_NUM_THREADS": "1", **changes}

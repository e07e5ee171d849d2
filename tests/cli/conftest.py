"""A board that a real run of tiny made, once for all tests."""

from __future__ import annotations

import shutil

import pytest


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A folder in which tiny was run once, with all adversarial images, and published."""
    return tmp_path_factory.mktemp("finished")


@pytest.fixture
def published(harness, tiny, tmp_path, finished):
    """The present folder, with tiny run and published; run once, then copied."""
    if (finished / "runs").is_dir():
        shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
        return tmp_path
    assert harness("run", "--suite", tiny, "--save-adversarial").code == 0
    assert harness("publish", "--suite", tiny, "--evaluator", "the tests").code == 0
    shutil.copytree(tmp_path, finished, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def weights(published):
    """The file of the weights that were trained."""
    [path] = published.glob("runs/weights/*/*.safetensors")
    return path

"""A board that a real run of tiny made, once for all tests."""

from __future__ import annotations

import shutil

import pytest


@pytest.fixture(scope="session")
def one_row(tmp_path_factory):
    """A folder in which tiny was run once, with all adversarial images, and published."""
    return tmp_path_factory.mktemp("one_row")


@pytest.fixture
def published(harness, tiny, tmp_path, one_row):
    """The present folder, with tiny run and published; run once, then copied."""
    if (one_row / "runs").is_dir():
        shutil.copytree(one_row, tmp_path, dirs_exist_ok=True)
        return tmp_path
    assert harness("run", "--suite", tiny, "--save-adversarial").code == 0
    assert harness("publish", "--suite", tiny, "--evaluator", "the tests").code == 0
    shutil.copytree(tmp_path, one_row, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def weights(published):
    """The file of the weights that were trained."""
    [path] = published.glob("runs/weights/*/*.safetensors")
    return path

"""The wheel carries all there is, and a third party's distribution is found."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "harness-thirdparty"
version = "1.2"

[project.entry-points.harness_plugins]
thirdparty = "harness_thirdparty"

[tool.setuptools]
py-modules = ["harness_thirdparty"]
"""
PLUGIN = """
from harness import ModelCard, hookimpl

def build(context):
    from torch import nn
    return nn.Sequential(nn.Flatten(), nn.Linear(64, context.num_classes))

@hookimpl
def register_models(register):
    register("thirdparty/linear", "harness_thirdparty:build", card=ModelCard("Linear."))
"""


def build_wheel(source, out):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source],
        check=True,
        capture_output=True,
    )
    [wheel] = Path(out).glob("*.whl")
    return wheel


def test_the_wheel_carries_core_plugins_suites_and_entry_points(tmp_path):
    import shutil

    source = tmp_path / "source"
    shutil.copytree(
        ROOT, source, ignore=shutil.ignore_patterns(".git", ".tox", ".venv", "runs", "*.egg-info")
    )

    names = zipfile.ZipFile(build_wheel(source, tmp_path / "out")).namelist()

    assert "harness/suites/digits-linf.toml" in names
    assert "harness/cli/app.py" in names
    assert "harness_attacks/pgd.py" in names
    assert not [name for name in names if name.startswith(("plugins", "tests", "leaderboard"))]


def test_the_entry_points_are_those_of_the_packages():
    points = metadata.entry_points(group="harness_plugins")

    ours = {point.value for point in points if point.dist.name == "moe-robustness-harness"}
    packages = {path.name for path in (ROOT / "plugins").iterdir() if path.is_dir()}
    assert ours == {name for name in packages if name.startswith("harness_")} | {
        "harness.executors"
    }


@pytest.fixture
def third_party(tmp_path):
    """A folder in which a third party's plugin is installed."""
    source = tmp_path / "thirdparty"
    source.mkdir()
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "harness_thirdparty.py").write_text(PLUGIN)
    wheel = build_wheel(source, tmp_path / "dist")
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
         "--target", site, wheel],
        check=True, capture_output=True,
    )  # fmt: skip
    return site


def test_an_installed_third_party_plugin_runs_in_every_executor(harness, tiny, third_party):
    environment = {"PYTHONPATH": str(third_party)}

    listed = harness("plugins", "--json", **environment)
    done = harness(
        "run", "--suite", tiny, "--model", "thirdparty/linear", "--executor", "process", "--json",
        **environment,
    )  # fmt: skip

    mine = [item for item in json.loads(listed.out) if item["name"] == "thirdparty"]
    assert [(item["distribution"], item["version"]) for item in mine] == [
        ("harness-thirdparty", "1.2")
    ]
    assert done.code == 0, done.err
    assert json.loads(done.out)["rows"][0]["model"] == "thirdparty/linear.standard"

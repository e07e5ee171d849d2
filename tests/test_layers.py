"""Import directions, seen in a fresh process; the contracts themselves are import-linter's."""

from __future__ import annotations

import subprocess
import sys

import pytest

LIGHT = [
    "harness",
    "harness.api",
    "harness.plugins",
    "harness.suite",
    "harness.plan",
    "harness.forecast",
    "harness.store",
    "harness.scoring",
    "harness.export",
    "harness.leaderboard",
    "harness.drawing",
    "harness.figures",
    "harness.merging",
    "harness.theory",
    "harness.bench.peers",
    "harness.bench.tasks",
    "harness.cli.app",
    "harness_art",
    "harness_attacks",
    "harness_cnn",
    "harness_moe_cnn",
    "harness_datasets",
    "harness_dual_moe",
    "harness_metrics",
    "harness_recipes",
    "harness_vit",
    "harness_vmoe",
]


@pytest.mark.parametrize("module", LIGHT)
def test_what_is_right_of_the_border_or_only_lists_imports_no_torch(module):
    code = f"import {module}, sys; sys.exit('torch' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], check=False)

    assert done.returncode == 0


@pytest.mark.parametrize(
    "module", ["scipy", "jsonschema", "pandas", "datasets", "timm", "art", "matplotlib"]
)
def test_the_command_line_starts_without_what_few_commands_need(module):
    code = f"import harness.cli.app, sys; sys.exit({module!r} in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], check=False)

    assert done.returncode == 0


def test_loading_all_plugins_imports_no_torch():
    code = (
        "import sys; from harness.plugins import load_plugins; load_plugins(); "
        "sys.exit('torch' in sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", code], check=False)

    assert done.returncode == 0

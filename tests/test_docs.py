"""Every hook, command, name, flag and suite key is documented, and README's model runs."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from harness import hookspecs
from harness.cli.app import app
from harness.flags import FLAGS
from harness.plugins import load_plugins
from harness.registry import KINDS
from harness.suite import DataSpec, shipped_suites

ROOT = Path(__file__).parents[1]
REGISTRY = load_plugins()
NAMES = [name for kind in KINDS for name in REGISTRY.names(kind)]
HOOKS = [name for name, item in vars(hookspecs).items() if hasattr(item, "harness_spec")]
COMMANDS = [command.name for command in app.registered_commands]


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_there_are_hooks_and_names_to_check():
    assert "register_models" in HOOKS
    assert "pgd" in NAMES


@pytest.mark.parametrize("name", [*NAMES, *shipped_suites()])
def test_every_bundled_name_has_its_row(name):
    assert f"`{name}`" in text("docs/names.md")


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented_and_has_an_example(hook):
    assert f"`{hook}" in text("docs/plugins.md")
    assert f"def {hook}(" in getattr(hookspecs, hook).__doc__


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_documented(command):
    assert f"| `{command}` |" in text("docs/commands.md")
    assert f"`harness {command}`" in text("README.md")


@pytest.mark.parametrize("flag", FLAGS)
def test_every_flag_is_documented(flag):
    assert f"| `{flag}` |" in text("docs/numbers.md")


def takes(entry, *parameters):
    return set(parameters) <= set(inspect.signature(entry.load()).parameters)


def test_the_guide_says_which_attacks_take_init_start_and_stop():
    lines = text("docs/attacks.md").splitlines()
    optimisers, callers = (
        next(line for line in lines if line.startswith(head))
        for head in ("Attacks of one optimiser", "Attacks that call others")
    )
    own = [entry for entry in REGISTRY.listed("attacks") if entry.plugin.name == "attacks"]
    climbing = {entry.name for entry in own if takes(entry, "init", "start", "stop")}
    calling = {entry.name for entry in own if takes(entry, "stop")} - climbing

    named = set(re.findall(r"`([a-z-]+)`", optimisers.partition(")")[0]))
    assert named == {name for name in climbing if not re.fullmatch(r"a?pgd-\d.*", name)}
    assert set(re.findall(r"`([a-z-]+)`", callers.partition(")")[0])) == calling
    assert {entry.name for entry in own} - climbing - calling == {"fgsm", "clean", "noise"}


@pytest.mark.parametrize("field", [f"data.{field.name}" for field in fields(DataSpec)])
def test_every_key_of_a_suites_data_is_documented(field):
    assert f"| `{field}` |" in text("docs/suites.md")


def test_every_key_of_a_shipped_suite_is_documented():
    import tomllib

    keys = {key for path in shipped_suites().values() for key in tomllib.loads(path.read_text())}

    documented = set(re.findall(r"\| `(\w+)[.`]", text("docs/suites.md")))
    assert keys <= documented


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", text("README.md")))
def test_every_link_of_the_readme_leads_somewhere(link):
    assert (ROOT / link).exists()


def block(name, containing):
    blocks = re.findall(r"```python\n(.*?)```", text(name), flags=re.DOTALL)
    [found] = [item for item in blocks if containing in item]
    return found


def test_the_model_of_the_readme_runs_as_it_stands(harness, tmp_path):
    (tmp_path / "my_model.py").write_text(block("README.md", "def build(context)"))

    done = harness(
        "run", "--suite", "digits-linf", "--plugin", "my_model.py", "--model", "mine",
        "--limit", 16, "--json",
    )  # fmt: skip

    assert done.code == 0, done.err
    assert json.loads(done.out)["rows"][0]["model"] == "mine.standard"


def test_the_attack_of_the_plugin_guide_runs_as_it_stands(harness, tiny, tmp_path):
    (tmp_path / "corner.py").write_text(block("docs/plugins.md", "def corner("))

    done = harness("run", "--suite", tiny, "--plugin", "corner.py", "--attack", "corner", "--json")

    assert done.code == 0, done.err
    assert json.loads(done.out)["rows"][0]["flags"] == ["other-attacks"]

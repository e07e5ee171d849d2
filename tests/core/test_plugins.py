"""Plugins: a broken one is kept with its error, and never stops the others."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest

from harness.errors import PluginError, UnknownName
from harness.plugins import OWN, load_plugins
from harness.registry import PluginSource

IMPORT = "from harness.api import hookimpl\n"
TOY = """
from harness.api import Card, hookimpl

def build(context, *, width=3):
    return width

@hookimpl
def register_models(register):
    register("toy/linear", ":build", card=Card("A toy."), defaults={"width": 3})
    register("toys/<name>", ":build", defaults={"width": 3})
"""
MODEL = """
@hookimpl
def register_models(register):
    register({arguments})
"""


def plugin(folder, content, *, name="mine"):
    """A plugin in a file of its own."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.py"
    path.write_text(content)
    return str(path)


def registering(*arguments):
    """The text of a plugin that registers one model."""
    return IMPORT + MODEL.format(arguments=", ".join(arguments))


BROKEN = [
    pytest.param("import nowhere_at_all\n", "No module named 'nowhere_at_all'", id="import"),
    pytest.param("raise ValueError('no luck')\n", "ValueError: no luck", id="raises"),
    pytest.param("def (\n", "SyntaxError: invalid syntax", id="syntax"),
    pytest.param("x = '\0'\n", "null bytes", id="null-byte"),
    pytest.param("import sys\nsys.exit(3)\n", "SystemExit: 3", id="exit"),
    pytest.param(
        IMPORT + "@hookimpl\ndef register_model(register):\n    pass\n",
        "unknown hook 'register_model'; did you mean 'register_models'",
        id="unknown-hook",
    ),
    pytest.param(
        IMPORT + "@hookimpl\ndef register_models(registry):\n    pass\n",
        "'registry'",
        id="wrong-argument",
    ),
    pytest.param(
        IMPORT + "@hookimpl\ndef register_models(register):\n    1 / 0\n",
        "ZeroDivisionError: division by zero (mine.py, line 4)",
        id="body-raises",
    ),
    pytest.param(
        registering("'toy/linear'"), "missing 1 required positional argument", id="no-target"
    ),
    pytest.param(
        registering("'toy linear'", "'toy:build'"),
        "registers model 'toy linear'; a name is made of letters, digits",
        id="illegal-name",
    ),
    pytest.param(
        registering("'toy/../linear'", "'toy:build'"), "a name is made of", id="upwards-name"
    ),
    pytest.param(
        registering("'toy/linear'", "'a:b'") + "    register('toy/linear', 'c:d')\n",
        "registers model 'toy/linear' twice",
        id="twice",
    ),
]


@pytest.mark.parametrize(("content", "error"), BROKEN)
def test_a_broken_plugin_is_kept_with_its_error_and_the_others_work(
    tmp_path, registry, content, error
):
    found = load_plugins([plugin(tmp_path, content)])

    (broken,) = [item for item in found.plugins if item.error]
    assert broken.name == "mine"
    assert error in broken.error
    assert found.names("models") == registry.names("models")
    assert found.find("models", "cnn/digits").load()


def test_an_error_names_the_line_of_the_plugin(tmp_path):
    content = "first = 1\nsecond = first / 0\n"

    found = load_plugins([plugin(tmp_path, content)])

    assert found.plugins[-1].error.endswith("(mine.py, line 2)")


def test_a_plugin_in_a_file_brings_what_it_registers(tmp_path):
    found = load_plugins([plugin(tmp_path, TOY)])

    entry = found.find("models", "toy/linear")

    assert entry.load()(None, width=5) == 5
    assert entry.card.summary == "A toy."
    assert (entry.plugin.name, entry.plugin.origin) == ("mine", "file")


def test_a_plugin_in_a_module_brings_what_it_registers(tmp_path, monkeypatch):
    plugin(tmp_path, TOY, name="toy_plugin_of_a_test")
    monkeypatch.syspath_prepend(tmp_path)

    found = load_plugins(["toy_plugin_of_a_test"])

    assert found.find("models", "toy/linear").plugin.origin == "module"


def test_a_module_that_is_not_there_is_a_broken_plugin():
    found = load_plugins(["nowhere_at_all"])

    assert "No module named 'nowhere_at_all'" in found.plugins[-1].error


def test_a_file_that_is_not_there_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(PluginError, match=r"no such file; give the path of a \.py file"):
        load_plugins([str(tmp_path / "gone.py")])


def test_a_source_works_where_its_file_is_not_there():
    source = PluginSource("/nowhere/mine.py", TOY)

    found = load_plugins([source])

    assert found.find("models", "toy/linear").load()(None, width=5) == 5


def test_the_sources_of_a_registry_make_the_same_registry(tmp_path):
    first = load_plugins([plugin(tmp_path, TOY)], without=["cnn"])

    second = load_plugins(first.sources, without=first.without)

    assert second.names("models") == first.names("models")
    assert second.plugins == first.plugins


def test_the_hash_of_a_plugin_follows_its_content(tmp_path):
    one = load_plugins([plugin(tmp_path / "one", TOY)])
    same = load_plugins([plugin(tmp_path / "same", TOY)])
    other = load_plugins([plugin(tmp_path / "other", f"{TOY}# changed\n")])

    assert same.plugins[-1].sha256 == one.plugins[-1].sha256
    assert other.plugins[-1].sha256 != one.plugins[-1].sha256


def test_every_bundled_plugin_works_and_has_a_hash(registry):
    assert [item.error for item in registry.plugins] == [""] * len(registry.plugins)
    assert all(len(item.sha256) == 64 for item in registry.plugins)


def test_a_name_of_two_plugins_is_refused_with_both_named(tmp_path):
    paths = [plugin(tmp_path, TOY, name="one"), plugin(tmp_path, TOY, name="two")]
    found = load_plugins(paths)

    with pytest.raises(PluginError, match=r"plugin 'one'.* and .*plugin 'two'.*--no-plugin"):
        found.find("models", "toy/linear")


def test_a_name_of_two_plugins_leaves_other_names_alone(tmp_path):
    paths = [plugin(tmp_path, TOY, name="one"), plugin(tmp_path, TOY, name="two")]

    found = load_plugins(paths)

    assert found.find("models", "cnn/digits").plugin.name == "cnn"
    assert len(found.listed("models")) == len(found.names("models")) + 2


def test_a_plugin_that_brings_a_bundled_name_does_not_replace_it(tmp_path):
    found = load_plugins([plugin(tmp_path, registering("'cnn/digits'", "'mine:build'"))])

    with pytest.raises(PluginError, match=r"plugin 'cnn'.* and .*plugin 'mine'"):
        found.find("models", "cnn/digits")


def test_two_plugins_of_one_name_are_both_broken(tmp_path):
    paths = [plugin(tmp_path / "one", TOY), plugin(tmp_path / "two", TOY)]

    found = load_plugins(paths)

    errors = [item.error for item in found.plugins if item.name == "mine"]
    assert ["both bring a plugin named 'mine'" in error for error in errors] == [True, True]
    assert ["one/mine.py" in error and "two/mine.py" in error for error in errors] == [True, True]
    assert not found.has("models", "toy/linear")


def test_a_member_of_a_family_is_bound_to_its_name(tmp_path):
    found = load_plugins([plugin(tmp_path, TOY)])

    entry = found.find("models", "toys/red.large")

    assert entry.name == "toys/red.large"
    assert dict(entry.defaults) == {"width": 3, "name": "red.large"}
    assert not entry.is_family


def test_a_family_is_listed_as_one(tmp_path):
    found = load_plugins([plugin(tmp_path, TOY)])

    families = [entry.name for entry in found.listed("models") if entry.is_family]

    assert "toys/<name>" in families
    assert "toy/linear" not in families


def test_a_registered_name_goes_before_the_family_of_its_like(tmp_path):
    content = TOY.replace("toy/linear", "toys/linear")

    entry = load_plugins([plugin(tmp_path, content)]).find("models", "toys/linear")

    assert dict(entry.defaults) == {"width": 3}


@pytest.mark.parametrize(
    ("kind", "name", "near"),
    [
        ("models", "cnn/digit", "cnn/digits"),
        ("attacks", "pdg", "pgd"),
        ("recipes", "standrad", "standard"),
        ("metrics", "robust-acuracy", "robust-accuracy"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(registry, kind, name, near):
    with pytest.raises(UnknownName, match=rf"'{name}' is not known; did you mean .*'{near}'"):
        registry.find(kind, name)


def test_an_unknown_name_tells_which_command_lists_the_known(registry):
    with pytest.raises(UnknownName, match="see 'harness ls attacks'"):
        registry.find("attacks", "something-else")


def test_an_unknown_name_quotes_the_broken_plugins(tmp_path):
    found = load_plugins([plugin(tmp_path, "import nowhere_at_all\n")])

    with pytest.raises(UnknownName, match="broken plugin 'mine' may have held it: ModuleNotFound"):
        found.find("models", "toy/linear")


@pytest.mark.parametrize(
    ("target", "why"),
    [
        pytest.param("'nowhere_at_all:build'", "No module named 'nowhere_at_all'", id="module"),
        pytest.param("'json:nothing'", "no attribute 'nothing'", id="attribute"),
        pytest.param("':nothing'", "no attribute 'nothing'", id="own-attribute"),
    ],
)
def test_a_target_that_is_not_there_is_told_when_it_is_needed(tmp_path, target, why):
    found = load_plugins([plugin(tmp_path, registering("'toy/linear'", target))])
    entry = found.find("models", "toy/linear")

    with pytest.raises(PluginError, match=rf"'toy/linear': its target .* of plugin 'mine' .*{why}"):
        entry.load()


def test_a_target_may_be_the_thing_itself(tmp_path):
    content = registering("'toy/linear'", "abs")

    entry = load_plugins([plugin(tmp_path, content)]).find("models", "toy/linear")

    assert entry.load() is abs


def test_settled_parameters_are_the_defaults_but_for_what_is_set(registry):
    entry = registry.find("attacks", "pgd")

    found = entry.settle({"steps": 7}, "here")

    assert found == {**entry.defaults, "steps": 7}


def test_an_unknown_parameter_is_refused_with_the_nearest(registry):
    entry = registry.find("attacks", "pgd")

    with pytest.raises(PluginError, match=r"here: .*'pgd' has no parameter 'stesp'.*'steps'"):
        entry.settle({"stesp": 7}, "here")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"steps": "ten"}, "here: pgd: steps must be a whole number, not 'ten'"),
        ({"steps": 2.5}, "steps must be a whole number, not 2.5"),
        ({"steps": True}, "steps must be a whole number, not True"),
        ({"relative_step_size": "big"}, "relative_step_size must be a number, not 'big'"),
    ],
    ids=["text", "fraction", "boolean", "no number"],
)
def test_a_parameter_of_another_type_is_refused(registry, parameters, message):
    with pytest.raises(PluginError, match=message):
        registry.find("attacks", "pgd").settle(parameters, "here")


def test_one_and_one_point_nought_are_one_value(registry):
    settled = registry.find("attacks", "pgd").settle({"relative_step_size": 1}, "here")

    assert repr(settled["relative_step_size"]) == "1.0"


@pytest.mark.parametrize("left_out", ["cnn", f"{OWN}:cnn"], ids=["name", "distribution-and-name"])
def test_a_plugin_can_be_left_out(registry, left_out):
    found = load_plugins(without=[left_out])

    names = [item.name for item in found.plugins]
    assert names == [item.name for item in registry.plugins if item.name != "cnn"]
    assert not found.has("models", "cnn/digits")


def test_a_plugin_of_another_distribution_stays():
    found = load_plugins(without=["somebody-else:cnn"])

    assert found.has("models", "cnn/digits")


def test_the_environment_may_name_the_plugins_to_load(monkeypatch):
    monkeypatch.setenv("HARNESS_PLUGINS", "cnn, attacks")

    found = load_plugins()

    assert sorted(item.name for item in found.plugins) == ["attacks", "cnn"]


def test_the_environment_may_name_no_plugin_at_all(monkeypatch, tmp_path):
    monkeypatch.setenv("HARNESS_PLUGINS", "")

    found = load_plugins([plugin(tmp_path, TOY)])

    assert [item.name for item in found.plugins] == ["mine"]


def test_in_strict_mode_a_broken_plugin_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("HARNESS_STRICT_PLUGINS", "1")
    path = plugin(tmp_path, "import nowhere_at_all\n")

    with pytest.raises(PluginError, match="plugin 'mine': ModuleNotFoundError: No module"):
        load_plugins([path])


def test_in_strict_mode_working_plugins_load(monkeypatch, tmp_path):
    monkeypatch.setenv("HARNESS_STRICT_PLUGINS", "1")

    found = load_plugins([plugin(tmp_path, TOY)])

    assert found.has("models", "toy/linear")


def test_a_registry_takes_nothing_more(registry):
    key = ("models", "cnn/digits")

    with pytest.raises(TypeError, match="does not support item assignment"):
        registry.entries[key] = ()


def test_the_parts_of_a_registry_cannot_be_replaced(registry):
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'plugins'"):
        registry.plugins = ()


def test_defaults_cannot_be_changed_by_whoever_reads_them(registry):
    entry = registry.find("attacks", "pgd")

    with pytest.raises(TypeError, match="does not support item assignment"):
        entry.defaults["steps"] = 1


def test_observers_are_the_working_plugins(tmp_path, registry):
    paths = [
        plugin(tmp_path, TOY, name="works"),
        plugin(tmp_path, "import nowhere_at_all\n", name="not-imported"),
        plugin(tmp_path, registering("'toy linear'", "'toy:build'"), name="imported"),
    ]

    found = load_plugins(paths).observers()

    assert len(found.list_name_plugin()) == len(registry.plugins) + 1
    assert found.has_plugin("file:works")


def test_the_registry_needs_no_torch():
    program = """
import sys
from harness.plugins import load_plugins
assert load_plugins().has("models", "cnn/digits")
print([name for name in ("torch", "numpy", "timm", "datasets") if name in sys.modules])
"""

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout == "[]\n"


def test_a_wrong_name_in_the_environment_is_not_silence(monkeypatch):
    monkeypatch.setenv("HARNESS_PLUGINS", "cnn,atacks")

    with pytest.raises(PluginError, match=r"no installed plugin is called 'atacks'.*'attacks'"):
        load_plugins()


def test_an_installed_plugin_that_is_given_once_more_is_loaded_once(registry):
    found = load_plugins(["harness_cnn"])

    assert found.find("models", "cnn/digits").plugin.name == "cnn"
    assert len(found.plugins) == len(registry.plugins)

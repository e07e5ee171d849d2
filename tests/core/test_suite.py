"""Suites: read whole, refused by file, table and key, with the nearest legal name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.errors import SuiteError
from harness.plugins import load_plugins
from harness.suite import attack_spec, find_suite, parse_epsilon, read_suite, shipped_suites

SUITE = """
name = "tiny"
version = 1
title = "A tiny suite"
shard_size = 8
metrics = ["clean-accuracy", "auc"]
probes = ["confidence"]

[data]
name = "digits"
samples = [3, 1, 2]

[threat]
norm = "linf"
epsilons = ["32/255", 0.01, "8/255"]
headline = "8/255"

[[attacks]]
name = "noise"

[[attacks]]
name = "pgd"
objective = "margin"
steps = 3

[[models]]
name = "cnn/digits"
recipe = "pgd-adversarial"

[recipes.standard]
epochs = 2
"""


def changed(old, new):
    """The suite with one place replaced."""
    before, after = SUITE.split(old)
    return before + new + after


def reading(folder, text, registry):
    """The suite that a text describes."""
    path = folder / "tiny.toml"
    path.write_text(text)
    return read_suite(path, registry)


def test_a_suite_says_what_its_file_says(tmp_path, registry):
    suite = reading(tmp_path, SUITE, registry)

    assert (suite.name, suite.version, suite.title) == ("tiny", 1, "A tiny suite")
    assert (suite.norm, suite.headline, suite.shard_size) == ("linf", "8/255", 8)
    assert suite.data.samples == (3, 1, 2)
    assert suite.metrics == ("clean-accuracy", "auc")
    assert suite.probes == ("confidence",)
    assert [(spec.name, spec.recipe) for spec in suite.models] == [
        ("cnn/digits", "pgd-adversarial")
    ]
    assert suite.recipes == {"standard": {"epochs": 2}}


def test_what_a_suite_does_not_say_has_a_default(tmp_path, registry):
    suite = reading(tmp_path, changed('title = "A tiny suite"\nshard_size = 8\n', ""), registry)

    assert (suite.title, suite.shard_size) == ("tiny", 128)
    assert (suite.box, suite.protocol, suite.recipe) == ("pixels", "nested", "standard")
    assert (suite.data.split, suite.data.train, suite.data.validation) == ("test", "train", "")


def test_attacks_have_all_their_parameters(tmp_path, registry):
    suite = reading(tmp_path, SUITE, registry)

    noise, pgd = suite.attacks
    assert (noise.label, noise.objective, dict(noise.parameters)) == ("noise", "ce", {})
    assert (pgd.label, pgd.objective) == ("pgd", "margin")
    assert pgd.parameters == {**registry.find("attacks", "pgd").defaults, "steps": 3}


def test_epsilons_are_sorted_and_keep_their_writing(tmp_path, registry):
    suite = reading(tmp_path, SUITE, registry)

    assert [epsilon.text for epsilon in suite.epsilons] == ["0.01", "8/255", "32/255"]
    assert [epsilon.value for epsilon in suite.epsilons] == [0.01, 8 / 255, 32 / 255]


def test_each_epsilon_has_its_ball(tmp_path, registry):
    text = changed('norm = "linf"', 'norm = "l2"\nbox = "none"')

    threats = reading(tmp_path, text, registry).threats()

    assert list(threats) == ["0.01", "8/255", "32/255"]
    assert threats["8/255"].epsilon == 8 / 255
    assert (threats["8/255"].norm, threats["8/255"].box) == ("l2", "none")


@pytest.mark.parametrize("name", shipped_suites())
def test_every_shipped_suite_can_be_read(registry, name):
    suite = find_suite(name, registry)

    assert suite.name == name


def test_the_embedded_suite_ranks_digits_under_linf(registry):
    suite = find_suite("digits-linf", registry)

    assert (suite.data.name, suite.norm, suite.box) == ("digits", "linf", "pixels")
    assert suite.data.fingerprints == (
        registry.find("datasets", "digits").card.fingerprints[suite.data.split],
    )
    assert len(suite.models) > 1


def test_a_suite_may_be_a_file_anywhere(tmp_path, registry):
    (tmp_path / "mine.toml").write_text(SUITE)

    suite = find_suite(str(tmp_path / "mine.toml"), registry)

    assert suite.name == "tiny"


def test_a_plugin_may_bring_a_suite(tmp_path):
    (tmp_path / "brought.toml").write_text(SUITE)
    (tmp_path / "mine.py").write_text(
        "from harness.api import hookimpl\n"
        "@hookimpl\n"
        "def register_suites(register):\n"
        f"    register('brought', {str(tmp_path / 'brought.toml')!r})\n"
    )

    suite = find_suite("brought", load_plugins([str(tmp_path / "mine.py")]))

    assert suite.name == "tiny"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        pytest.param(
            "shard_size = 8",
            "shardsize = 8",
            r"tiny\.toml: the key 'shardsize' is not known; did you mean 'shard_size'",
            id="top",
        ),
        pytest.param(
            "samples =",
            "sample =",
            r"tiny\.toml: \[data\]: the key 'sample' is not known; did you mean 'samples'",
            id="data",
        ),
        pytest.param(
            "norm =",
            "boxx = 'none'\nnorm =",
            r"tiny\.toml: \[threat\]: the key 'boxx' is not known; did you mean 'box'",
            id="threat",
        ),
        pytest.param(
            "steps = 3",
            "stesp = 3",
            r"tiny\.toml: \[\[attacks\]\] number 2: attack 'pgd' has no parameter 'stesp'; "
            "did you mean 'steps'",
            id="attack",
        ),
        pytest.param(
            'recipe = "pgd-adversarial"',
            'recipes = "pgd-adversarial"',
            r"tiny\.toml: \[\[models\]\] number 1: the key 'recipes' is not known; "
            "did you mean 'recipe'",
            id="model",
        ),
        pytest.param(
            "epochs = 2",
            "epoch = 2",
            r"tiny\.toml: \[recipes\]: standard: recipe 'standard' has no parameter 'epoch'; "
            "did you mean 'epochs'",
            id="recipe",
        ),
    ],
)
def test_an_unknown_key_is_refused_by_file_and_table_with_the_nearest(
    tmp_path, registry, old, new, message
):
    with pytest.raises(SuiteError, match=message):
        reading(tmp_path, changed(old, new), registry)


@pytest.mark.parametrize(
    ("old", "message"),
    [
        pytest.param('name = "tiny"', r"tiny\.toml: the key 'name' is missing", id="name"),
        pytest.param("version = 1", r"tiny\.toml: the key 'version' is missing", id="version"),
        pytest.param('name = "digits"', r"\[data\]: the key 'name' is missing", id="data"),
        pytest.param('norm = "linf"', r"\[threat\]: the key 'norm' is missing", id="norm"),
        pytest.param(
            'headline = "8/255"', r"\[threat\]: the key 'headline' is missing", id="headline"
        ),
        pytest.param(
            'epsilons = ["32/255", 0.01, "8/255"]',
            r"\[threat\]: the key 'epsilons' is missing",
            id="epsilons",
        ),
        pytest.param(
            'name = "noise"', r"\[\[attacks\]\] number 1: the key 'name' is missing", id="attack"
        ),
        pytest.param(
            'name = "cnn/digits"',
            r"\[\[models\]\] number 1: the key 'name' is missing",
            id="model",
        ),
    ],
)
def test_a_missing_key_is_refused_by_table(tmp_path, registry, old, message):
    with pytest.raises(SuiteError, match=message):
        reading(tmp_path, changed(old, ""), registry)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        pytest.param("version = 1", 'version = "1"', "version must be a whole number", id="int"),
        pytest.param("version = 1", "version = true", "version must be a whole number", id="bool"),
        pytest.param("version = 1", "version = 1.5", "version must be a whole number", id="float"),
        pytest.param('name = "tiny"', "name = 3", "name must be a string, not 3", id="string"),
        pytest.param(
            '["clean-accuracy", "auc"]', '"auc"', "metrics must be a list, not 'auc'", id="list"
        ),
        pytest.param('["confidence"]', "[3]", "probes must be a list of strings", id="strings"),
        pytest.param(
            "[recipes.standard]\nepochs",
            "[recipes]\nstandard",
            r"\[recipes\]: standard must be a table, not 2",
            id="table",
        ),
        pytest.param(
            'headline = "8/255"',
            "headline = true",
            r"\[threat\]: headline must be a number or a string, not True",
            id="headline",
        ),
        pytest.param(
            "samples = [3, 1, 2]",
            "samples = [3, 1.5]",
            r"\[data\]: samples must be different whole numbers",
            id="samples",
        ),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_the_right_one(
    tmp_path, registry, old, new, message
):
    with pytest.raises(SuiteError, match=message):
        reading(tmp_path, changed(old, new), registry)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        pytest.param(
            'name = "digits"', 'name = "digit"', r"\[data\]: dataset 'digit' .*'digits'", id="data"
        ),
        pytest.param(
            'name = "pgd"', 'name = "pdg"', r"number 2: attack 'pdg' .*'pgd'", id="attack"
        ),
        pytest.param(
            'objective = "margin"',
            'objective = "margins"',
            r"number 2: objective 'margins' .*'margin'",
            id="objective",
        ),
        pytest.param(
            'name = "cnn/digits"',
            'name = "cnn/digit"',
            r"\[\[models\]\] number 1: model 'cnn/digit' .*'cnn/digits'",
            id="model",
        ),
        pytest.param(
            'recipe = "pgd-adversarial"',
            'recipe = "pgd-advrsarial"',
            "number 1: recipe 'pgd-advrsarial' .*'pgd-adversarial'",
            id="recipe-of-a-model",
        ),
        pytest.param(
            "shard_size = 8",
            'recipe = "standrad"',
            r"tiny\.toml: recipe 'standrad' .*'standard'",
            id="recipe",
        ),
        pytest.param(
            "[recipes.standard]",
            "[recipes.standrad]",
            r"\[recipes\]: recipe 'standrad' .*'standard'",
            id="recipe-table",
        ),
        pytest.param('"auc"', '"auk"', "metric 'auk' .*'auc'", id="metric"),
        pytest.param('"confidence"', '"confidense"', "'confidense' .*'confidence'", id="probe"),
        pytest.param('"linf"', '"linff"', "norm 'linff' .*'linf'", id="norm"),
        pytest.param(
            "shard_size = 8", 'protocol = "nestd"', "protocol 'nestd' .*'nested'", id="protocol"
        ),
        pytest.param(
            "samples = [3, 1, 2]",
            'split = "tset"',
            r"\[data\]: split 'tset' .*'test'",
            id="split",
        ),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(tmp_path, registry, old, new, message):
    with pytest.raises(SuiteError, match=message):
        reading(tmp_path, changed(old, new), registry)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        pytest.param(
            'headline = "8/255"',
            'headline = "16/255"',
            "headline 16/255 is not one of its epsilons, 0.01, 8/255, 32/255",
            id="headline-not-in-the-grid",
        ),
        pytest.param('"32/255"', '"8/255"', "an epsilon is listed twice", id="epsilon-twice"),
        pytest.param(
            'name = "noise"',
            'name = "pgd"',
            "two attacks are labelled 'pgd'; give one a 'label'",
            id="label-twice",
        ),
        pytest.param("[3, 1, 2]", "[3, 1, 3]", "samples must be different", id="sample-twice"),
        pytest.param(
            "shard_size = 8",
            "shard_size = 0",
            "shard_size must be at least 1",
            id="empty-shards",
        ),
        pytest.param(
            "0.01,", "8,", r"\[threat\]: epsilon 8 .* write '8/255', not 8", id="pixel-values"
        ),
        pytest.param(
            'headline = "8/255"', "headline = 8", "write '8/255', not 8", id="pixel-headline"
        ),
        pytest.param("0.01,", '"eight",', 'write "8/255" or 0.5', id="no-number"),
        pytest.param("0.01,", "0,", "epsilon must be positive", id="zero"),
    ],
)
def test_what_contradicts_itself_is_refused_with_the_remedy(tmp_path, registry, old, new, message):
    with pytest.raises(SuiteError, match=message):
        reading(tmp_path, changed(old, new), registry)


def test_a_suite_without_attacks_is_refused(tmp_path, registry):
    before, _, rest = SUITE.partition("[[attacks]]")
    models = rest[rest.index("[[models]]") :]

    with pytest.raises(SuiteError, match=r"at least one \[\[attacks\]\] is needed"):
        reading(tmp_path, before + models, registry)


def test_two_labels_let_an_attack_stand_twice(tmp_path, registry):
    text = changed('name = "noise"', 'name = "pgd"\nlabel = "pgd-ce"')

    suite = reading(tmp_path, text, registry)

    assert [attack.label for attack in suite.attacks] == ["pgd-ce", "pgd"]


def test_what_is_not_toml_is_refused_with_the_line(tmp_path, registry):
    with pytest.raises(SuiteError, match=r"tiny\.toml: not TOML: .*line 3"):
        reading(tmp_path, changed("version = 1", "version ="), registry)


def test_what_is_no_text_is_refused(tmp_path, registry):
    (tmp_path / "tiny.toml").write_bytes(b'name = "\xff"')

    with pytest.raises(SuiteError, match=r"tiny\.toml: not TOML"):
        read_suite(tmp_path / "tiny.toml", registry)


def test_a_missing_file_is_refused(tmp_path, registry):
    with pytest.raises(SuiteError, match=r"gone\.toml: cannot be read: No such file"):
        find_suite(str(tmp_path / "gone.toml"), registry)


def test_an_unknown_suite_is_refused_with_the_nearest_and_the_remedy(registry):
    with pytest.raises(
        SuiteError, match=r"did you mean 'digits-linf'.*see 'harness ls suites'.*toml"
    ):
        find_suite("digits-lnf", registry)


@pytest.mark.parametrize(
    ("written", "text", "value"),
    [
        pytest.param("8/255", "8/255", 8 / 255, id="fraction"),
        pytest.param("8 / 255", "8/255", 8 / 255, id="spaces"),
        pytest.param(0.5, "0.5", 0.5, id="number"),
    ],
)
def test_an_epsilon_keeps_its_writing_but_for_spaces(written, text, value):
    epsilon = parse_epsilon(written, "linf", "--epsilon")

    assert (epsilon.text, epsilon.value) == (text, value)


def test_an_epsilon_that_is_wrong_is_refused_by_place():
    with pytest.raises(SuiteError, match=r"--epsilon: epsilon 8 exceeds .* write '8/255', not 8"):
        parse_epsilon(8, "linf", "--epsilon")


@pytest.mark.parametrize(
    ("asked", "objective"), [("", "ce"), ("margin", "margin")], ids=["of-the-card", "as-asked"]
)
def test_an_attack_by_name_has_its_defaults(registry, asked, objective):
    spec = attack_spec("pgd", asked, registry)

    assert (spec.label, spec.objective) == ("pgd", objective)
    assert spec.parameters == registry.find("attacks", "pgd").defaults


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"title": "Another title"}, id="title"),
        pytest.param({"models": ()}, id="models"),
        pytest.param({"recipe": "pgd-adversarial"}, id="recipe"),
        pytest.param({"recipes": {}}, id="recipes"),
        pytest.param({"metrics": ("auc",)}, id="metrics"),
    ],
)
def test_science_leaves_out_what_no_record_depends_on(tmp_path, registry, change):
    suite = reading(tmp_path, SUITE, registry)

    assert replace(suite, **change).science() == suite.science()


def test_science_leaves_out_which_copies_are_accepted(tmp_path, registry):
    suite = reading(tmp_path, SUITE, registry)
    stricter = reading(tmp_path, changed("samples", 'fingerprints = ["ab"]\nsamples'), registry)

    assert stricter.science() == suite.science()
    assert stricter.data.fingerprints == ("ab",)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("version = 1", "version = 2", id="version"),
        pytest.param("[3, 1, 2]", "[3, 1]", id="samples"),
        pytest.param('norm = "linf"', 'norm = "l2"', id="norm"),
        pytest.param('norm = "linf"', 'norm = "linf"\nbox = "none"', id="box"),
        pytest.param("0.01,", "", id="epsilons"),
        pytest.param("shard_size = 8", 'protocol = "independent"', id="protocol"),
        pytest.param("steps = 3", "steps = 4", id="parameter"),
        pytest.param('objective = "margin"', 'objective = "ce"', id="objective"),
        pytest.param('probes = ["confidence"]', "", id="probes"),
    ],
)
def test_science_holds_what_records_depend_on(tmp_path, registry, old, new):
    before = reading(tmp_path, SUITE, registry).science()

    after = reading(tmp_path, changed(old, new), registry).science()

    assert after != before


@pytest.mark.parametrize(
    ("key", "name", "remedy"),
    [
        ("metrics", "routing-flips", "list it under 'curves'"),
        ("curves", "auc", "list it under 'metrics'"),
    ],
)
def test_columns_and_curves_are_told_apart(tmp_path, registry, key, name, remedy):
    text = SUITE.replace('metrics = ["clean-accuracy", "auc"]', f'{key} = ["{name}"]')

    with pytest.raises(SuiteError, match=remedy):
        reading(tmp_path, text, registry)


def test_curves_change_no_measured_number(tmp_path, registry):
    plain = reading(tmp_path, SUITE, registry)
    curved = reading(
        tmp_path, SUITE.replace("probes", 'curves = ["routing-flips"]\nprobes'), registry
    )

    assert curved.curves == ("routing-flips",)
    assert curved.science() == plain.science()

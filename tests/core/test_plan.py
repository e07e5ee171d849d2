"""Plans: which rows, which shards, and keys that change with the science and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.cards import ModelCard
from harness.errors import CheckpointError, UnknownName, UsageError
from harness.modes import PLAIN, TrainingMode
from harness.plan import (
    Contender,
    cell_ingredients,
    contenders,
    key,
    passes,
    sample_ids,
    shards,
    training_ingredients,
    with_attacks,
)
from harness.plugins import load_plugins
from harness.suite import AttackSpec, Epsilon, ModelSpec, attack_spec, read_suite

TOYS = """
from harness.api import AttackCard, ModelCard, hookimpl

@hookimpl
def register_models(register):
    register("toy/small", "toy:build", card=ModelCard(sizes=(8,)), defaults={"width": 3})
    register("toy/large", "toy:build", card=ModelCard(sizes=(224,)))
    register("toy/cardless", "toy:build")
    register("toy/trained", "toy:build", card=ModelCard(weights="https://host/w", sha256="ab"))
    register("toys/<name>", "toy:build")

@hookimpl
def register_attacks(register):
    register("silent", "toy:attack", card=AttackCard())
    register("cardless", "toy:attack")
"""
CNN = Contender("cnn/digits", recipe="standard")
TOY = Contender("toy/small", recipe="standard")


@pytest.fixture
def suite(tiny, registry):
    """A suite of one model, noise and PGD, at two epsilons."""
    return read_suite(tiny, registry)


@pytest.fixture
def toys(tmp_path):
    """A registry with models that nobody can build."""
    return toys_with(tmp_path)


def toys_with(folder, old="", new=""):
    """The registry of the toys, one place of their plugin replaced."""
    (folder / "toys.py").write_text(TOYS.replace(old, new, 1))
    return load_plugins([str(folder / "toys.py")])


def cell_key(suite, registry, *, contender=CNN, fingerprint="digits", **changes):
    """The key of a cell."""
    facts = {"weights": "ab", "seed": 0, "precision": "float32", **changes}
    return key(cell_ingredients(suite, contender, registry, data=fingerprint, **facts))


def training_key(suite, registry, *, contender=CNN, fingerprint="digits", seed=0, mode=PLAIN):
    """The key of a training."""
    return key(
        training_ingredients(
            suite, contender, registry, fingerprint=fingerprint, seed=seed, mode=mode
        )
    )


def pgd(suite, **changes):
    """The attacks of the suite with other parameters of PGD."""
    noise, attack = suite.attacks
    return (noise, replace(attack, parameters={**attack.parameters, **changes}))


def test_the_rows_of_the_suite_stand_where_nothing_is_wanted(suite, registry):
    found = contenders(suite, [], registry)

    assert found == (CNN,)


def test_a_model_of_the_suite_stands_for_all_its_rows(suite, registry):
    models = (
        ModelSpec("cnn/digits", "standard"),
        ModelSpec("vit/digits", "standard"),
        ModelSpec("cnn/digits", "pgd-adversarial"),
    )

    found = contenders(replace(suite, models=models), ["cnn/digits"], registry)

    assert [contender.row for contender in found] == [
        "cnn/digits.standard",
        "cnn/digits.pgd-adversarial",
    ]


def test_a_model_that_the_suite_does_not_list_takes_the_recipe_of_the_suite(suite, registry):
    found = contenders(replace(suite, recipe="pgd-adversarial"), ["vit/digits"], registry)

    assert found == (Contender("vit/digits", recipe="pgd-adversarial"),)


def test_a_model_may_be_wanted_with_its_recipe(suite, registry):
    found = contenders(suite, ["cnn/digits.pgd-adversarial"], registry)

    assert found == (Contender("cnn/digits", recipe="pgd-adversarial"),)


def test_a_point_in_the_name_of_a_model_is_no_recipe(suite, registry):
    found = contenders(suite, ["timm/resnet18.a1_in1k"], registry)

    assert found == (Contender("timm/resnet18.a1_in1k", recipe="standard"),)


def test_a_row_that_is_wanted_twice_stands_once(suite, registry):
    found = contenders(suite, ["cnn/digits", "cnn/digits.standard"], registry)

    assert found == (CNN,)


def test_all_is_every_model_that_fits_the_images_after_the_rows_of_the_suite(suite, toys):
    listed = replace(suite, models=(ModelSpec("cnn/digits", "pgd-adversarial"),))

    found = contenders(listed, ["all"], toys)

    rows = [contender.row for contender in found]
    assert rows[0] == "cnn/digits.pgd-adversarial"
    assert "cnn/digits.standard" not in rows
    assert {"toy/small.standard", "toy/cardless.standard", "toy/trained"} < set(rows)
    assert not {"toy/large.standard", "toys/<name>.standard"} & set(rows)


def test_a_model_that_brings_weights_needs_no_recipe(suite, toys):
    found = contenders(suite, ["toy/trained"], toys)

    assert found == (Contender("toy/trained", weights="https://host/w", sha256="ab"),)
    assert found[0].row == "toy/trained"


def test_a_file_of_weights_replaces_the_recipe(suite, registry):
    found = contenders(suite, ["cnn/digits"], registry, weights="mine.safetensors")

    assert found == (Contender("cnn/digits", weights="mine.safetensors"),)


@pytest.mark.parametrize(
    "wanted", [[], ["all"], ["cnn/digits", "vit/digits"]], ids=["none", "all", "two"]
)
def test_a_file_of_weights_belongs_to_one_model(suite, registry, wanted):
    with pytest.raises(UsageError, match="give exactly one --model with it"):
        contenders(suite, wanted, registry, weights="mine.safetensors")


def test_a_training_may_start_from_a_file(suite, registry):
    found = contenders(suite, ["cnn/digits"], registry, start="mine.safetensors")

    assert found == (Contender("cnn/digits", recipe="standard", start="mine.safetensors"),)
    assert found[0].row == "cnn/digits.standard"


@pytest.mark.parametrize(
    ("wanted", "weights"),
    [([], ""), (["all"], ""), (["cnn/digits", "vit/digits"], ""), (["cnn/digits"], "w")],
    ids=["none", "all", "two", "weights"],
)
def test_a_start_belongs_to_the_training_of_one_model(suite, registry, wanted, weights):
    with pytest.raises(UsageError, match="give exactly one --model with it, and no --weights"):
        contenders(suite, wanted, registry, start="mine.safetensors", weights=weights)


def test_a_start_is_refused_where_nothing_is_trained(suite, toys):
    with pytest.raises(UsageError, match="toy/trained has its weights already; name a recipe"):
        contenders(suite, ["toy/trained"], toys, start="mine.safetensors")


@pytest.mark.parametrize("weights", ["", "mine.safetensors"], ids=["recipe", "weights"])
@pytest.mark.parametrize("name", ["cnn/digit", "cnn/digit.standard", "cnn/digits.standrad"])
def test_an_unknown_model_is_refused_with_the_nearest(suite, registry, name, weights):
    with pytest.raises(UnknownName, match=r"is not known; did you mean .*'cnn/digits'"):
        contenders(suite, [name], registry, weights=weights)


def test_the_key_of_a_cell_is_sixteen_hexadecimal_digits(suite, registry):
    found = cell_key(suite, registry)

    assert len(found) == 16
    assert int(found, 16) >= 0


def test_the_key_of_the_same_cell_is_the_same(suite, registry):
    assert cell_key(suite, load_plugins()) == cell_key(suite, registry)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda suite: replace(suite, version=2), id="version"),
        pytest.param(lambda suite: replace(suite, norm="l2"), id="norm"),
        pytest.param(lambda suite: replace(suite, box="none"), id="box"),
        pytest.param(lambda suite: replace(suite, protocol="independent"), id="protocol"),
        pytest.param(lambda suite: replace(suite, probes=("confidence",)), id="probe"),
        pytest.param(lambda suite: replace(suite, attacks=suite.attacks[:1]), id="one-attack-less"),
        pytest.param(lambda suite: replace(suite, attacks=pgd(suite, steps=4)), id="parameter"),
        pytest.param(
            lambda suite: replace(suite, epsilons=(*suite.epsilons, Epsilon("0.5", 0.5))),
            id="epsilon",
        ),
        pytest.param(
            lambda suite: replace(suite, data=replace(suite.data, samples=(0, 1))), id="samples"
        ),
        pytest.param(
            lambda suite: replace(suite, data=replace(suite.data, split="train")), id="split"
        ),
    ],
)
def test_the_key_of_a_cell_changes_with_what_is_measured(suite, registry, change):
    assert cell_key(change(suite), registry) != cell_key(suite, registry)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"fingerprint": "other images"}, id="images"),
        pytest.param({"weights": "cd"}, id="weights"),
        pytest.param({"seed": 1}, id="seed"),
        pytest.param({"contender": Contender("vit/digits", recipe="standard")}, id="model"),
    ],
)
def test_the_key_of_a_cell_changes_with_what_is_measured_on(suite, registry, change):
    assert cell_key(suite, registry, **change) != cell_key(suite, registry)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"title": "Another title"}, id="title"),
        pytest.param({"models": ()}, id="models"),
        pytest.param({"recipe": "pgd-adversarial"}, id="recipe"),
        pytest.param({"recipes": {"standard": {"epochs": 3}}}, id="recipes"),
        pytest.param({"metrics": ("auc",)}, id="metrics"),
    ],
)
def test_the_key_of_a_cell_does_not_change_with_the_rest(suite, registry, change):
    assert cell_key(replace(suite, **change), registry) == cell_key(suite, registry)


def test_the_key_of_a_cell_does_not_change_with_how_its_weights_came_about(suite, registry):
    elsewhere = Contender("cnn/digits", weights="mine.safetensors")

    assert cell_key(suite, registry, contender=elsewhere) == cell_key(suite, registry)


def test_the_key_of_a_cell_does_not_change_with_plugins_that_it_does_not_use(suite, registry, toys):
    assert cell_key(suite, toys) == cell_key(suite, registry)


@pytest.mark.parametrize("of", [cell_key, training_key], ids=["cell", "training"])
def test_keys_change_with_the_code_of_the_plugin(suite, tmp_path, of):
    before = of(suite, toys_with(tmp_path), contender=TOY)

    after = of(suite, toys_with(tmp_path, "@hookimpl", "# changed\n@hookimpl"), contender=TOY)

    assert after != before


@pytest.mark.parametrize("of", [cell_key, training_key], ids=["cell", "training"])
def test_keys_change_with_the_parameters_of_the_model(suite, toys, of):
    place = ("models", TOY.model)
    wider = replace(toys.find(*place), defaults={"width": 4})

    after = of(suite, replace(toys, entries={**toys.entries, place: (wider,)}), contender=TOY)

    assert after != of(suite, toys, contender=TOY)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"fingerprint": "other images"}, id="images"),
        pytest.param({"seed": 1}, id="seed"),
        pytest.param({"mode": TrainingMode("bfloat16-mixed")}, id="numbers"),
        pytest.param({"mode": TrainingMode(is_compiled=True)}, id="compiled"),
        pytest.param({"contender": Contender("vit/digits", recipe="standard")}, id="model"),
        pytest.param({"contender": Contender("cnn/digits", recipe="pgd-adversarial")}, id="recipe"),
    ],
)
def test_the_key_of_a_training_changes_with_its_ingredients(suite, registry, change):
    assert training_key(suite, registry, **change) != training_key(suite, registry)


def test_the_key_of_a_training_changes_with_what_is_in_the_file_that_it_starts_from(
    suite, registry, tmp_path
):
    contents = {"one": b"1", "same": b"1", "other": b"2"}
    keys = {}
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        keys[name] = training_key(suite, registry, contender=replace(CNN, start=str(path)))

    assert keys["one"] == keys["same"]
    assert len({keys["one"], keys["other"], training_key(suite, registry)}) == 3


def test_a_start_that_is_not_there_is_refused_by_its_name(suite, registry, tmp_path):
    nowhere = str(tmp_path / "nowhere")

    with pytest.raises(CheckpointError, match=r"nowhere: cannot be read: .*give --start a file"):
        training_key(suite, registry, contender=replace(CNN, start=nowhere))


def test_the_key_of_a_training_changes_with_the_parameters_of_its_recipe(suite, registry):
    longer = replace(suite, recipes={"standard": {"epochs": 3}})

    assert training_key(longer, registry) != training_key(suite, registry)


def test_a_model_that_is_trained_as_another_shares_its_training_and_no_cell(suite, toys):
    place = ("models", TOY.model)
    own = toys.find(*place)
    twin = replace(own, name="toy/twin", card=ModelCard(trained_as=TOY.model))
    both = replace(toys, entries={**toys.entries, ("models", "toy/twin"): (twin,)})
    other = Contender("toy/twin", recipe="standard")

    assert training_key(suite, both, contender=other) == training_key(suite, both, contender=TOY)
    assert cell_key(suite, both, contender=other) != cell_key(suite, both, contender=TOY)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"name": "another-suite", "version": 2}, id="suite"),
        pytest.param({"attacks": ()}, id="attacks"),
        pytest.param({"epsilons": ()}, id="epsilons"),
        pytest.param({"metrics": ()}, id="metrics"),
        pytest.param({"models": ()}, id="models"),
    ],
)
def test_the_key_of_a_training_does_not_change_with_what_is_measured(suite, registry, change):
    assert training_key(replace(suite, **change), registry) == training_key(suite, registry)


def test_the_key_of_a_training_does_not_change_with_parameters_of_other_recipes(suite, registry):
    other = replace(suite, recipes={**suite.recipes, "pgd-adversarial": {"epochs": 9}})

    assert training_key(other, registry) == training_key(suite, registry)


def test_the_key_of_a_training_does_not_change_with_a_default_that_is_spelt_out(suite, registry):
    rate = registry.find("recipes", "standard").defaults["weight_decay"]
    spelt = {"standard": {**suite.recipes["standard"], "weight_decay": rate}}

    assert training_key(replace(suite, recipes=spelt), registry) == training_key(suite, registry)


def test_the_order_of_ingredients_does_not_change_a_key():
    assert key({"seed": 0, "model": "cnn"}) == key({"model": "cnn", "seed": 0})


def test_the_samples_of_the_suite_are_kept_in_their_order(suite, registry):
    card = registry.find("datasets", "digits").card
    chosen = replace(suite, data=replace(suite.data, samples=(5, 3, 4)))

    assert sample_ids(chosen, card) == (5, 3, 4)


def test_a_suite_without_samples_takes_the_whole_split(suite, registry):
    card = registry.find("datasets", "digits").card
    whole = replace(suite, data=replace(suite.data, samples=()))

    assert sample_ids(whole, card) == tuple(range(500))


@pytest.mark.parametrize("size", [1, 3, 10, 99])
def test_shards_hold_each_sample_once_and_in_order(size):
    ids = tuple(range(10, 20))

    found = list(shards(ids, size))

    assert sum((shard.ids for shard in found), ()) == ids
    assert [shard.index for shard in found] == list(range(len(found)))
    assert all(shard.is_whole for shard in found)
    assert max(len(shard.ids) for shard in found) == min(size, 10)


@pytest.mark.parametrize(
    ("limit", "names"),
    [
        pytest.param(0, [], id="nothing"),
        pytest.param(3, ["00000.first-3"], id="in-the-first"),
        pytest.param(4, ["00000"], id="at-the-end-of-the-first"),
        pytest.param(6, ["00000", "00001.first-2"], id="in-the-second"),
        pytest.param(10, ["00000", "00001", "00002"], id="everything"),
        pytest.param(99, ["00000", "00001", "00002"], id="more-than-everything"),
    ],
)
def test_a_limit_keeps_the_first_samples(limit, names):
    ids = tuple(range(10, 20))

    found = list(shards(ids, 4, limit=limit))

    assert [shard.name for shard in found] == names
    assert sum((shard.ids for shard in found), ()) == ids[:limit]


def test_a_limit_does_not_change_the_shards_that_it_leaves_whole():
    limited = list(shards(range(10), 4, limit=9))

    assert limited[:2] == list(shards(range(10), 4))[:2]


def test_other_attacks_replace_those_of_the_suite(suite, registry):
    fgsm = attack_spec("fgsm", "", registry)

    assert with_attacks(suite, [fgsm]).attacks == (fgsm,)


def test_no_other_attacks_leave_the_suite_as_it_is(suite):
    assert with_attacks(suite, []) == suite


def test_passes_count_every_step_restart_and_epsilon(suite, registry):
    harder = replace(suite, attacks=pgd(suite, steps=3, restarts=2))

    # noise makes none; PGD 3 steps and 1 last look, 2 restarts, at 2 epsilons: 4 * 2 * 2
    assert passes(harder, registry) == 16


@pytest.mark.parametrize(
    ("view", "looks"),
    # who climbs a surrogate is judged after each pass; the router's view passes the image for its
    # routes and the clean one for its content, for itself and for its judge
    [("full", 1), ("detached", 1), ("experts", 1), ("relaxed", 2), ("forced", 2), ("router", 4)],
)
def test_a_view_costs_the_passes_of_its_judge_too(suite, registry, view, looks):
    [_, attack] = pgd(suite, steps=3, restarts=1)
    seen = replace(suite, attacks=(replace(attack, view=view),))

    # 4 passes at 2 epsilons
    assert passes(seen, registry) == 8 * looks


@pytest.mark.parametrize("name", ["silent", "cardless"])
def test_passes_are_unknown_where_an_attack_does_not_tell(suite, toys, name):
    untold = with_attacks(suite, [*suite.attacks, AttackSpec(name, name, "ce", {})])

    assert passes(untold, toys) is None

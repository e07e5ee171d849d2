"""AdvMoE's suites: which rows stand beside each other, and on equal terms."""

from __future__ import annotations

import pytest

from harness.plan import Contender, contenders, needs_routes, training_ingredients
from harness.suite import find_suite

BACKBONES = ["resnet18", "wrn28-10", "vgg16", "densenet40"]
MIXED = ["moe-trades", "advmoe-alternating", "advmoe-released"]
SUITES = ["advmoe-grid", "advmoe-digits"]


def rows(registry, name):
    return [row.row for row in contenders(find_suite(name, registry), [], registry)]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_each_backbone_of_the_grid_has_its_six_rows(registry, backbone):
    found = [row for row in rows(registry, "advmoe-grid") if f"cnn/{backbone}" in row]

    assert found == [
        f"cnn/{backbone}.trades",
        f"cnn/{backbone}-half.trades",
        f"cnn/{backbone}.sparse-robust",
        *[f"moe-cnn/{backbone}.{recipe}" for recipe in MIXED],
    ]


def test_one_cell_of_the_grid_is_run_alone_with_the_published_settings(registry):
    suite = find_suite("advmoe-grid", registry)

    [row] = contenders(suite, ["moe-cnn/vgg16.advmoe-released-full"], registry)

    settings = training_ingredients(suite, row, registry, fingerprint="", seed=0)
    assert settings["recipe_parameters"]["optimizer"] == "sgd"
    assert settings["recipe_parameters"]["epochs"] == 100


@pytest.mark.parametrize("name", SUITES)
def test_every_headline_attack_has_a_meaning_for_every_row(registry, name):
    suite = find_suite(name, registry)

    whole = [attack for attack in suite.attacks if attack.view == "full"]

    assert not any(needs_routes(attack, registry) for attack in whole)
    assert {attack.view for attack in suite.attacks} == {"full", "experts", "router"}


@pytest.mark.parametrize("name", SUITES)
def test_every_row_trains_for_equally_long_on_equal_attacks(registry, name):
    suite = find_suite(name, registry)
    same = ("epochs", "learning_rate", "batch_size", "crop", "flip")
    attack = ("epsilon", "steps", "relative_step_size")

    settled = [
        training_ingredients(suite, row, registry, fingerprint="", seed=0)["recipe_parameters"]
        for row in contenders(suite, [], registry)
    ]

    assert len({tuple(found[key] for key in same) for found in settled}) == 1
    assert len({tuple(map(found.get, attack)) for found in settled if "steps" in found}) == 1


@pytest.mark.parametrize("recipe", MIXED)
def test_the_released_attacks_meet_the_networks_of_the_comparison(registry, recipe):
    row = Contender("moe-cnn/digits", recipe=recipe)

    trainings = [
        training_ingredients(find_suite(name, registry), row, registry, fingerprint="", seed=0)
        for name in ("advmoe-digits", "advmoe-released-attack")
    ]

    assert trainings[0] == trainings[1]

"""Numbers by patterns of bits are those of the records of all images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from harness.alike import Laws
from harness.api import Value
from harness.entries import Entry
from harness.evidence import Column, Table, tables_of
from harness.plugins import load_plugins
from harness.proof import check_entry
from harness.stats import share

REGISTRY = load_plugins()
FROM_BITS = [item.name for item in REGISTRY.listed("metrics") if item.card.from_bits]
RADII = ("8/255", "16/255")
ATTACKS = (("noise", "full"), ("autoattack-standard", "full"), ("a", "experts"), ("b", "router"))
COLUMNS = tuple(Column(label, view, text) for label, view in ATTACKS for text in RADII)


@pytest.fixture
def table(ten):
    """Makes a table of images with at most so many patterns of bits, possible or not."""

    def make(images=400, patterns=12, protocol="nested"):
        rng = np.random.default_rng(images)
        kinds = rng.random((patterns, 1 + len(COLUMNS))) < 0.6
        bits = kinds[rng.integers(0, patterns, images)]
        suite = replace(ten, protocol=protocol)
        return Table(COLUMNS, bits, tuple(range(images)), suite, {"parameters": 7})

    return make


def whole(compute, table):
    return [value.to_json() for value in compute(table.evidence())]


@pytest.mark.parametrize("protocol", ["nested", "independent"])
@pytest.mark.parametrize("name", FROM_BITS)
def test_every_metric_from_bits_gives_the_same_by_patterns(table, name, protocol):
    compute, laws = REGISTRY.find("metrics", name).load(), Laws()
    first, second = table(400, protocol=protocol), table(401, protocol=protocol)

    found = [laws.numbers(name, compute, item) for item in (first, second)]

    assert found == [whole(compute, first), whole(compute, second)]
    [law] = laws.known.values()
    assert law.aggregate is not None
    assert 0 < len(law.alone) <= 24


def counted(compute, seen):
    def count(evidence):
        seen.append(len({record.sample for record in evidence.records}))
        return compute(evidence)

    return count


def test_a_pattern_that_was_met_is_not_looked_at_again(table):
    seen, laws = [], Laws()
    compute = counted(REGISTRY.find("metrics", "clean-accuracy").load(), seen)
    laws.numbers("clean", compute, table())
    seen.clear()

    again = laws.numbers("clean", compute, table())

    assert seen == []
    assert again[0]["n"] == 400


def test_where_hardly_two_images_are_alike_the_metric_sees_all(table):
    seen, laws = [], Laws()
    compute = counted(REGISTRY.find("metrics", "clean-accuracy").load(), seen)

    laws.numbers("clean", compute, table(100, patterns=90))

    assert seen[-1] == 100


def success_rate(evidence):
    """Fooled among the right ones: no mean over images."""
    right = [record for record in evidence.records if record.is_correct]
    return (share(sum(not record.is_robust for record in right), len(right)),)


def best_epsilon(evidence):
    """The share of the easiest attack: a maximum of means, not a mean of maxima."""
    images = len({record.sample for record in evidence.records})
    kinds = {(record.attack, record.epsilon) for record in evidence.records}
    robust = [
        sum(record.is_robust for record in evidence.records if (record.attack, record.epsilon) == k)
        for k in kinds
    ]
    return (share(max(robust), images),)


def by_facts(evidence):
    """A number that no bit says."""
    return (Value(evidence.facts["parameters"] / 10),)


@pytest.mark.parametrize("compute", [success_rate, best_epsilon, by_facts])
def test_what_is_no_mean_over_images_is_computed_from_all_records(table, compute):
    laws = Laws()

    found = laws.numbers("mine", compute, table())

    assert found == whole(compute, table())
    assert [law.aggregate for law in laws.known.values()] == [None]


def test_a_metric_that_fails_on_all_images_fails_here_too(table):
    def broken(evidence):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        Laws().numbers("mine", broken, table())


def test_entries_with_other_attacks_share_no_law(make, ten, registry):
    laws, compute = Laws(), registry.find("metrics", "robust-accuracy").load()
    [both] = tables_of(make(), ten)
    alone = replace(both, columns=both.columns[:2], bits=both.bits[:, :3])

    # noise leaves nine images right at both epsilons, PGD eight and four
    assert [item["value"] for item in laws.numbers("r", compute, both)] == [0.8, 0.4]
    assert [item["value"] for item in laws.numbers("r", compute, alone)] == [0.9, 0.9]


def test_one_lie_among_honest_entries_is_found_with_the_laws_they_left(make, ten, registry):
    laws = Laws()
    honest = [make(seed=seed) for seed in range(3)]
    lie = make(alter=lambda content: content["values"]["auc"].update(value=0.99))

    found = [list(check_entry(entry, ten, registry, laws)) for entry in (*honest, lie)]

    assert [[finding.what for finding in item] for item in found] == [
        [], [], [], ["auc is not what its bits give"],
    ]  # fmt: skip


HOSTILE = [
    {"looked": 1, "samples": [[1]], "flags": [], "epsilon": "", "fooled": {}},
    {"looked": 1, "samples": 7, "flags": [], "epsilon": "", "fooled": {}},
    {"looked": 1, "samples": [0], "flags": [], "epsilon": "16/255", "fooled": {"noise": [[0]]}},
]


@pytest.mark.parametrize("checks", HOSTILE, ids=["lists as ids", "a number", "lists as fooled"])
def test_checks_of_another_shape_do_no_harm(make, ten, registry, checks):
    entry = make(alter=lambda content: content.update(checks=checks))

    assert list(check_entry(Entry(entry.content, "x"), ten, registry)) == []

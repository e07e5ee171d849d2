"""Every registered name can be loaded, and its card says what it is."""

from __future__ import annotations

import inspect

import pytest
import torch

from harness.plugins import load_plugins
from harness.registry import KINDS
from harness.routing import Routing
from harness.suite import find_suite, shipped_suites
from harness.tensors import CleanObservation, Outcome, Samples
from harness.testing import ToyMoE, observed
from harness.threat import ThreatModel

ENTRIES = [entry for kind in KINDS for entry in load_plugins().listed(kind)]
IDS = [f"{entry.kind}:{entry.name}" for entry in ENTRIES]
CALLED = [entry for entry in ENTRIES if entry.kind != "suites"]  # those are files
CALLED_IDS = [f"{entry.kind}:{entry.name}" for entry in CALLED]


def routing(chosen):
    """Two experts, one token an image, the chosen one with most of the gate."""
    experts = torch.tensor(chosen)[:, None, None]
    scores = torch.zeros(len(chosen), 1, 2).scatter(2, experts, 2.0)
    return Routing(scores, scores.softmax(2), experts, torch.ones_like(experts).bool())


@pytest.mark.parametrize("entry", CALLED, ids=CALLED_IDS)
def test_the_target_of_a_name_can_be_called(entry):
    assert callable(entry.load())


@pytest.mark.parametrize("entry", ENTRIES, ids=IDS)
def test_the_card_of_a_name_says_in_a_sentence_what_it_is(entry):
    assert entry.card.summary.endswith(".")


@pytest.mark.parametrize("entry", CALLED, ids=CALLED_IDS)
def test_every_default_is_a_parameter_of_the_target(entry):
    parameters = inspect.signature(entry.load()).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    assert takes_any or set(entry.defaults) <= set(parameters)


@pytest.mark.parametrize("name", load_plugins().names("objectives"))
def test_an_objective_gives_one_number_an_image_that_grows_towards_an_error(registry, name):
    loss = registry.find("objectives", name).load()
    logits = torch.tensor([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
    outcome = Outcome(
        logits,
        torch.tensor([0, 0]),
        clean_logits=logits[[0, 0]],
        routes=(routing([0, 1]),),
        clean_routes=(routing([0, 0]),),
    )

    right, wrong = loss(outcome).tolist()

    assert right < wrong


# batch-mates has a meaning for V-MoEs alone, and tests of its own
@pytest.mark.parametrize("name", sorted({*load_plugins().names("probes")} - {"batch-mates"}))
def test_a_probe_gives_one_finite_number_an_image(registry, name):
    model = ToyMoE(2, (3, 8, 8))
    images = torch.rand(4, 3, 8, 8)
    labels = torch.ones(4, dtype=torch.int64)
    threat = ThreatModel("linf", 0.1)
    entry = registry.find("probes", name)
    observation = {
        "attacked": observed(model, labels, images, images * 0.9, threat=threat),
        "clean": CleanObservation(model, Samples(labels, images, labels), model(images), threat),
    }[entry.card.on]

    measured = entry.load()(observation)

    assert measured
    assert all(values.shape == (4,) and values.isfinite().all() for values in measured.values())


@pytest.mark.parametrize("name", list(shipped_suites()))
def test_a_shipped_suite_can_be_read_and_is_named_as_its_file(registry, name):
    suite = find_suite(name, registry)

    assert suite.name == name
    assert suite.board("jpeg75") == f"{name}@jpeg75"

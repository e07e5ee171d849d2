"""Rows of attacks: the worst case of their members, each with noise of its own."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from harness.api import AttackError, ThreatModel
from harness.building import bound_attack
from harness.errors import SuiteError
from harness.ledger import Ledger
from harness.passes import objective_of
from harness.plan import Contender, cell_ingredients, key
from harness.plugins import load_plugins
from harness.suite import AttackSpec, member_spec, read_suite
from harness.tensors import Member, Noise, Samples, is_fooled, noise_key
from harness.testing import LinearModel, linear_samples
from harness_attacks.autoattack import autoattack
from harness_attacks.cascade import cascade
from harness_attacks.objectives import cross_entropy

THREAT = ThreatModel("linf", 0.03)
MEMBERS = ["fgsm", "pgd-10:margin", "fab", "apgd:dlr"]
PLUGIN = """
from harness import hookimpl

def dim(objective, images, labels, threat, *, noise):
    return threat.project(images - threat.epsilon, images)

@hookimpl
def register_attacks(register):
    register("dim", dim)
"""


@pytest.fixture(scope="module")
def network():
    """A small net of five classes, random but for its size, that is right on what it says."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Tanh(), nn.Flatten(), nn.Linear(128, 5))
    return net.eval().requires_grad_(requires_grad=False)


@pytest.fixture(scope="module")
def samples(network):
    images = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return Samples(torch.arange(24), images, network(images).argmax(dim=1))


def bound(registry, name, objective="ce", **parameters):
    entry = registry.find("attacks", name)
    return bound_attack(AttackSpec(name, name, objective, entry.settle(parameters, "")), registry)


def objective(model, samples, loss=cross_entropy):
    ledger = Ledger(len(samples.ids), torch.device("cpu"))
    return objective_of(model, loss, samples.labels, batch_size=64, ledger=ledger)


def fooled(attack, model, samples, stream=""):
    """Which images an attack fools with its own loss, and with a stream of noise by name."""
    noise = Noise(noise_key(0, "row"), samples.ids, tuple(samples.images.shape[1:]))
    found = attack.run(
        objective(model, samples, attack.loss),
        samples.images,
        samples.labels,
        THREAT,
        noise=noise.named(stream) if stream else noise,
        **attack.parameters,
    )
    return is_fooled(model(found), samples.labels)


def alone(registry, member, model, samples):
    spec = member_spec(member, registry)
    return fooled(bound_attack(spec, registry), model, samples, stream=member)


@pytest.mark.parametrize("stop", ["first", "never"])
def test_the_worst_case_is_that_of_each_member_alone(registry, network, samples, stop):
    row = bound(registry, "worst-of", attacks=MEMBERS, stop=stop)

    together = fooled(row, network, samples)

    each = torch.stack([alone(registry, member, network, samples) for member in MEMBERS])
    assert torch.equal(together, each.any(dim=0))
    assert 0 < each.any(dim=0).sum() < 24


def test_members_in_another_order_fool_the_same_images(registry, network, samples):
    row = bound(registry, "worst-of", attacks=MEMBERS[::-1])

    forwards = fooled(bound(registry, "worst-of", attacks=MEMBERS), network, samples)

    assert torch.equal(fooled(row, network, samples), forwards)


def member(shift, seen):
    """Moves all pixels, and notes how many images it is shown."""

    def run(objective, images, labels, threat, *, noise):
        seen.append(len(images))
        return images + shift

    return Member("shift", run)


@pytest.mark.parametrize(("stop", "shown"), [("first", [4, 4]), ("never", [4, 4, 4])])
def test_a_fooled_image_keeps_what_fooled_it(stop, shown):
    model, samples, seen = LinearModel(), linear_samples(4, gap=0.02), []
    noise = Noise(0, samples.ids, (3, 8, 8))
    members = [member(0.01, seen), member(-0.025, seen), member(0.02, seen)]

    found = cascade(
        members, objective(model, samples), samples.images, samples.labels, THREAT, noise=noise,
        stop=stop,
    )  # fmt: skip

    assert torch.allclose(found, samples.images - 0.025)
    assert seen == shown


def test_an_image_that_nothing_fools_keeps_the_last_proposal():
    samples, noise = linear_samples(2, gap=0.2), Noise(0, torch.arange(2), (3, 8, 8))
    bounded = objective(LinearModel(), samples)

    found = cascade(
        [member(-0.02, []), member(0.01, [])], bounded, samples.images, samples.labels, THREAT,
        noise=noise, stop="first",
    )  # fmt: skip

    assert torch.allclose(found, samples.images + 0.01)


def test_an_empty_row_says_what_to_write(registry):
    with pytest.raises(AttackError, match='write attacks = \\["apgd"'):
        fooled(bound(registry, "worst-of"), LinearModel(), linear_samples(2))


def with_row(tiny, members):
    """The tiny suite with one more attack, a row."""
    row = f'[[attacks]]\nname = "worst-of"\nattacks = {members}\n\n[[models]]'
    tiny.write_text(tiny.read_text().replace("[[models]]", row, 1))
    return tiny


@pytest.mark.parametrize(
    ("members", "remedy"),
    [
        ('["agpd"]', "did you mean .*'apgd'"),
        ('["apgd:cw"]', "cw"),
        ('["worst-of"]', "calls others itself; list those instead"),
        ('["pgd:router"]', "list it as an attack of its own"),
        ('["pgd:experts"]', "list it as an attack of its own"),
        ("[1]", "write each as 'apgd' or 'apgd:dlr'"),
        ('"apgd"', "attacks"),
    ],
)
def test_members_that_cannot_be_are_refused_with_the_suite(tiny, registry, members, remedy):
    with pytest.raises(SuiteError, match=remedy):
        read_suite(with_row(tiny, members), registry)


def test_a_row_has_no_view_of_its_own(tiny, registry):
    with_row(tiny, '["apgd"]\nview = "router"')

    with pytest.raises(SuiteError, match="each in its own view; leave 'view' out"):
        read_suite(tiny, registry)


def test_members_are_refused_for_several_correct_classes_as_attacks_are(tiny, registry):
    with_row(tiny, '["apgd:dlr"]')
    tiny.write_text(tiny.read_text().replace("[data]", '[data]\nlabels = "sets"', 1))

    with pytest.raises(SuiteError, match="objective 'dlr' has no meaning"):
        read_suite(tiny, registry)


def test_the_key_of_a_cell_changes_with_the_code_of_a_member(tiny, tmp_path):
    def key_with(code):
        (tmp_path / "dims.py").write_text(code)
        registry = load_plugins([str(tmp_path / "dims.py")])
        suite = read_suite(tiny, registry)
        cnn = Contender("cnn/digits", recipe="standard")
        return key(cell_ingredients(suite, cnn, registry, data="d", weights="w", seed=0))

    with_row(tiny, '["dim"]')

    assert key_with(PLUGIN) == key_with(PLUGIN)
    assert key_with(PLUGIN) != key_with(PLUGIN + "\n")


class Alternating(nn.Module):
    """`LinearModel` with three classes and a margin that is shifted up and down in turn by 0.1."""

    def __init__(self):
        super().__init__()
        self.passes = 0

    def forward(self, images):
        self.passes += 1
        shift = torch.tensor([0.0, 0.1, 0.0]) * (-1) ** self.passes
        return LinearModel(3)(images) + shift


@pytest.mark.parametrize(("gap", "is_fooled"), [(0.02, True), (0.04, False)])
def test_the_version_for_random_models_sees_the_mean_of_its_draws(gap, is_fooled):
    samples = linear_samples(2, gap)
    whole = objective(Alternating(), samples)
    noise = Noise(0, samples.ids, (3, 8, 8))

    autoattack(
        whole, samples.images, samples.labels, THREAT, noise=noise, version="rand", steps=5, draws=4
    )

    # one pass for the classes; 6 passes of 4 draws and one that judges, twice where none fools
    most = 1 + 2 * (6 * 4 + 1)
    assert (whole.ledger.forwards < most).tolist() == [is_fooled] * 2


def test_the_card_of_the_version_for_random_models_states_its_price(registry):
    card = registry.find("attacks", "autoattack-rand").card

    assert card.passes({"steps": 5, "draws": 4}) >= 1 + 2 * (6 * 4 + 1)


def test_a_member_takes_the_objective_of_its_card_unless_it_names_one(registry):
    [plain, named] = bound(registry, "worst-of", attacks=["square", "square:ce"]).parameters[
        "attacks"
    ]

    assert plain.loss is registry.find("objectives", "margin").load()
    assert named.loss is cross_entropy
    assert dataclasses.astuple(plain.view) == ("full", 0, False)

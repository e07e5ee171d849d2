"""Certified accuracy and the exact router accuracy: by hand, by brute force and in a whole run."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from harness.api import Evidence, Record, ThreatModel
from harness.building import build_model
from harness.tensors import CleanObservation, Samples
from harness_dual_moe.metrics import certified_accuracy, exact_robust_accuracy_of_router
from harness_dual_moe.mixture import Mixing, Mixture
from harness_dual_moe.probes import certified_radius, router_radius
from harness_dual_moe.router import router_of

EPSILONS = {"0.1": 0.1, "0.2": 0.2}


def evidence(measures, *, wrong=()):
    records = [
        Record(
            sample=sample,
            attack="pgd",
            epsilon=epsilon,
            label=1,
            clean_prediction=0 if sample in wrong else 1,
            clean_margin=0.5,
            adversarial_prediction=1,
            adversarial_margin=0.5,
            measures=measure,
        )
        for sample, measure in enumerate(measures)
        for epsilon in EPSILONS
    ]
    return Evidence(records, EPSILONS, "0.1", {})


def radii(name, *values):
    return [{name: value} for value in values]


MEASURES = pytest.mark.parametrize(
    ("metric", "name"),
    [
        (certified_accuracy, "certified_radius"),
        (exact_robust_accuracy_of_router, "router_radius"),
    ],
    ids=["certified", "router"],
)


@MEASURES
def test_the_curve_counts_right_images_with_radii_above_epsilon(metric, name):
    first, second = metric(evidence(radii(name, 0.15, 0.3, 0.1, 0.5), wrong=[3]))

    # 0.15 and 0.3 are above 0.1, which 0.1 itself is not; 0.5 is of a clean error
    assert (first.value, first.n, first.epsilon) == (0.5, 4, "0.1")
    assert second.value == 0.25


@pytest.mark.parametrize(
    ("metric", "measures", "reason"),
    [
        (certified_accuracy, radii("certified_radius", 3e-5, 0.0), "vacuous"),
        (certified_accuracy, radii("uncertified", 1.0), "no bound is known"),
        (certified_accuracy, [{}], "no probe 'certified-radius'"),
        (exact_robust_accuracy_of_router, radii("unrouted", 1.0), "exact only in Linf"),
        (exact_robust_accuracy_of_router, [{}], "no probe 'router-radius'"),
    ],
    ids=["vacuous", "no-bound", "no-probe", "no-router", "no-router-probe"],
)
def test_a_number_that_there_is_not_says_why(metric, measures, reason):
    values = metric(evidence(measures))

    assert [value.value for value in values] == [None, None]
    assert reason in values[0].reason


class Constant(nn.Module):
    """The same class for every image."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, images):
        return torch.eye(3)[self.answer].to(images).expand(len(images), -1)


def constants(*answers, seed=0):
    """One expert for each answer, and a linear router of images of two pixels."""
    torch.manual_seed(seed)
    router = router_of("linear", (1, 1, 2), len(answers))
    experts = [Constant(answer) for answer in answers]
    mixing = Mixing(1, "none", "images")
    return Mixture(experts, router, mean=(0.5,), std=(0.5,), mixing=mixing).eval()


def observed(model, images, labels, *, epsilon=0.5, norm="linf"):
    samples = Samples(torch.arange(len(images)), images, labels)
    with torch.no_grad():
        return CleanObservation(model, samples, model(images), ThreatModel(norm, epsilon))


@pytest.mark.parametrize("seed", range(3))
def test_the_nearest_wrong_route_is_the_nearest_image_of_a_grid_that_takes_it(seed):
    model = constants(0, 1, 0, 2, seed=seed)
    images = torch.rand(6, 1, 1, 2, generator=torch.Generator().manual_seed(seed))
    labels = model(images).argmax(dim=1)

    found = router_radius(observed(model, images, labels, epsilon=1.0))["router_radius"]

    axis = torch.linspace(0, 1, 401)
    points = torch.cartesian_prod(axis, axis).view(-1, 1, 1, 2)
    answers = model(points).argmax(dim=1)
    distance = (points.flatten(1) - images.flatten(1)[:, None]).abs().amax(dim=2)
    far = distance.masked_fill(answers == labels[:, None], 1.0).amin(dim=1)
    assert found.tolist() == pytest.approx(far.tolist(), abs=0.005)


def test_an_image_that_is_wrong_has_no_distance_left():
    model, images = constants(0, 1), torch.rand(3, 1, 1, 2)

    found = router_radius(observed(model, images, torch.tensor([2, 2, 2])))

    assert found["router_radius"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("name", "norm"), [("moe/digits", "l2"), ("moe/digits-soft", "linf"), ("cnn/digits", "linf")]
)
def test_other_routers_and_norms_have_no_exact_distance(registry, name, norm):
    model = build_model(registry, name, num_classes=10, image_shape=(1, 8, 8), seed=1).eval()

    found = router_radius(observed(model, torch.rand(2, 1, 8, 8), torch.zeros(2).long(), norm=norm))

    assert list(found) == ["unrouted"]


def test_two_routers_are_sent_astray_together(registry):
    model = build_model(registry, "dual/digits", num_classes=10, image_shape=(1, 8, 8), seed=1)
    images = torch.rand(4, 1, 8, 8)
    labels = model.eval()(images).argmax(dim=1)

    found = router_radius(observed(model, images, labels, epsilon=1.0))["router_radius"]

    assert (found > 0).all()
    assert (found <= 1).all()


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(2, 3)).eval(), "certified_radius"),
        (nn.Sequential(nn.Flatten(), nn.GELU(), nn.Linear(2, 3)).eval(), "uncertified"),
    ],
    ids=["known", "unknown"],
)
def test_a_model_is_certified_or_said_not_to_be(model, name):
    images = torch.rand(3, 1, 1, 2)

    found = certified_radius(observed(model, images, torch.zeros(3).long()))

    assert list(found) == [name]
    assert (found[name] > 0).all()


SUITE = """
name = "certified"
version = 1
metrics = ["clean-accuracy", "certified-accuracy", "ra-router", "ra-router-exact"]
probes = ["certified-radius", "router-radius"{probes}]
[data]
name = "digits"
[threat]
norm = "linf"
epsilons = ["16/255", "48/255"]
headline = "16/255"
[[attacks]]
name = "pgd"
steps = 5
[[attacks]]
name = "pgd"
label = "router"
objective = "router"
steps = 10
[recipes.standard]
epochs = 1
"""


def run(harness, tmp_path, *, probes="", plugin=()):
    (tmp_path / "certified.toml").write_text(SUITE.replace("{probes}", probes))
    done = harness(
        "run", "--suite", "certified.toml", *plugin, "--model", "moe/digits", "--limit", 32,
        "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    return json.loads(done.out)["rows"][0]


def test_no_attack_on_the_router_finds_less_than_the_exact_number(harness, tmp_path):
    row = run(harness, tmp_path)

    for epsilon in ("16/255", "48/255"):
        assert row["ra_router_exact"][epsilon]["value"] <= row["ra_router"][epsilon]["value"]
    assert row["ra_router_exact"]["48/255"]["n"] == 32
    assert "vacuous" in row["certified_accuracy"]["16/255"]["reason"]
    assert "certificate-broken" not in row["flags"]


def test_a_wrong_certificate_raises_the_flag(harness, tmp_path):
    (tmp_path / "wrong.py").write_text(
        "import torch\n"
        "from harness import hookimpl\n"
        "from harness.api import ProbeCard\n"
        "def wrong(seen):\n"
        "    return {'certified_radius': torch.full((len(seen.samples.ids),), 0.5)}\n"
        "@hookimpl\n"
        "def register_probes(register):\n"
        "    register('wrong', wrong, card=ProbeCard('Claims too much.', on='clean'))\n"
    )

    row = run(harness, tmp_path, probes=', "wrong"', plugin=["--plugin", "wrong.py"])

    assert "certificate-broken" in row["flags"]

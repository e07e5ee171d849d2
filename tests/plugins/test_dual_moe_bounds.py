"""Certified radii of whole models: no attack finds anything within them."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from harness.api import ModelError, ThreatModel
from harness.building import build_model
from harness.passes import objective_of
from harness.tensors import Noise
from harness_attacks.apgd import apgd
from harness_attacks.objectives import negative_margin
from harness_dual_moe.bounds import model_radius
from harness_dual_moe.dual import Combination, Dual, RoutedDual
from harness_dual_moe.mixture import Mixing, Mixture
from harness_dual_moe.router import router_of

SHAPE = (1, 4, 4)
PIXELS = 16
IMAGES = Noise(1, torch.arange(5), SHAPE).uniform(0) / 2 + 0.5

norms = pytest.mark.parametrize("norm", ["linf", "l2"])


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 4)).eval()


def two_layers(seed=0):
    torch.manual_seed(seed)
    layers = nn.Flatten(), nn.Linear(PIXELS, 12), nn.ReLU(), nn.Linear(12, 4)
    return nn.Sequential(*layers).eval()


class Pools(nn.Module):
    """Both pools, a residual sum, and a batch norm behind a convolution."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        nn.init.uniform_(self.bn.running_var, 0.5, 2)
        nn.init.uniform_(self.bn.weight, -2, 2)
        self.more = nn.Conv2d(4, 4, 3, padding=1)
        self.largest, self.mean = nn.MaxPool2d(3, 1, padding=1), nn.AvgPool2d(2)
        self.head = nn.Linear(16, 4)
        self.register_buffer("mid", torch.full((1, 1, 1, 1), 0.4))

    def forward(self, images):
        features = torch.relu(self.bn(self.conv((images - self.mid) / (self.mid + 0.1))))
        features = self.largest(features + self.more(features))
        return self.head(self.mean(features).flatten(1))


def pools(seed=0):
    torch.manual_seed(seed)
    return Pools().eval()


def mixture(*, selected, expert_input="images", make=linear, router="linear", seed=0):
    torch.manual_seed(seed)
    gate = router_of(router, SHAPE, 3)
    experts = [make(seed=seed + place) for place in range(3)]
    mixing = Mixing(selected, "none", expert_input)
    return Mixture(experts, gate, mean=(0.4,), std=(0.5,), mixing=mixing).eval()


def dual(combine, alpha, *, selected=1):
    halves = mixture(selected=selected), mixture(selected=selected, make=two_layers, seed=7)
    return RoutedDual(*halves, Combination(alpha, combine)).eval()


class Unknown(nn.Module):
    """A network whose slopes nobody knows: its logits jump."""

    def forward(self, images):
        return 100 * (images.flatten(1)[:, :4] * 50).sin()


MODELS = {
    "linear": linear,
    "two-layers": two_layers,
    "pools": pools,
    "hard": lambda: mixture(selected=1),
    "hard-normalised": lambda: mixture(selected=1, expert_input="normalised", make=two_layers),
    "hard-convolutional": lambda: mixture(selected=1, router="convolutional"),
    "top-2": lambda: mixture(selected=2, make=two_layers),
    "soft": lambda: mixture(selected=3),
    "dual-logits": lambda: dual("logits", 0.7),
    "dual-standard-alone": lambda: dual("logits", 0.0),
    "dual-probabilities": lambda: dual("probabilities", 0.7, selected=2),
    "dual-unknown-standard": lambda: Dual(
        Unknown(), sharp(), Combination(0.8, "probabilities")
    ).eval(),
}
models = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())


def sharp():
    network = linear()
    network[1].weight = nn.Parameter(8 * network[1].weight.detach())
    return network


def radius_of(model, norm, images=IMAGES):
    return model_radius(deepcopy(model).double(), images.double(), norm=norm)


def is_fooled_within(model, image, size, norm, *, starts=100):
    """AutoPGD finds another prediction from one of its random starts."""
    images = image.expand(starts, -1, -1, -1)
    labels = model(images).argmax(dim=1)
    threat = ThreatModel(norm, min(size, 1.0) if norm == "linf" else size)
    bound = objective_of(model, negative_margin, labels, batch_size=starts)
    noise = Noise(3, torch.arange(starts), SHAPE)
    found = apgd(bound, images, labels, threat, noise=noise, steps=10)
    return bool((model(found).argmax(dim=1) != labels).any())


@norms
@models
def test_a_hundred_starts_find_nothing_within_the_radius(make, norm):
    model = make().requires_grad_(requires_grad=False)

    radius = radius_of(model, norm)

    certified = [
        (image, 0.99 * size)
        for image, size in zip(IMAGES.split(1), radius.tolist(), strict=True)
        if size > 0
    ]
    assert certified
    assert not any(is_fooled_within(model, image, size, norm) for image, size in certified)


@norms
def test_a_linear_network_is_fooled_just_beyond_half_again_its_radius(norm):
    model = linear()
    inner = 0.5 + 0.05 * (IMAGES - 0.5)  # far from the pixel box
    radius = radius_of(model, norm, inner)

    logits, weight = model(inner).detach().double(), model[1].weight.detach().double()
    label = logits.argmax(dim=1, keepdim=True)
    order = {"linf": 1, "l2": 2}[norm]
    apart = torch.linalg.vector_norm(weight[label] - weight, ord=order, dim=2)
    truth = ((logits.gather(1, label) - logits) / apart).nan_to_num(nan=torch.inf).amin(dim=1)
    assert (radius <= truth + 1e-6).all()
    assert (truth <= 1.5 * radius).all()


def exact_radius_of_two_layers(model, image, label):
    """By trying every corner of ever larger balls: a network of two pixels, Linf."""
    corners = torch.cartesian_prod(*[torch.linspace(-1, 1, 201)] * 2)
    for size in torch.linspace(0.002, 1, 500):
        points = image + size * corners.view(-1, 1, 1, 2)
        if (model(points).argmax(dim=1) != label).any():
            return float(size)
    return float("inf")


@pytest.mark.parametrize("seed", range(5))
def test_a_two_layer_network_is_never_certified_beyond_the_truth(seed):
    torch.manual_seed(seed)
    layers = nn.Flatten(), nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 3)
    model = nn.Sequential(*layers).eval()
    images = torch.rand(4, 1, 1, 2)

    radius = radius_of(model, "linf", images)

    labels = model(images).argmax(dim=1)
    truth = [
        exact_radius_of_two_layers(model, image, label)
        for image, label in zip(images, labels, strict=True)
    ]
    assert (radius > 0).all()
    assert (radius <= torch.tensor(truth)).all()


@pytest.mark.parametrize("alpha", [0.5, 0.75, 1.0])
def test_a_half_without_a_bound_counts_by_its_weight_alone(alpha):
    robust = sharp()
    model = Dual(Unknown(), robust, Combination(alpha, "probabilities")).eval()

    radius = radius_of(model, "linf")

    shares = robust.double()(IMAGES.double()).softmax(dim=1)
    best = shares.topk(2, dim=1).values
    lead = alpha * (best[:, 0] - best[:, 1]) > 1 - alpha
    same = model.float()(IMAGES).argmax(dim=1) == shares.argmax(dim=1)
    assert torch.equal(radius > 0, lead & same)


def test_a_half_of_no_weight_is_not_asked():
    model = Dual(Unknown(), linear(), Combination(1.0, "logits")).eval()

    assert torch.allclose(radius_of(model, "linf"), radius_of(linear(), "linf"))


def test_what_has_no_bound_is_named():
    model = Dual(nn.Sequential(nn.Flatten(), nn.GELU(), nn.Linear(16, 4)), linear(),
                 Combination(0.5, "logits")).eval()  # fmt: skip

    with pytest.raises(ModelError, match="no slope is known of GELU"):
        radius_of(model, "linf")


@pytest.mark.parametrize("name", ["cnn/digits", "moe/digits", "moe/digits-top2",
                                  "moe/digits-soft", "dual/digits"])  # fmt: skip
def test_the_shipped_small_networks_have_a_bound(registry, name):
    model = build_model(registry, name, num_classes=10, image_shape=(1, 8, 8), seed=1).eval()
    images = torch.rand(8, 1, 8, 8)

    radius = radius_of(model, "linf", images)

    assert (radius > 0).all()
    assert radius.isfinite().all()

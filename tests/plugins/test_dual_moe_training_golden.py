"""Losses and steps of RT-ER and joint training against the official code's own numbers.

The official code leaves evaluation mode on after its first attack; before, its batch norm is in
training mode and sees one image at a time. Both are repaired in the recipes and done here again.
"""

from __future__ import annotations

import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

from golden_files import golden_arrays
from harness.building import build_model
from harness.tensors import Noise
from harness.training import Batch, TrainingContext
from harness_attacks.pgd import pgd
from harness_dual_moe.convert import from_released, renamed
from harness_dual_moe.robustify import Alone, Attacked, divergence, robust_loss, routing_to

NARROW = {"expert_parameters": {"ratio": 1 / 16}}
"""The official experts at base width 4 in place of 64, as in the golden files."""

LOSS = 2e-6
"""Of losses near 10, in float32."""

GRADIENT = 1e-5
"""As a share of the largest number of a tensor, or of a norm."""

ALONG = 2e-3
"""The same after an attack on a model that has taken a step: where a gradient is near 0, its sign
may be another, and a pixel with it."""

CLEAR = 1e-4
"""Gradients above it move a parameter by Adam's full first step, whatever their last digits."""


class OneByOne(nn.Module):
    """A model that is given one image at a time, as the official code gives them."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return torch.cat([self.model(image) for image in images.split(1)])


def loaded(name):
    return golden_arrays("dual", f"{name}.npz")


def state_of(name, prefix=""):
    state = loaded(name).under("sd/")
    return {prefix + key: torch.from_numpy(array) for key, array in state.items()}


def build(registry, name, state, **parameters):
    model = build_model(
        registry, name, num_classes=10, image_shape=(3, 32, 32), seed=1, **parameters
    )
    if state is not None:
        model.load_state_dict(from_released(state))
    return model.eval()


def released_mixture(registry):
    return build(registry, "moe/resnet18-e4", state_of("moe_resnet_w4_forward"), **NARROW)


def released_dual(registry, **parameters):
    state = state_of("moe_resnet_w4_forward", "Rmoe.") | state_of("dual_resnet_w4_forward")
    halves = {"standard_parameters": NARROW, "robust_parameters": NARROW}
    return build(registry, "dual/resnet18", state, **halves, **parameters)


def with_robust_half(registry):
    """A dual model whose robust half is the released mixture; the other is as built."""
    halves = {"standard_parameters": NARROW, "robust_parameters": NARROW}
    dual = build(registry, "dual/resnet18", None, alpha=0.7, **halves)
    dual.robust.load_state_dict(from_released(state_of("moe_resnet_w4_forward")))
    return dual


def from_the_dark_corner(objective, images, labels, threat, *, noise):
    """The official attack, whose first step always ends in the ball's darkest corner."""
    return pgd(
        objective,
        images,
        labels,
        threat,
        noise=noise,
        steps=9,
        relative_step_size=0.25,
        start=[images - threat.epsilon],
        stop="never",
    )


def training_of(registry, name, model):
    context = TrainingContext(
        model,
        50_000,
        0,
        lambda attack, **parameters: (from_the_dark_corner, {}),
        lambda loss: registry.find("objectives", loss).load(),
    )
    entry = registry.find("recipes", name)
    return entry.load()(context, **entry.defaults)


def in_pixels(array, mixture):
    return torch.from_numpy(array) * mixture.std + mixture.mean


def alone(mixture, images, experts):
    """The logits of one expert for each image."""
    return mixture.routed(images, routes=(routing_to(mixture, experts),)).logits


def clean(array, mixture):
    """Images whose pixels are whole numbers of 255, free of the rounding of normalised ones."""
    return (in_pixels(array, mixture) * 255).round() / 255


def batch_of(images, arrays):
    labels = torch.from_numpy(arrays["y"])
    return Batch(images, labels, Noise(0, torch.arange(8), (3, 32, 32)))


def stepped(optimizer, factor):
    """One step at a factor of the learning rate."""
    (group,) = optimizer.param_groups
    rate = group["lr"]
    group["lr"] = rate * factor
    optimizer.step()
    group["lr"] = rate


def norms_of(halves):
    """The gradient's norm of each expert and router; NaN where there is none."""
    modules = [module for half in halves for module in (*half.experts, half.router)]
    return np.array([norm_of(module) for module in modules])


def norm_of(module):
    found = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
    return float(torch.cat(found).double().norm()) if found else float("nan")


@torch.no_grad()
def test_the_loss_on_the_official_attacked_images_is_the_official_one(registry):
    arrays, mixture = loaded("rter_loss_terms_eval"), released_mixture(registry)
    images, whole, moved = (
        in_pixels(arrays[name], mixture) for name in ("x", "x_adv_model", "x_adv_second")
    )
    second = torch.from_numpy(arrays["second_expert"])
    attacked = Attacked(whole, (Alone(second, moved),))

    losses = [
        float(robust_loss(mixture, images, batch_of(images, arrays).labels, attacked, beta=beta))
        for beta in (1, 6)
    ]

    expected = [float(arrays["loss_beta1"]), float(arrays["loss_beta6"])]
    assert losses == pytest.approx(expected, abs=LOSS)


@torch.no_grad()
def test_the_attacks_of_the_recipe_end_where_the_official_ones_do(registry):
    arrays, mixture = loaded("rter_loss_terms_eval"), released_mixture(registry)
    batch = batch_of(clean(arrays["x"], mixture), arrays)
    (phase,) = training_of(registry, "rt-er-released", mixture).phases

    with torch.enable_grad():
        whole, ((second, moved),) = phase.loss.attacked(batch)

    grey_level = 1e-4 / 255
    assert second.tolist() == arrays["second_expert"].tolist()
    assert (whole - in_pixels(arrays["x_adv_model"], mixture)).abs().max() < grey_level
    assert (moved - in_pixels(arrays["x_adv_second"], mixture)).abs().max() < grey_level


@torch.no_grad()
def test_the_divergence_runs_in_the_official_direction(registry):
    arrays, mixture = loaded("rter_loss_terms_eval"), released_mixture(registry)
    second = torch.from_numpy(arrays["second_expert"])
    before, after = (
        alone(mixture, in_pixels(arrays[name], mixture), second) for name in ("x", "x_adv_second")
    )

    found, reversed_ = divergence(before, after), divergence(after, before)

    assert np.allclose(found, arrays["kl_per_sample"], rtol=0, atol=LOSS)
    unused = arrays["kl_reversed_per_sample_not_used"]
    assert np.allclose(reversed_, unused, rtol=0, atol=LOSS)


def test_one_step_of_rt_er_is_the_official_one(registry):
    arrays, mixture = loaded("rter_step_beta6"), released_mixture(registry)
    batch = batch_of(clean(arrays["x"], mixture), arrays)
    with torch.no_grad():
        OneByOne(mixture.train())(batch.images)
    mixture.eval()
    training = training_of(registry, "rt-er-released", mixture)
    (phase,) = training.phases

    loss = phase.loss(batch)
    loss.backward()
    stepped(phase.optimizer, training.schedule(0))

    parameters = dict(mixture.named_parameters())
    gradients, after = arrays.under("grad/"), arrays.under("param/")
    gaps = [gap(parameters[renamed(name)].grad, gradients[name]) for name in gradients]
    assert float(loss.detach()) == pytest.approx(float(arrays["loss"]), abs=LOSS)
    assert len(gradients) == 248
    assert max(gaps) < GRADIENT
    assert all(parameter.grad is None for parameter in mixture.router.parameters())
    for name, gradient in gradients.items():
        moved = torch.from_numpy(gradient).abs() > CLEAR
        expected = torch.from_numpy(after[name])
        found = parameters[renamed(name)].detach()
        assert torch.allclose(found[moved], expected[moved], rtol=0, atol=5e-7)


def gap(found, expected):
    """The largest difference as a share of the largest number."""
    return float((found - torch.from_numpy(expected)).abs().max()) / float(np.abs(expected).max())


@torch.no_grad()
def test_the_loss_of_the_robust_half_is_the_official_one_whatever_the_other_half(registry):
    arrays, dual = loaded("jtdmoe_loss_terms_eval"), with_robust_half(registry)
    batch = batch_of(clean(arrays["x"], dual.robust), arrays)
    robust, _ = training_of(registry, "jtdmoe-released", dual).phases

    with torch.enable_grad():
        attacked = robust.loss.attacked(batch)

    divergences = [
        divergence(
            alone(dual.robust, batch.images, experts), alone(dual.robust, moved, experts)
        ).tolist()
        for experts, moved in attacked.alone
    ]
    loss = robust_loss(dual.robust, batch.images, batch.labels, attacked, beta=6)
    assert np.allclose(divergences, arrays["kl_expert_sample"], rtol=0, atol=LOSS)
    assert float(loss) == pytest.approx(float(arrays["loss_R_beta6"]), abs=2 * LOSS)


def test_the_loss_of_the_standard_half_is_the_official_one(registry):
    arrays, dual = loaded("jtdmoe_loss_terms_eval"), released_dual(registry, alpha=0.7)
    batch = batch_of(clean(arrays["x"], dual.robust), arrays)
    _, standard = training_of(registry, "jtdmoe-released", dual).phases

    loss = standard.loss(batch)

    expected = float(arrays["dual_clean_ce_alpha07"])
    assert float(loss.detach()) == pytest.approx(expected, abs=LOSS)


def test_two_steps_of_joint_training_are_the_official_ones(registry):
    arrays, dual = loaded("jtdmoe_two_iters"), released_dual(registry, alpha=0.7)
    before = {name: value.detach().clone() for name, value in dual.named_parameters()}
    batches = [batch_of(clean(arrays[name], dual.robust), arrays) for name in ("x0", "x1")]
    phases = training_of(registry, "jtdmoe-released", dual).phases

    norms = official_norms(dual, phases, batches)

    expected = arrays["group_grad_l2_per_optimizer_step"]
    assert np.allclose(norms[0], expected[0], rtol=GRADIENT, equal_nan=True)
    assert np.allclose(norms[1], expected[1], rtol=GRADIENT, equal_nan=True)
    assert np.allclose(norms[2], expected[2], rtol=ALONG, equal_nan=True)
    assert np.allclose(norms[3], expected[3], rtol=ALONG, equal_nan=True)
    moved = [delta(dual, before, name) for name in arrays["group_names"]]
    assert np.allclose(moved, arrays["group_param_delta_l2"], rtol=ALONG)


def official_norms(dual, phases, batches):
    """The gradients' norms in each step of the official loop around the phases' losses."""
    robust, standard = phases
    halves = (dual.standard, dual.robust)
    optimizer = torch.optim.Adam(dual.parameters(), lr=5e-5)  # one for both
    norms = []
    for place, batch in enumerate(batches):
        robust.loss(batch).backward()
        norms.append(norms_of(halves))
        optimizer.step()
        optimizer.zero_grad()
        with one_by_one(dual, only=place == 0):
            standard.loss(batch).backward()
            norms.append(norms_of(halves))
            optimizer.step()  # without zero_grad: the robust half's next step applies it again
            dual.standard(batch.images)  # for the accuracy that is told
    return norms


@contextmanager
def one_by_one(dual, *, only):
    """The standard half in training mode, given one image at a time; in the first step only."""
    whole = dual.standard
    if only:
        dual.standard = OneByOne(whole.train())
    yield
    dual.standard = whole.eval()


def delta(dual, before, group):
    """How far the parameters of an expert or router have moved."""
    half, part = group.split(".")
    part = "router." if part == "router" else f"experts.{part.removeprefix('expert')}."
    prefix = {"Smoe": "standard.", "Rmoe": "robust."}[half] + part
    return math.sqrt(
        sum(
            float((value.detach() - before[name]).double().square().sum())
            for name, value in dual.named_parameters()
            if name.startswith(prefix)
        )
    )

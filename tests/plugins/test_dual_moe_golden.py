"""Mixtures and dual models against the official code's own numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from golden_files import golden_arrays
from harness.api import CheckpointError, ThreatModel, View
from harness.building import build_model
from harness.numerics import Batches
from harness.passes import objective_of
from harness.seeing import clean_pass, predict
from harness.tensors import Noise, Samples
from harness_attacks.apgd import apgd
from harness_attacks.objectives import cross_entropy
from harness_attacks.pgd import pgd
from harness_dual_moe.convert import from_released, renamed
from harness_dual_moe.dual import Combination

NARROW = {"expert_parameters": {"ratio": 1 / 16}}
"""The official experts at base width 4 in place of 64, as in the golden files."""

FORWARD = 2e-6
"""What an independent re-implementation reached on logits of up to 13."""

ALONG = 4e-6
"""The same along an attack, whose iterates are rounded too."""

GREY_LEVEL = 1e-4 / 255
"""What it reached on pixels."""

THREAT = ThreatModel("linf", 8 / 255)
STEP = {"relative_step_size": 0.25, "stop": "never"}  # 2/255

runs = pytest.mark.parametrize(
    ("name", "view"),
    [
        ("pgd10_RA_rs", View()),
        ("pgd10_RAE_frozen_route", View("experts")),
        ("pgd10_RAR_soft_surrogate", View("router", is_mixed=True)),
    ],
    ids=["model", "experts", "router"],
)


class Run(NamedTuple):
    """One run of the official PGD, its iterates as images in [0, 1]."""

    arrays: dict
    iterates: torch.Tensor
    samples: Samples
    objective: object
    model: nn.Module


def loaded(name):
    return golden_arrays("dual", f"{name}.npz")


def state(arrays):
    return {name: torch.from_numpy(array) for name, array in arrays.under("sd/").items()}


def build(registry, name, **parameters):
    model = build_model(
        registry, name, num_classes=10, image_shape=(3, 32, 32), seed=1, **parameters
    )
    return model.eval().requires_grad_(False)


def released_mixture(registry):
    """The golden mixture and its images."""
    arrays = loaded("moe_resnet_w4_forward")
    model = build(registry, "moe/resnet18-e4", **NARROW)
    model.load_state_dict(from_released(state(arrays)))
    images = torch.from_numpy(arrays["pixels_u8"]).float() / 255
    return arrays, model, Samples(torch.arange(8), images, torch.from_numpy(arrays["y"]))


def released_dual(registry, **parameters):
    """The golden dual model, whose robust half is the golden mixture."""
    robust = state(loaded("moe_resnet_w4_forward"))
    standard = state(loaded("dual_resnet_w4_forward"))
    model = build(
        registry,
        "dual/resnet18",
        standard_parameters=NARROW,
        robust_parameters=NARROW,
        **parameters,
    )
    joined = {**standard, **{f"Rmoe.{name}": tensor for name, tensor in robust.items()}}
    model.load_state_dict(from_released(joined))
    return model


def run_of(registry, name, view):
    arrays = loaded(name)
    _, model, samples = released_mixture(registry)
    context = clean_pass(model, samples, batches=Batches(8))
    objective = objective_of(model, cross_entropy, samples.labels, batch_size=8)
    objective = replace(objective, context=context).through(view)
    iterates = samples.images + torch.from_numpy(arrays["eta"]) * model.std
    return Run(arrays, iterates, samples, objective, model)


def in_pixels(run, name):
    """Images of the official code in [0, 1]."""
    return torch.from_numpy(run.arrays[name]) * run.model.std + run.model.mean


def attacked(run, *, start, steps):
    noise = Noise(0, run.samples.ids, (3, 32, 32))
    return pgd(
        run.objective,
        run.samples.images,
        run.samples.labels,
        THREAT,
        noise=noise,
        steps=steps,
        start=[start],
        **STEP,
    )


def assert_close(found, expected, tolerance):
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=tolerance)


def test_gates_and_logits_of_the_mixture_are_the_official_ones(registry):
    arrays, model, samples = released_mixture(registry)

    logits, (routing,), _ = model.routed(samples.images)

    assert_close(routing.gate_logits[:, 0], arrays["gate_logits"], FORWARD)
    assert_close(logits, arrays["moe_logits"], FORWARD)
    assert routing.experts[:, 0, 0].tolist() == arrays["top1"].tolist()
    assert routing.gate_logits[:, 0].topk(2).indices[:, 1].tolist() == arrays["top2"].tolist()


@pytest.mark.parametrize("rank", range(4))
def test_the_logits_of_every_expert_are_the_official_ones(registry, rank):
    arrays, model, samples = released_mixture(registry)
    routes = model.routed(samples.images).routes

    found = model.routed(samples.images, routes=(routes[0].forced(rank),)).logits

    order = (-arrays["gate_logits"]).argsort(axis=1)[:, rank]
    assert_close(found, arrays["expert_logits"][range(8), order], FORWARD)


@pytest.mark.parametrize("place", range(6))
def test_the_logits_of_the_dual_model_are_the_official_ones(registry, place):
    arrays = loaded("dual_resnet_w4_forward")
    model = released_dual(registry, alpha=float(arrays["alphas"][place]))
    _, _, samples = released_mixture(registry)

    logits, (standard, robust), _ = model.routed(samples.images)

    assert_close(logits, arrays["dual_logits"][place], FORWARD)
    assert standard.experts[:, 0, 0].tolist() == arrays["smoe_top1"].tolist()
    assert robust.experts[:, 0, 0].tolist() == arrays["rmoe_top1"].tolist()


@pytest.mark.parametrize("place", range(6))
def test_the_logits_of_the_halves_add_up_to_the_official_ones(place):
    arrays = loaded("dual_resnet_w4_forward")
    standard, robust = (torch.from_numpy(arrays[f"{half}_logits"]) for half in ("smoe", "rmoe"))

    found = Combination(float(arrays["alphas"][place]), "logits")(standard, robust)

    assert_close(found, arrays["dual_logits"][place], FORWARD)


def test_the_robust_half_of_the_dual_model_is_the_mixture(registry):
    _, model, samples = released_mixture(registry)
    arrays = loaded("dual_resnet_w4_forward")

    logits, (routing,), _ = model.routed(samples.images)

    assert_close(logits, arrays["rmoe_logits"], FORWARD)
    assert routing.experts[:, 0, 0].tolist() == arrays["rmoe_top1"].tolist()


@pytest.mark.parametrize(("half", "array"), [("standard", "smoe"), ("robust", "rmoe")])
def test_the_logits_of_each_half_are_the_official_ones(registry, half, array):
    model = released_dual(registry)
    _, _, samples = released_mixture(registry)

    logits = getattr(model, half)(samples.images)

    assert_close(logits, loaded("dual_resnet_w4_forward")[f"{array}_logits"], FORWARD)


@pytest.mark.parametrize("place", range(1, 11))
@runs
def test_logits_and_routes_of_every_iterate_are_the_official_ones(registry, name, view, place):
    run = run_of(registry, name, view)

    score = run.objective.score(run.iterates[place])

    assert_close(score.logits, run.arrays["logits"][place], ALONG)
    assert_close(score.loss, run.arrays["ce_per_sample"][place], ALONG)
    routes = run.model.routed(run.iterates[place]).routes[0].experts[:, 0, 0]
    assert routes.tolist() == run.arrays["routes"][place].tolist()


@pytest.mark.parametrize("place", range(1, 10))
@runs
def test_every_step_leads_to_the_next_official_iterate(registry, name, view, place):
    run = run_of(registry, name, view)

    found = attacked(run, start=run.iterates[place], steps=1)

    assert_close(found, run.iterates[place + 1].numpy(), GREY_LEVEL)


@runs
def test_from_the_dark_corner_the_official_end_is_reached(registry, name, view):
    run = run_of(registry, name, view)

    # the official start is shifted below the ball, so that its first step ends in the corner
    found = attacked(run, start=run.samples.images - THREAT.epsilon, steps=9)

    assert_close(found, run.iterates[10].numpy(), GREY_LEVEL)
    assert_close(found, in_pixels(run, "x_adv").numpy(), GREY_LEVEL)
    assert_close(run.objective.score(found).logits, run.arrays["logits_adv"], ALONG)


@pytest.mark.parametrize("name", ["pgd10_RAE_frozen_route", "pgd10_RAR_soft_surrogate"])
def test_the_whole_model_says_officially_what_it_says_of_attacked_parts(registry, name):
    run = run_of(registry, name, View())
    images = in_pixels(run, "x_adv")

    assert_close(run.model(images), run.arrays["full_model_logits_adv"], ALONG)


def test_the_verdict_on_an_attacked_router_is_the_official_one(registry):
    run = run_of(registry, "pgd10_RAR_soft_surrogate", View("router", is_mixed=True))
    images = in_pixels(run, "x_adv")

    found = predict(
        run.model,
        images,
        batches=Batches(8),
        view=View("router"),
        context=run.objective.context,
    )

    assert_close(found, run.arrays["router_only_logits"], ALONG)


def test_autopgd_ends_where_the_official_one_does(registry):
    arrays = loaded("apgd10_ce")
    _, model, samples = released_mixture(registry)
    objective = objective_of(model, cross_entropy, samples.labels, batch_size=8)

    found = apgd(
        objective,
        samples.images,
        samples.labels,
        THREAT,
        noise=Noise(0, samples.ids, (3, 32, 32)),
        steps=10,
        init="clean",
        stop="never",
    )

    assert not arrays["acc"].any()
    assert_close((found - model.mean) / model.std, arrays["x_best_adv"], 5 * GREY_LEVEL)
    assert_close(model(found), arrays["logits_x_best_adv"], ALONG)


def test_pgd_on_the_dual_model_ends_where_the_official_one_does(registry):
    arrays = loaded("jtdmoe_loss_terms_eval")
    model, (_, _, samples) = released_dual(registry, alpha=0.7), released_mixture(registry)
    objective = objective_of(model, cross_entropy, samples.labels, batch_size=8)

    found = pgd(
        objective,
        samples.images,
        samples.labels,
        THREAT,
        noise=Noise(0, samples.ids, (3, 32, 32)),
        steps=9,
        start=[samples.images - THREAT.epsilon],
        **STEP,
    )

    expected = torch.from_numpy(arrays["dual_x_adv_alpha07"]) * model.robust.std + model.robust.mean
    assert_close(found, expected.numpy(), GREY_LEVEL)
    assert_close(model(found), arrays["dual_logits_adv_alpha07"], ALONG)


def test_the_divergence_of_the_second_expert_is_the_official_one(registry):
    arrays = loaded("rter_loss_terms_eval")
    _, model, samples = released_mixture(registry)
    attacked_images = torch.from_numpy(arrays["x_adv_second"]) * model.std + model.mean
    second = (model.routed(samples.images).routes[0].forced(1),)

    clean = model.routed(samples.images, routes=second).logits.log_softmax(dim=1)
    moved = model.routed(attacked_images, routes=second).logits.log_softmax(dim=1)

    divergence = (clean.exp() * (clean - moved)).sum(dim=1)
    assert second[0].experts[:, 0, 0].tolist() == arrays["second_expert"].tolist()
    assert_close(divergence, arrays["kl_per_sample"], ALONG)


def test_the_loss_on_the_official_adversarial_images_is_the_official_one(registry):
    arrays = loaded("rter_loss_terms_eval")
    _, model, samples = released_mixture(registry)
    images = torch.from_numpy(arrays["x_adv_model"]) * model.std + model.mean

    loss = nn.functional.cross_entropy(model(images), samples.labels)

    assert_close(loss, arrays["ce_model"], FORWARD)


def test_the_full_width_has_the_official_parameters(registry):
    arrays = loaded("moe_resnet_full_seed0")
    with torch.device("meta"):
        model = build(registry, "moe/resnet18-e4")

    names = from_released({name: torch.zeros(0) for name in arrays["param_names"].tolist()})
    assert sum(parameter.numel() for parameter in model.parameters()) == arrays["n_params"]
    assert set(model.state_dict()) == set(names)


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("module.router.gate.bias", "router.linear.bias"),
        ("experts.3.net.linear.weight", "experts.3.head.weight"),
        ("Smoe.experts.0.net.conv1.weight", "standard.experts.0.stem.weight"),
        ("Rmoe.experts.1.net.layer1.1.bn2.bias", "robust.experts.1.blocks.1.bn2.bias"),
        (
            "experts.2.net.layer4.0.shortcut.0.weight",
            "experts.2.blocks.6.shortcut.0.weight",
        ),
    ],
)
def test_a_released_name_becomes_ours(name, ours):
    assert renamed(name) == ours


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("optimizer.state", "without optimiser or epoch"),
        ("experts.0.net.cls_token", "other experts are not converted"),
    ],
)
def test_a_name_that_was_not_released_is_refused(name, remedy):
    with pytest.raises(CheckpointError, match=remedy):
        from_released({name: torch.zeros(1)})


def released_state(registry):
    """A small mixture's state under released names, each half of a dual model's once."""
    model = build(registry, "moe/resnet18-e4", num_experts=2, **NARROW)
    return {released(name): value for name, value in model.state_dict().items()}, model


def released(name):
    """The released name of one of our parameters, the other way round."""
    if name.startswith("router."):
        return name.replace("router.linear", "router.gate")
    experts, number, rest = name.split(".", 2)
    for theirs, ours in (("conv1", "stem."), ("bn1", "bn."), ("linear", "head.")):
        if rest.startswith(ours):
            return f"{experts}.{number}.net.{theirs}.{rest.removeprefix(ours)}"
    _, block, inner = rest.split(".", 2)
    return f"{experts}.{number}.net.layer{int(block) // 2 + 1}.{int(block) % 2}.{inner}"


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_released_state_becomes_the_state_of_a_mixture(registry, prefix):
    state, model = released_state(registry)

    found = from_released({f"{prefix}{name}": value for name, value in state.items()})

    assert {name: value.tolist() for name, value in found.items()} == {
        name: value.tolist() for name, value in model.state_dict().items()
    }


def test_counters_that_a_file_lacks_are_set_to_zero(registry):
    state, model = released_state(registry)
    without = {name: value for name, value in state.items() if "num_batches" not in name}

    found = from_released(without)

    counters = {name for name in model.state_dict() if "num_batches" in name}
    assert set(found) == set(model.state_dict())
    assert all(found[name].item() == 0 for name in counters)


def test_a_state_that_lacks_parameters_is_refused_by_their_names(registry):
    state, _ = released_state(registry)
    del state["experts.1.net.layer2.0.bn2.bias"]

    with pytest.raises(CheckpointError, match=r"lacks experts\.1\.blocks\.2\.bn2\.bias .*save"):
        from_released(state)


def test_half_a_dual_model_is_refused(registry):
    state, _ = released_state(registry)

    with pytest.raises(CheckpointError, match=r"lacks standard\.experts\.0.* more .*whole model"):
        from_released({f"Rmoe.{name}": value for name, value in state.items()})


def test_a_parameter_too_many_is_refused_by_its_name(registry):
    state, _ = released_state(registry)
    state["experts.0.net.layer1.0.shortcut.0.weight"] = torch.zeros(1)

    with pytest.raises(CheckpointError, match=r"holds experts\.0\.blocks\.0\.shortcut\.0\.weight"):
        from_released(state)


def test_a_file_that_torch_saved_is_read_like_its_state(registry, tmp_path):
    state, model = released_state(registry)
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "released.pt")

    found = registry.find("converters", "rt-er-released").load()(tmp_path / "released.pt")

    own = model.state_dict()
    assert all(torch.equal(found[name], own[name]) for name in own)

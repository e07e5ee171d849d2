"""The attacks of the Adversarial Robustness Toolbox: the contract, and the way to the objective."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from art.attacks import evasion
from art.attacks.attack import EvasionAttack

from harness.api import AttackError, ThreatModel
from harness.ledger import Ledger
from harness.numerics import Batches, frozen
from harness.passes import objective_of
from harness.tensors import Noise, is_fooled
from harness.testing import LinearModel, ToyMoE, check_attack, linear_distance, linear_samples
from harness_art.attack import attack as run_class
from harness_art.catalogue import ATTACKS, EXCLUDED
from harness_art.estimator import ObjectiveClassifier, torch_classifier

DOCS = Path(__file__).parents[2] / "docs" / "art.md"

STEPS = {"max_iter": 10}
RESTART = {"max_iter": 10, "nb_random_init": 1}
AUTO = {**RESTART, "square_max_iter": 5, "square_nb_restarts": 1}
PENALTY = {"max_iter": 5, "learning_rate": 0.1, "initial_const": 10.0}
SEARCHED = {**PENALTY, "binary_search_steps": 3}
SINKHORN = {"conjugate_sinkhorn_max_iter": 20, "projected_sinkhorn_max_iter": 20}

BY_GRADIENT = [
    ("auto-attack", "linf", AUTO),
    ("auto-attack", "l2", AUTO),
    ("auto-conjugate-gradient", "l2", RESTART),
    ("auto-projected-gradient-descent", "linf", RESTART),
    ("auto-projected-gradient-descent", "l2", RESTART),
    ("basic-iterative-method", "linf", STEPS),
    ("deepfool", "l2", {}),
    ("fast-gradient-method", "linf", {}),
    ("fast-gradient-method", "l2", {}),
    ("momentum-iterative-method", "linf", STEPS),
    ("momentum-iterative-method", "l2", STEPS),
    ("projected-gradient-descent", "linf", STEPS),
    ("projected-gradient-descent", "l2", {**STEPS, "num_random_init": 1}),
    ("rescaling-auto-conjugate-gradient", "l2", RESTART),
    ("targeted-universal-perturbation", "linf", {}),
    ("targeted-universal-perturbation", "l2", {}),
    ("universal-perturbation", "linf", {}),
    ("universal-perturbation", "l2", {}),
]
"""Those that fool whatever is a twentieth closer than the ball is wide."""

BY_SEARCH = [
    ("boundary", "l2", 0.02, 6, {"max_iter": 3, "num_trial": 5, "sample_size": 5}),
    ("carlini-l0", "l2", 0.02, 2, {**SEARCHED, "max_halving": 2, "max_doubling": 2}),
    ("carlini-l2", "l2", 0.02, 2, SEARCHED),
    ("carlini-linf", "linf", 0.02, 0.2, {**PENALTY, "initial_const": 0.1}),
    ("elastic-net", "l2", 0.02, 2, {**SEARCHED, "max_iter": 10}),
    ("hop-skip-jump", "l2", 0.02, 6, {"max_iter": 2, "max_eval": 50, "init_eval": 10}),
    ("hop-skip-jump", "linf", 0.02, 0.6, {"max_iter": 2, "max_eval": 50, "init_eval": 10}),
    ("newtonfool", "l2", 0.02, 2, STEPS),
    ("pixel", "l2", 0.003, 2, {"max_iter": 1, "th": 3}),
    ("saliency-map-method", "l2", 0.02, 4, {"theta": -0.5}),
    ("sign-opt", "l2", 0.003, 9, {"num_trial": 10, "max_iter": 3, "query_limit": 300, "k": 10}),
    ("simba", "l2", 0.003, 2, {"max_iter": 100, "epsilon": 0.5}),
    ("spatial-transformation", "l2", 0.02, 9, {"max_translation": 30.0}),
    ("square", "linf", 0.02, 0.1, {"max_iter": 60}),
    ("square", "l2", 0.003, 2, {"max_iter": 60}),
    ("threshold", "linf", 0.003, 0.3, {"max_iter": 1}),
    ("wasserstein", "l2", 0.02, 9, {"max_iter": 5, **SINKHORN}),
    ("wasserstein", "linf", 0.02, 0.3, {"norm": "2", "ball": "2", "max_iter": 5, **SINKHORN}),
    ("zoo", "l2", 0.02, 4, {**PENALTY, "max_iter": 20, "use_resize": False, "variable_h": 0.1}),
]
"""Those with a harder time: the gap of the images and the radius are those they can bridge."""

ASTRAY = [
    # it only seeks another distribution, and the plane is as close to it upwards
    ("virtual-adversarial-method", "l2", 0.02, 2, {"max_iter": 1}),
    # a smooth perturbation starts large, and the model's gradient is small
    ("shadow", "l2", 0.02, 9, {"nb_steps": 10, "batch_size": 2}),
]
SLOW = ("brendel-bethge", "l2", 0.02, 2, {"steps": 5, "binary_search_steps": 5, "lr": 0.1})


def case(name, norm, gap, epsilon, parameters):
    return pytest.param(name, norm, gap, epsilon, parameters, id=f"{name}-{norm}")


def bound(samples, *, model=None, ledger=None):
    count = len(samples.ids)
    return objective_of(
        model or LinearModel(5),
        lambda outcome: -outcome.margin,
        samples.labels,
        batch_size=count,
        ledger=ledger,
    )


def attack(registry, name, samples, threat, *, model=None, ledger=None, **parameters):
    entry = registry.find("attacks", f"art/{name}")
    return entry.load()(
        bound(samples, model=model, ledger=ledger),
        samples.images,
        samples.labels,
        threat,
        noise=Noise(0, samples.ids, tuple(samples.images.shape[1:])),
        **entry.settle(parameters, name),
    )


def random_states():
    """Of numpy and torch; the shape checks of these tests draw from Python's own generator."""
    numpys = np.random.get_state()[1].tolist()  # noqa: NPY002 - what ART draws from
    return numpys, torch.get_rng_state().tolist()


@pytest.mark.parametrize(
    ("name", "norm", "parameters"),
    [pytest.param(*row, id=f"{row[0]}-{row[1]}") for row in BY_GRADIENT],
)
def test_keeps_the_contract_of_an_attack(registry, name, norm, parameters):
    check_attack(registry, f"art/{name}", norm=norm, within=1.1, **parameters)


@pytest.mark.parametrize(
    ("name", "norm", "gap", "epsilon", "parameters"),
    [
        *[case(*row) for row in (*BY_SEARCH, *ASTRAY)],
        pytest.param(*SLOW, id="brendel-bethge-l2", marks=pytest.mark.slow),  # numba compiles
    ],
)
def test_stays_in_the_ball_and_gives_the_same_images_for_the_same_seed(
    registry, name, norm, gap, epsilon, parameters
):
    samples, threat = linear_samples(2, gap=gap), ThreatModel(norm, epsilon)
    before, states = samples.images.clone(), random_states()
    ledger = Ledger(2, torch.device("cpu"))

    found = attack(registry, name, samples, threat, ledger=ledger, **parameters)
    again = attack(registry, name, samples, threat, **parameters)

    assert torch.equal(samples.images, before)
    assert random_states() == states
    assert threat.contains(found, before).all()
    assert not torch.equal(found, before)
    assert torch.equal(found, again)
    assert (ledger.forwards > 1).all()


@pytest.mark.parametrize(
    ("name", "norm", "gap", "epsilon", "parameters"), [case(*row) for row in BY_SEARCH]
)
def test_fools_the_images_that_are_well_within_reach_and_no_others(
    registry, name, norm, gap, epsilon, parameters
):
    samples, near = linear_samples(2, gap=gap), ThreatModel(norm, epsilon)
    far = ThreatModel(norm, 0.95 * linear_distance(norm, gap))

    found = attack(registry, name, samples, near, **parameters)
    held = attack(registry, name, samples, far, **parameters)

    assert is_fooled(LinearModel()(found), samples.labels).all()
    assert not is_fooled(LinearModel()(held), samples.labels).any()
    assert far.contains(held, samples.images).all()


@pytest.mark.parametrize("name", ["auto-conjugate-gradient", "rescaling-auto-conjugate-gradient"])
def test_conjugate_gradients_in_linf_fool_where_the_gradient_changes(registry, name):
    torch.manual_seed(0)
    model = ToyMoE(4, (3, 8, 8), gradient="soft").requires_grad_(False)
    images = torch.rand(4, 3, 8, 8) / 2 + 0.25
    samples = linear_samples(4)._replace(images=images, labels=model(images).argmax(dim=1))
    threat = ThreatModel("linf", 0.2)

    found = attack(registry, name, samples, threat, model=model, **RESTART)

    assert threat.contains(found, images).all()
    assert is_fooled(model(found), samples.labels).all()


def test_every_registered_attack_is_run_here():
    run = {row[0] for row in (*BY_GRADIENT, *BY_SEARCH, *ASTRAY, SLOW)}

    assert run == {chosen.name for chosen in ATTACKS}


def test_every_class_of_art_is_registered_or_has_its_reason():
    classes = {
        name
        for name, item in vars(evasion).items()
        if inspect.isclass(item) and issubclass(item, EvasionAttack)
    }
    registered = [chosen.cls for chosen in ATTACKS]

    assert not set(registered) & set(EXCLUDED)
    assert len(registered) == len(set(registered))
    assert classes <= {*registered, *EXCLUDED}
    # the class is there where numba is
    assert {*registered, *EXCLUDED} - classes <= {"BrendelBethgeAttack"}


@pytest.mark.parametrize("name", EXCLUDED)
def test_every_class_that_is_left_out_is_documented_with_its_reason(name):
    assert f"| `{name}` | {EXCLUDED[name]} |" in DOCS.read_text(encoding="utf-8")


@pytest.mark.parametrize("chosen", ATTACKS, ids=lambda chosen: chosen.name)
def test_what_a_suite_may_set_is_an_argument_of_the_class(chosen):
    own = {"relative_step_size", "square_max_iter", "square_nb_restarts"}
    if chosen.cls == "AutoAttack":
        own |= {"max_iter", "nb_random_init"}

    taken = set(inspect.signature(getattr(evasion, chosen.cls)).parameters)

    assert set(chosen.defaults) - own <= taken
    assert {*chosen.bound, *chosen.fixed} <= taken


def test_listing_the_plugins_imports_neither_art_nor_torch():
    code = (
        "import sys; from harness.plugins import load_plugins; "
        "names = load_plugins().names('attacks'); "
        "sys.exit('art/deepfool' not in names or 'art' in sys.modules or 'torch' in sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", code], check=False)

    assert done.returncode == 0


def test_each_query_is_counted_for_its_own_image(registry):
    samples, ledger = linear_samples(3), Ledger(3, torch.device("cpu"))
    samples.labels[1] = 0  # an error already: AutoPGD asks, and stops there

    parameters = {"max_iter": 10, "nb_random_init": 1}
    attack(
        registry,
        "auto-projected-gradient-descent",
        samples,
        ThreatModel("linf", 0.01),
        ledger=ledger,
        **parameters,
    )

    forwards, backwards = ledger.forwards.tolist(), ledger.backwards.tolist()
    assert backwards == [10, 0, 10]
    assert forwards[0] == forwards[2] > forwards[1] > 0


def test_one_step_costs_two_passes_forwards_and_one_back(registry):
    samples, ledger = linear_samples(2), Ledger(2, torch.device("cpu"))

    attack(registry, "fast-gradient-method", samples, ThreatModel("linf", 0.1), ledger=ledger)

    # one tells the number of classes
    assert ledger.forwards.tolist() == [2, 2]
    assert ledger.backwards.tolist() == [1, 1]


def test_an_image_fares_the_same_alone_and_in_a_batch(registry):
    samples, threat = linear_samples(3, gap=0.02), ThreatModel("linf", 0.1)
    run = partial(attack, registry, "square", threat=threat, max_iter=20)

    together = run(samples=samples)
    alone = run(samples=samples.rows(torch.tensor([2])))

    assert torch.equal(alone[0], together[2])
    assert not torch.equal(together[1], together[2])


def test_the_point_of_an_attack_for_the_smallest_perturbation_is_returned_as_it_is(registry):
    samples = linear_samples(2)

    found = attack(registry, "deepfool", samples, ThreatModel("l2", 5))

    size = ThreatModel("l2", 5).size(found - samples.images)
    assert size.tolist() == pytest.approx([linear_distance("l2")] * 2, rel=1e-3)


def test_a_point_outside_the_ball_leaves_the_clean_image(registry):
    samples = linear_samples(2)

    found = attack(registry, "deepfool", samples, ThreatModel("l2", 1))

    assert torch.equal(found, samples.images)


def test_an_exception_inside_art_surfaces_and_leaves_the_generators_alone(registry):
    states, generator = random_states(), np.random.RandomState

    with pytest.raises(ValueError, match="Incompatible value combination"):
        attack(registry, "simba", linear_samples(1), ThreatModel("l2", 1), freq_dim=3, stride=2)

    assert random_states() == states
    assert np.random.RandomState is generator


@pytest.mark.parametrize(
    ("name", "norm", "remedy"),
    [
        ("basic-iterative-method", "l2", "use it in a suite of norm 'linf'"),
        ("deepfool", "linf", "use it in a suite of norm 'l2'"),
        ("square", "severity", "use it in a suite of norm 'linf' or 'l2'"),
    ],
)
def test_a_norm_that_the_class_is_not_made_for_is_refused(registry, name, norm, remedy):
    with pytest.raises(AttackError, match=remedy):
        attack(registry, name, linear_samples(1), ThreatModel(norm, 1))


def test_a_class_that_is_not_installed_is_refused():
    samples, threat = linear_samples(1), ThreatModel("linf", 0.1)
    missing = replace(ATTACKS[0], cls="NotThere", needs="numba")

    with pytest.raises(AttackError, match="it needs numba"):
        run_class(
            missing,
            bound(samples),
            samples.images,
            samples.labels,
            threat,
            noise=Noise(0, samples.ids, (3, 8, 8)),
        )


def test_it_says_nothing(registry, capfd):
    attack(registry, "auto-attack", linear_samples(1), ThreatModel("linf", 0.01), **AUTO)

    assert capfd.readouterr() == ("", "")


@pytest.fixture
def curved():
    """A model with a curved boundary, one image that it gets right, and both as ART sees them."""
    torch.manual_seed(0)
    model = ToyMoE(4, (3, 8, 8), gradient="soft")
    image = torch.rand(1, 3, 8, 8)
    label = model(image).argmax(dim=1)
    samples = linear_samples(1)._replace(images=image, labels=label)
    with frozen(model):
        yield model, image, bound(samples, model=model), int(label)


def one_hot(label):
    return np.eye(4, dtype=np.float32)[[label]]


@pytest.mark.parametrize("is_softmax", [False, True], ids=["logits", "probabilities"])
def test_the_class_gradients_are_those_of_the_model(curved, is_softmax):
    model, image, objective, label = curved
    told = ObjectiveClassifier(objective, image, label=label, num_classes=4, is_softmax=is_softmax)

    def tell(images):
        logits = model(images)
        return logits.softmax(dim=1)[0] if is_softmax else logits[0]

    expected = torch.autograd.functional.jacobian(tell, image)[:, 0].numpy()
    both = np.concatenate([image.numpy()] * 2)
    assert told.predict(image.numpy())[0] == pytest.approx(tell(image).numpy(), abs=1e-6)
    assert told.class_gradient(image.numpy())[0] == pytest.approx(expected, abs=1e-6)
    assert told.class_gradient(both, label=2)[1, 0] == pytest.approx(expected[2], abs=1e-6)
    assert told.class_gradient(both, label=[1, 3])[1, 0] == pytest.approx(expected[3], abs=1e-6)


def test_the_loss_is_the_objective_for_the_label_and_cross_entropy_for_another_class(curved):
    model, image, objective, label = curved
    told = ObjectiveClassifier(objective, image, label=label, num_classes=4)
    other = (label + 1) % 4
    cross_entropy = -model(image).log_softmax(dim=1)[0, other]

    own = told.compute_loss(image.numpy(), one_hot(label))
    towards = told.compute_loss(image.numpy(), one_hot(other))

    assert own.tolist() == pytest.approx(objective.score(image).loss.tolist())
    assert towards.tolist() == pytest.approx([cross_entropy.item()], rel=1e-5)
    gradient = told.loss_gradient(image.numpy(), one_hot(label))
    assert gradient == pytest.approx(objective.gradient(image)[1].numpy())


def test_arts_own_classifier_over_the_objective_has_the_models_gradients(curved):
    model, image, objective, label = curved
    objective = replace(objective, batches=Batches(2))
    told = torch_classifier(objective, image, num_classes=4)

    def loss(images):
        return -model(images).log_softmax(dim=1)[0, label]

    others = torch.cat([image, image / 2, image.flip(1)])
    gradients = told.loss_gradient(others.numpy(), one_hot(label).repeat(3, axis=0))
    expected = [torch.autograd.functional.jacobian(loss, one[None])[0] for one in others]
    # ART's loss is the mean over its candidates
    assert gradients * 3 == pytest.approx(torch.stack(expected).numpy(), abs=1e-6)

"""One evasion attack of the Adversarial Robustness Toolbox, image by image."""

from __future__ import annotations

import io
import logging
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from inspect import signature
from math import inf
from typing import Any

import numpy as np
import torch
from art.attacks import evasion

from harness.api import AttackError
from harness.tensors import Attack, Images, Labels, Noise, Objective
from harness.threat import ThreatModel
from harness_art.catalogue import ATTACKS, ArtAttack
from harness_art.estimator import Array, ObjectiveClassifier, torch_classifier


def __getattr__(name: str) -> Attack:
    """The attack of that name in the catalogue: what the registered targets ask for."""
    for chosen in ATTACKS:
        if chosen.name == name:
            return partial(attack, chosen)
    raise AttributeError(name)


def attack(
    chosen: ArtAttack,
    objective: Objective,
    images: Images,
    labels: Labels,
    threat: ThreatModel,
    *,
    noise: Noise,
    **parameters: Any,
) -> Images:
    """What ART's attack proposes for each image, inside the ball or the clean image itself.

    Args:
        chosen: Which attack.
        objective: Its loss is what attacks with a loss climb, but for those that bring their own.
        images: In [0, 1].
        labels: Correct classes.
        threat: Gives radius and norm, where the class takes them; the result of an attack that
            seeks the smallest perturbation is returned where it lies inside.
        noise: Gives each image the seed of the global generators, which are put back.
        parameters: The class's own, by ART's names, but for `relative_step_size`, its `eps_step`
            as a fraction of epsilon.

    Raises:
        AttackError: The class is not made for this norm, or is not there.
    """
    _check(chosen, threat)
    seeds = ((noise.uniform(0).flatten(1)[:, 0] + 1) * 2**23).long().tolist()
    found = []
    for row, seed in enumerate(seeds):
        index = torch.tensor([row], device=images.device)
        one, label = images[index], int(labels[row])
        with _left_alone(seed), _quiet():
            point = _point(chosen, objective.rows(index), one, label, threat, parameters)
        found.append(_proposal(chosen, point, one, threat))
    return torch.cat(found)


def _check(chosen: ArtAttack, threat: ThreatModel) -> None:
    if threat.norm not in chosen.norms:
        made_for = " or ".join(repr(norm) for norm in chosen.norms)
        raise AttackError(
            f"attack '{chosen.registered}' is not made for norm {threat.norm!r}: "
            f"use it in a suite of norm {made_for}"
        )
    if not hasattr(evasion, chosen.cls):
        needs = f" (it needs {chosen.needs})" if chosen.needs else ""
        raise AttackError(
            f"attack '{chosen.registered}': the installed adversarial-robustness-toolbox has no "
            f"{chosen.cls}{needs}: pip install 'adversarial-robustness-toolbox>=1.20' "
            f"{chosen.needs}".rstrip()
        )


def _point(
    chosen: ArtAttack,
    objective: Objective,
    image: Images,
    label: int,
    threat: ThreatModel,
    parameters: dict[str, Any],
) -> Images:
    """Where ART's attack ends, wherever that is."""
    logits = objective.score(image).logits[0]
    classes = len(logits)
    classifier = (
        torch_classifier(objective, image, num_classes=classes)
        if chosen.needs_torch
        else ObjectiveClassifier(
            objective,
            image,
            label=label,
            num_classes=classes,
            is_softmax=chosen.takes_probabilities,
            lowest=chosen.lowest,
        )
    )
    logits[label] = -inf
    goal = {"label": label, "runner-up": int(logits.argmax()), "none": None}[chosen.goal]
    instance = _instance(chosen, classifier, threat, parameters)
    end = instance.generate(x=image.cpu().numpy().copy(), **_labelled(goal, classes))
    pixels = np.array(end, dtype=np.float32).reshape(image.shape)
    return torch.from_numpy(pixels).to(image.device)


def _labelled(goal: int | None, classes: int) -> dict[str, Array]:
    if goal is None:
        return {}
    return {"y": np.eye(classes, dtype=np.float32)[[goal]]}


def _instance(
    chosen: ArtAttack, classifier: Any, threat: ThreatModel, parameters: dict[str, Any]
) -> Any:
    """ART's attack, with the ball and the parameters."""
    own = dict(parameters)
    norm = {"linf": inf, "l2": 2}[threat.norm]
    quantities = {
        "epsilon": float(threat.epsilon),
        "step": float(threat.epsilon * own.pop("relative_step_size", 1)),
        "norm": norm,
        "levels": 255 * float(threat.epsilon),
        "targeted-fgsm": {"eps": float(threat.epsilon), "norm": norm, "targeted": True},
    }
    bound = {argument: quantities[quantity] for argument, quantity in chosen.bound.items()}
    if chosen.cls == "AutoAttack":
        bound["attacks"] = _parts(classifier, bound, own)
        own = {}
    made = getattr(evasion, chosen.cls)
    quiet = {"verbose": False} if "verbose" in signature(made).parameters else {}
    return made(classifier, **quiet, **chosen.fixed, **bound, **own)


def _parts(classifier: Any, bound: dict[str, Any], own: dict[str, Any]) -> list[Any]:
    """The four attacks of ART's AutoAttack, as its constructor makes them, with other budgets."""
    gradient = {"max_iter": own["max_iter"], "nb_random_init": own["nb_random_init"]}
    losses = ("cross_entropy", "difference_logits_ratio")
    ball = {"norm": bound["norm"], "eps": bound["eps"]}
    return [
        *(
            evasion.AutoProjectedGradientDescent(
                classifier, **bound, **gradient, loss_type=loss, verbose=False
            )
            for loss in losses
        ),
        evasion.DeepFool(classifier, max_iter=own["max_iter"], epsilon=1e-3, verbose=False),
        evasion.SquareAttack(
            classifier,
            **ball,
            max_iter=own["square_max_iter"],
            nb_restarts=own["square_nb_restarts"],
            verbose=False,
        ),
    ]


def _proposal(chosen: ArtAttack, point: Images, image: Images, threat: ThreatModel) -> Images:
    if chosen.kind == "budget":
        return threat.project(point, image)
    point = threat.clip(point)
    return point if bool(threat.contains(point, image)) else image.clone()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep ART's warnings, log and progress bars to itself."""
    log = logging.getLogger("art")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    sink = io.StringIO()
    try:
        with warnings.catch_warnings(), redirect_stdout(sink), redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


@contextmanager
def _left_alone(seed: int) -> Iterator[None]:
    """Seed the global generators that ART draws from, and put them back as they were found."""
    states, plain = (np.random.get_state(), random.getstate()), np.random.RandomState  # noqa: NPY002 - ART knows no others
    try:
        with torch.random.fork_rng(devices=[]):  # ART's tensors lie on the CPU
            np.random.seed(seed)  # noqa: NPY002 - the same
            random.seed(seed)
            torch.default_generator.manual_seed(seed)  # the accelerator's stays as it is
            np.random.RandomState = _Seeded  # type: ignore[misc]
            yield
    finally:
        np.random.RandomState = plain  # type: ignore[misc]
        np.random.set_state(states[0])  # noqa: NPY002 - the same
        random.setstate(states[1])


class _Seeded(np.random.RandomState):
    """A generator that takes a missing seed from numpy's global one, not from the machine."""

    def __init__(self, seed: Any = None) -> None:
        super().__init__(np.random.randint(2**31) if seed is None else seed)  # noqa: NPY002

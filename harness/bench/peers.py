"""Other libraries and how they are called: their documented API, the whole batch at once."""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass
from importlib import metadata
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from harness.bench.contest import Contest
    from harness.bench.tasks import Task
    from harness.tensors import Images

EXTRA = "pip install 'moe-robustness-harness[bench]'"


@dataclass(frozen=True)
class Peer:
    """Another library.

    Attributes:
        name: As `--against` gives it.
        distribution: Whose version is told.
        install: The command that brings it.
        adapters: What runs a task, by the task's kind; kinds that it has no attack for are absent.
        note: What readers must know of how it is called.
    """

    name: str
    distribution: str
    install: str
    adapters: Mapping[str, Callable[[Contest, Task], Images]]
    note: str = ""


class Presence(NamedTuple):
    """Whether a peer can take part."""

    version: str  # empty where it cannot
    reason: str  # why it cannot; empty where it can


def presence(peer: Peer) -> Presence:
    """The version of a peer, or why it cannot take part and what brings it."""
    try:
        version = metadata.version(peer.distribution)
    except metadata.PackageNotFoundError:
        return Presence("", f"absent: {peer.install}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(peer.name)
    except Exception as error:  # noqa: BLE001 - a library may do anything while it is imported
        told = f"{type(error).__name__}: {error}"
        return Presence("", f"absent: its import raised {told}; {peer.install}")
    return Presence(version, "")


def art_pgd(contest: Contest, task: Task) -> Images:
    """PGD of the Adversarial Robustness Toolbox."""
    from art.attacks.evasion import ProjectedGradientDescentPyTorch

    attack = ProjectedGradientDescentPyTorch(
        _art_classifier(contest),
        norm=inf,
        eps=contest.epsilon,
        eps_step=contest.epsilon / 4,
        max_iter=task.steps,
        num_random_init=1,
        batch_size=len(contest.samples.images),
        verbose=False,
    )
    return _art_images(attack, contest)


def art_apgd(contest: Contest, task: Task) -> Images:
    """AutoPGD of the Adversarial Robustness Toolbox."""
    from art.attacks.evasion import AutoProjectedGradientDescent

    attack = AutoProjectedGradientDescent(
        _art_classifier(contest),
        norm=inf,
        eps=contest.epsilon,
        eps_step=2 * contest.epsilon,
        max_iter=task.steps,
        nb_random_init=1,
        batch_size=len(contest.samples.images),
        verbose=False,
    )
    return _art_images(attack, contest)


def torchattacks_pgd(contest: Contest, task: Task) -> Images:
    """PGD of torchattacks."""
    import torchattacks

    attack = torchattacks.PGD(
        contest.model,
        eps=contest.epsilon,
        alpha=contest.epsilon / 4,
        steps=task.steps,
        random_start=True,
    )
    return _images(attack(contest.samples.images, contest.samples.labels))


def torchattacks_apgd(contest: Contest, task: Task) -> Images:
    """AutoPGD of torchattacks."""
    import torchattacks

    attack = torchattacks.APGD(
        contest.model, eps=contest.epsilon, steps=task.steps, seed=contest.seed, loss="ce"
    )
    return _images(attack(contest.samples.images, contest.samples.labels))


def torchattacks_autoattack(contest: Contest, task: Task) -> Images:
    """The parts of torchattacks' standard AutoAttack, with the steps of the paper."""
    import torchattacks

    shared: dict[str, Any] = {"eps": contest.epsilon, "seed": contest.seed}
    climbing = {**shared, "steps": task.steps}
    targeted = {**climbing, "n_classes": contest.num_classes}
    attack = torchattacks.MultiAttack(
        [
            torchattacks.APGD(contest.model, loss="ce", **climbing),
            torchattacks.APGDT(contest.model, **targeted),
            torchattacks.FAB(contest.model, multi_targeted=True, **targeted),
            torchattacks.Square(contest.model, n_queries=5000, **shared),
        ]
    )
    return _images(attack(contest.samples.images, contest.samples.labels))


def foolbox_pgd(contest: Contest, task: Task) -> Images:
    """PGD of foolbox."""
    import foolbox

    images, labels = contest.samples.images, contest.samples.labels
    model = foolbox.PyTorchModel(contest.model, bounds=(0, 1), device=images.device)
    attack = foolbox.attacks.LinfPGD(rel_stepsize=0.25, steps=task.steps, random_start=True)
    _, clipped, _ = attack(model, images, labels, epsilons=contest.epsilon)
    return _images(clipped)


def pyautoattack_apgd(contest: Contest, task: Task) -> Images:
    """AutoPGD of the official code."""
    from pyautoattack.autopgd_base import APGDAttack

    attack = APGDAttack(
        contest.model,
        n_iter=task.steps,
        n_restarts=1,
        eps=contest.epsilon,
        seed=contest.seed,
        loss="ce",
        device=contest.device,
    )
    return _images(attack.perturb(contest.samples.images, contest.samples.labels))


def pyautoattack_autoattack(contest: Contest, task: Task) -> Images:  # noqa: ARG001 - 100 steps are its own
    """The standard AutoAttack of the official code."""
    from pyautoattack import AutoAttack

    images, labels = contest.samples.images, contest.samples.labels
    attack = AutoAttack(
        contest.model, eps=contest.epsilon, seed=contest.seed, device=contest.device
    )
    found, _ = attack.run_standard_evaluation(images, labels, batch_size=len(images))
    return _images(found)


def _art_classifier(contest: Contest) -> Any:
    """The model, wrapped as in ART's documentation."""
    from art.estimators.classification import PyTorchClassifier
    from torch import nn

    return PyTorchClassifier(
        model=contest.model,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(contest.samples.images.shape[1:]),
        nb_classes=contest.num_classes,
        clip_values=(0.0, 1.0),
        device_type="gpu" if contest.device.type == "cuda" else "cpu",
    )


def _art_images(attack: Any, contest: Contest) -> Images:
    """What an attack of ART returns; its arrays live on the CPU."""
    import torch

    _, images, labels, _ = contest.samples
    found = attack.generate(x=images.cpu().numpy(), y=labels.cpu().numpy())
    return torch.from_numpy(found).to(contest.device)


def _images(found: Any) -> Images:
    """The images of a library without types."""
    images: Images = found.detach()
    return images


_PEERS = (
    Peer(
        "art",
        "adversarial-robustness-toolbox",
        "pip install adversarial-robustness-toolbox",
        {"pgd": art_pgd, "apgd": art_apgd},
        "its APGD gets eps_step = 2 * epsilon by hand, and starts anywhere in the ball",
    ),
    Peer(
        "torchattacks",
        "torchattacks",
        "pip install --no-deps torchattacks; pip install requests",
        {
            "pgd": torchattacks_pgd,
            "apgd": torchattacks_apgd,
            "autoattack": torchattacks_autoattack,
        },
        "its AutoAttack is put together from its parts, of 100 steps where its own take 10",
    ),
    Peer("foolbox", "foolbox", EXTRA, {"pgd": foolbox_pgd}),
    Peer(
        "pyautoattack",
        "pyautoattack",
        EXTRA,
        {"apgd": pyautoattack_apgd, "autoattack": pyautoattack_autoattack},
        "the official AutoAttack, packaged by others",
    ),
)
PEERS = {peer.name: peer for peer in _PEERS}

"""AutoAttack's four parts by us and by others, each on what the part before left.

python benchmarks/autoattack_parts.py --who ours --data DIR --weights FILE
python benchmarks/autoattack_parts.py --who official --model toy
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path  # noqa: TC003 - typer reads it
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import torch
import typer
from torch import nn
from torch.nn import functional

from harness.api import ThreatModel, radius
from harness.building import build_model
from harness.checkpoints import load_weights
from harness.data import load_images
from harness.ledger import Ledger
from harness.modes import Mode
from harness.numerics import ROW_GROUP, Batches, frozen
from harness.passes import LossObjective
from harness.plugins import load_plugins
from harness.prepare import prepared
from harness.provenance import versions
from harness.seeing import clean_pass
from harness.sources import Place
from harness.suite import find_suite
from harness.tensors import Noise, Samples, noise_key
from harness.testing import ToyMoE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.registry import Registry
    from harness.tensors import Images, Labels, Rows

NAMES = ("apgd-ce", "apgd-t", "fab-t", "square")
STEPS, TARGETS, QUERIES = 100, 9, 5000


class Case(NamedTuple):
    """What everybody attacks."""

    model: nn.Module
    samples: Samples
    epsilon: float
    classes: int


def main(
    who: Annotated[str, typer.Option(help="ours, official or torchattacks.")],
    model: Annotated[str, typer.Option(help="cnn/resnet14w24, or toy: a hard-routed one.")] = (
        "cnn/resnet14w24"
    ),
    data: Annotated[Path | None, typer.Option(help="Folder with local copies.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Of the CIFAR-10 model.")] = None,
    images: Annotated[int, typer.Option(help="First images of the test split.")] = 500,
    epsilon: Annotated[str, typer.Option(help="Linf radius.")] = "8/255",
) -> None:
    """Print one JSON object: for each part CPU seconds and the images that are left."""
    torch.set_num_threads(1)
    registry = load_plugins()
    case = (
        _toy(registry, images, radius(epsilon))
        if model == "toy"
        else _real(registry, model, data, weights, images, radius(epsilon))
    )
    parts = {"ours": _ours, "official": _official, "torchattacks": _torchattacks}[who](case)
    with torch.no_grad():
        right = (case.model(case.samples.images).argmax(1) == case.samples.labels).nonzero()[:, 0]
    told = {"clean": len(right), "parts": dict(_cascade(case, parts, right))}
    about = {"who": who, "model": model, "n": images, "epsilon": epsilon, "versions": versions()}
    json.dump({**told, **about}, sys.stdout, indent=1)


def _cascade(
    case: Case, parts: Callable[[str, Rows], Images], left: Rows
) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in NAMES:
        start = time.process_time()
        found = parts(name, left)
        seconds = time.process_time() - start
        _check(case, found, left)
        with torch.no_grad():
            robust = case.model(found).argmax(1) == case.samples.labels[left]
        left = left[robust]
        yield name, {"cpu_seconds": round(seconds, 1), "robust": len(left), "ids": left.tolist()}
        print(who_is_left(name, seconds, left), file=sys.stderr)  # noqa: T201 - a script


def who_is_left(name: str, seconds: float, left: Rows) -> str:
    """A line for whoever waits."""
    return f"{name}: {len(left)} left after {seconds:.0f} s"


def _check(case: Case, found: Images, left: Rows) -> None:
    clean = case.samples.images[left]
    if not ThreatModel("linf", case.epsilon).contains(found, clean).all():
        sys.exit("an image left the ball or [0, 1]")


def _ours(case: Case) -> Callable[[str, Rows], Images]:
    from harness_attacks.autoattack import parts  # noqa: PLC0415 - the peers need none of it

    model = case.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    surrogate = prepared(model, case.samples.images[:ROW_GROUP], Mode())
    by_name = {part.name: part for part in parts("standard", case.classes)}

    def run(name: str, left: Rows) -> Images:
        some = case.samples.rows(left)
        batches = Batches(128)
        objective = LossObjective(
            model,
            _loss,
            clean_pass(model, some, batches=batches),
            Ledger(len(left), left.device),
            torch.arange(len(left)),
            batches,
            surrogate=surrogate,
        )
        shape = (some.images.shape[1], some.images.shape[2], some.images.shape[3])
        noise = Noise(noise_key(0, "autoattack-standard"), some.ids, shape)
        threat = ThreatModel("linf", case.epsilon)
        with frozen(model):
            return by_name[name](objective, some.images, some.labels, threat, noise=noise)

    return run


def _official(case: Case) -> Callable[[str, Rows], Images]:
    from pyautoattack import AutoAttack  # noqa: PLC0415 - installed by whoever compares

    attack = AutoAttack(case.model, eps=case.epsilon, seed=0, device="cpu")
    attack.verbose = False

    def run(name: str, left: Rows) -> Images:
        attack.attacks_to_run = [name]
        images, labels = case.samples.images[left], case.samples.labels[left]
        found = attack.run_standard_evaluation(images, labels, batch_size=len(left))
        return found[0] if isinstance(found, tuple) else found  # type: ignore[no-any-return]

    return run


def _torchattacks(case: Case) -> Callable[[str, Rows], Images]:
    import torchattacks  # noqa: PLC0415 - installed by whoever compares

    shared: dict[str, Any] = {"eps": case.epsilon, "seed": 0}
    climbing = {**shared, "steps": STEPS}
    targeted = {**climbing, "n_classes": case.classes}
    attacks = {
        "apgd-ce": torchattacks.APGD(case.model, loss="ce", **climbing),
        "apgd-t": torchattacks.APGDT(case.model, **targeted),
        "fab-t": torchattacks.FAB(case.model, multi_targeted=True, **targeted),
        "square": torchattacks.Square(case.model, n_queries=QUERIES, **shared),
    }

    def run(name: str, left: Rows) -> Images:
        return attacks[name](case.samples.images[left], case.samples.labels[left])  # type: ignore[no-any-return]

    return run


def _real(
    registry: Registry,
    name: str,
    data: Path | None,
    weights: Path | None,
    count: int,
    epsilon: float,
) -> Case:
    spec = find_suite("cifar10-linf", registry).data
    found = load_images(registry, spec, "test", Place(data))
    model = build_model(registry, name, num_classes=10, image_shape=(3, 32, 32), seed=0)
    if weights is not None:
        load_weights(model, weights)
    samples = found.samples(torch.arange(count))
    return Case(model.eval(), samples, epsilon, 10)


def _toy(registry: Registry, count: int, epsilon: float) -> Case:
    """Four linear experts on digits, trained with a straight-through router, routed hard."""
    spec = find_suite("digits-linf", registry).data
    train = load_images(registry, spec, "train", Place())
    torch.manual_seed(0)
    model = ToyMoE(10, (1, 8, 8), gradient="straight-through")
    everything = train.samples(torch.arange(len(train.labels)))
    _fit(model, everything.images, everything.labels)
    model.gradient = "none"
    samples = load_images(registry, spec, "test", Place()).samples(torch.arange(count))
    return Case(model.eval(), samples, epsilon, 10)


def _fit(model: ToyMoE, images: Images, labels: Labels) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=1e-3)
    for _ in range(300):
        optimizer.zero_grad()
        found = model.routed(images)
        loss = functional.cross_entropy(found.logits, labels) + found.auxiliary_loss.mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _loss(outcome: Any) -> torch.Tensor:
    return functional.cross_entropy(outcome.logits, outcome.labels, reduction="none")


if __name__ == "__main__":
    typer.run(main)

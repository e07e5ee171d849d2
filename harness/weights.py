"""The weights of a row: from a file, from the web, from its plugin, or trained once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from filelock import FileLock

from harness import checkpoints, plan
from harness.building import build_model
from harness.fitting import start_from
from harness.modes import PLAIN, TrainingMode
from harness.numerics import resolve_device
from harness.training import (
    Progress,
    TrainingContext,
    TrainingData,
    fit,
    new_fabric,
    wrapped_for_training,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from harness.api import EpochEnd
    from harness.data import ImageData
    from harness.plan import Contender
    from harness.registry import Registry
    from harness.sources import Place
    from harness.store import Store
    from harness.suite import Suite
    from harness.workbench import Workbench

INCLUDED = "included"


class Weights(NamedTuple):
    """Where a row's weights lie."""

    path: str  # empty where building the model brings them
    sha256: str  # empty then, too
    source: str  # for people
    flags: tuple[str, ...] = ()  # what a reader of the row must know


class Trainer(NamedTuple):
    """What trainings of one run share."""

    suite: Suite
    registry: Registry
    store: Store
    bench: Workbench
    seed: int
    device: str
    place: Place
    told: Callable[[EpochEnd], None]
    mode: TrainingMode = PLAIN


def obtain(trainer: Trainer, contender: Contender) -> Weights:
    """The weights of a row; trained now where nobody has trained them.

    Raises:
        CheckpointError: A file or download that is missing or altered.
        TrainingError: The recipe cannot go on.
    """
    if contender.recipe:
        folder = trained(trainer, contender)
        card = checkpoints.read_card(folder) or {}
        path = str(folder / checkpoints.WEIGHTS)
        return Weights(
            path,
            card["sha256"],
            f"recipe {contender.recipe}, seed {trainer.seed}, {card['images']} training images"
            + (f", started from {Path(contender.start).name}" if contender.start else ""),
            tuple(card["flags"]),
        )
    if contender.weights in (INCLUDED, plan.PRETRAINED):
        return Weights("", "", f"brought by the plugin, {contender.weights}")
    if checkpoints.is_url(contender.weights):
        fetched = checkpoints.fetch(
            contender.weights, contender.sha256, trainer.store.root / "weights" / "fetched"
        )
        return Weights(str(fetched), contender.sha256, contender.weights)
    sha256 = checkpoints.file_hash(Path(contender.weights), contender.sha256)
    return Weights(contender.weights, sha256, Path(contender.weights).name)


def trained(trainer: Trainer, contender: Contender) -> Path:
    """The folder of a training's weights; one process trains while others wait."""
    suite, contender = trainer.suite, plan.trained_as(contender, trainer.registry)
    data = trainer.bench.data(suite.data, suite.data.train, trainer.place)
    ingredients = plan.training_ingredients(
        suite,
        contender,
        trainer.registry,
        fingerprint=data.fingerprint,
        seed=trainer.seed,
        mode=trainer.mode,
    )
    folder = trainer.store.weights(plan.key(ingredients))
    if checkpoints.read_card(folder) is not None:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if checkpoints.read_card(folder) is None:
            _train(trainer, contender, data, ingredients, folder)
    return folder


def _train(
    trainer: Trainer,
    contender: Contender,
    data: ImageData,
    ingredients: dict[str, Any],
    folder: Path,
) -> None:
    find = trainer.registry.find
    fabric = new_fabric(resolve_device(trainer.device))
    model = build_model(
        trainer.registry,
        contender.model,
        num_classes=data.card.num_classes,
        image_shape=trainer.suite.data.canvas.image_shape,
        seed=trainer.seed,
    )
    start = _start(model, contender, ingredients)
    context = TrainingContext(
        model=wrapped_for_training(fabric, model, trainer.mode),
        num_images=len(data.labels),
        seed=trainer.seed,
        attack_named=_attack_named(trainer.registry),
        loss_named=lambda name: find("objectives", name).load(),
    )
    training = find("recipes", contender.recipe).load()(context, **ingredients["recipe_parameters"])
    progress = Progress(folder / "checkpoint.pt", contender.row, trainer.told)
    history = fit(
        fabric, training, context, _on_device(data, fabric), _held_out(trainer, fabric), progress
    )
    card = {
        "row": contender.row,
        "ingredients": ingredients,
        "images": len(data.labels),
        "flags": [
            *(["partial-training"] if data.is_partial else []),
            *(["started-from-weights"] if start else []),
        ],
        "epochs": history,
        **start,
    }
    checkpoints.save_weights(folder, model, card)
    progress.path.unlink(missing_ok=True)


def _start(
    model: nn.Module, contender: Contender, ingredients: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Load what the training starts from; its lines of the card."""
    if not contender.start:
        return {}
    path, sha256 = Path(contender.start), ingredients["start"]
    changes = start_from(model, path, sha256=sha256)
    return {"start": {"file": path.name, "sha256": sha256, "changes": list(changes)}}


def _attack_named(registry: Registry) -> Callable[..., tuple[Any, dict[str, Any]]]:
    def attack_named(name: str, **parameters: Any) -> tuple[Any, dict[str, Any]]:
        entry = registry.find("attacks", name)
        return entry.load(), entry.settle(parameters, f"attack {name}")

    return attack_named


def _on_device(data: ImageData, fabric: Any) -> TrainingData:
    """The images as bytes on the device, where they take no more than a quarter of its memory."""
    if fabric.device.type != "cuda":
        return TrainingData(data.pixels, data.labels)
    room = torch.cuda.get_device_properties(fabric.device).total_memory // 4
    if data.pixels.nbytes > room:
        return TrainingData(data.pixels, data.labels)
    return TrainingData(data.pixels.to(fabric.device), data.labels.to(fabric.device))


def _held_out(trainer: Trainer, fabric: Any) -> TrainingData | None:
    spec = trainer.suite.data
    if not spec.validation:
        return None
    data = trainer.bench.data(spec, spec.validation, trainer.place)
    return _on_device(data, fabric)

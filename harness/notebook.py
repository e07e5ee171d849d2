"""The harness from Python: evaluate a module, load a model, read results as a DataFrame."""

from __future__ import annotations

import inspect
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pandas as pd
from torch import nn

from harness import checkpoints, hashing, plan
from harness.building import build_model
from harness.cards import ModelCard
from harness.errors import CheckpointError, HarnessError, UsageError
from harness.modes import Mode
from harness.plan import Contender
from harness.plugins import load_plugins
from harness.registry import Entry, Plugin, Registry
from harness.runner import Request, run
from harness.sources import Place, known_fingerprint
from harness.store import Store
from harness.suite import attack_spec, check_objectives, find_suite
from harness.weights import INCLUDED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.api import ModelContext
    from harness.suite import Suite


def evaluate(  # noqa: PLR0913 - the options of `harness run`
    model: nn.Module | str,
    suite: str = "digits-linf",
    *,
    limit: int | None = None,
    attacks: Sequence[str] = (),
    seed: int = 0,
    device: str = "auto",
    batch_size: int = 0,
    precision: str = "float32",
    out: str | Path | None = None,
    data: str | Path | None = None,
    labels: str | Path | None = None,
    plugins: Sequence[str] = (),
) -> pd.DataFrame:
    """Evaluate a model on a suite, in this process.

    Args:
        model: A module that maps float32 images in [0, 1] to logits, evaluated with the weights
            it has and left as it is found; or a registered name, trained where it needs to be.
        suite: Name, or path of a TOML file.
        limit: First images only; None for all.
        attacks: Registered attacks in place of the suite's.
        seed: Of attacks, and of training.
        device: "auto", "cpu", "cuda" ...; a module is moved there, and back afterwards.
        batch_size: Most images of one pass, 0 for what is fastest; changes no result.
        precision: Of gradients: "float32", "tf32" or "bfloat16-gradients"; success is decided in
            float32.
        out: Run folder, where the same call goes on; None forgets the records.
        data: Folder with local copies of data sets; without it, what HARNESS_DATA names.
        labels: File with all correct classes of each image, for suites that take several.
        plugins: Files or modules, as `--plugin` takes them.

    Returns:
        One row for each metric, and epsilon where it has several: `model`, `metric`, `epsilon`,
        `value`, `low`, `high`, `n`. `attrs["rows"]` holds the rows as `harness run --json`
        prints them, `attrs["records"]` all records, ready for `pandas.DataFrame`.

    Raises:
        HarnessError: The model breaks its contract, or the suite cannot be run.
    """
    registry = load_plugins(plugins)
    chosen = find_suite(str(suite), registry)
    chosen = plan.with_attacks(chosen, [attack_spec(name, "", registry) for name in attacks])
    check_objectives(chosen, "attacks", registry)
    card = registry.find("datasets", chosen.data.name).card
    flags = ["limited"] if limit and limit < len(plan.sample_ids(chosen, card)) else []
    with tempfile.TemporaryDirectory() as forgotten:
        if isinstance(model, nn.Module):
            registry, rows = _with_module(registry, model)
        else:
            rows = plan.contenders(chosen, [model], registry)
        request = Request(
            suite=chosen,
            contenders=rows,
            out=Path(out or forgotten),
            seed=seed,
            limit=limit,
            device=device,
            batch_size=batch_size,
            mode=Mode(precision),  # type: ignore[arg-type]
            place=_place(data, labels, limit),
            flags=(*flags, *(["other-attacks"] if attacks else [])),
        )
        return _frame(request, registry, model)


def _place(data: str | Path | None, labels: str | Path | None, limit: int | None) -> Place:
    folder = data or os.environ.get("HARNESS_DATA")
    return Place(
        Path(folder) if folder else None,
        limit=limit,
        labels=None if labels is None else Path(labels),
    )


def load_model(  # noqa: PLR0913 - where weights may come from
    name: str,
    *,
    suite: str = "digits-linf",
    weights: str | Path | None = None,
    sha256: str = "",
    runs: str | Path = "runs",
    data: str | Path | None = None,
    seed: int = 0,
    plugins: Sequence[str] = (),
) -> nn.Module:
    """A registered model with its weights, in evaluation mode, on the CPU.

    Args:
        name: `model`, or `model.recipe` for one that a run trained.
        suite: Whose images it is for: their classes, their size and the recipe's parameters.
        weights: File to load instead.
        sha256: Hash that the file must have.
        runs: Run folder in which the weights were trained.
        data: Folder with local copies of data sets, as for the training.
        seed: Of the training.
        plugins: Files or modules, as `--plugin` takes them.

    Raises:
        CheckpointError: Not trained yet, or the file does not fit.
    """
    registry = load_plugins(plugins)
    chosen = find_suite(suite, registry)
    card = registry.find("datasets", chosen.data.name).card
    contender = plan.contenders(chosen, [name], registry)[0]
    model = build_model(
        registry,
        contender.model,
        num_classes=card.num_classes,
        image_shape=chosen.data.canvas.image_shape,
        seed=seed,
    )
    if weights is not None:
        checkpoints.load_weights(model, Path(weights), sha256=sha256)
    elif contender.recipe:
        place = _place(data, None, None)
        folder = _trained(chosen, contender, registry, Path(runs), seed, place)
        told = checkpoints.read_card(folder) or {}
        checkpoints.load_weights(model, folder / checkpoints.WEIGHTS, sha256=told["sha256"])
    elif contender.weights != INCLUDED:
        checkpoints.load_weights(model, Path(contender.weights), sha256=contender.sha256)
    return model.eval()


def _trained(
    suite: Suite, contender: Contender, registry: Registry, runs: Path, seed: int, place: Place
) -> Path:
    ingredients = plan.training_ingredients(
        suite,
        contender,
        registry,
        fingerprint=known_fingerprint(registry, suite.data, suite.data.train, place),
        seed=seed,
    )
    folder = Store(runs).weights(plan.key(ingredients))
    if checkpoints.read_card(folder) is None:
        raise CheckpointError(
            f"{runs}: holds no weights of {contender.row} with seed {seed}; train them first: "
            f"harness train --suite {suite.name} --model {contender.row} --out {runs}"
        )
    return folder


def _with_module(registry: Registry, model: nn.Module) -> tuple[Registry, tuple[Contender, ...]]:
    """The registry with the module in it, under the name of its class."""
    name = f"notebook/{type(model).__name__}"

    def build(context: ModelContext) -> nn.Module:  # noqa: ARG001 - the signature of a builder
        return model

    owner = Plugin("notebook", "notebook", "", "module", "", _source_hash(model))
    entry = Entry("models", name, build, ModelCard(weights=INCLUDED), MappingProxyType({}), owner)
    entries = MappingProxyType({**registry.entries, ("models", name): (entry,)})
    return replace(registry, entries=entries), (Contender(name, weights=INCLUDED),)


def _source_hash(model: nn.Module) -> str:
    """The hash of the code of a module's class, or of its printed form where there is none."""
    try:
        return hashing.of_bytes(inspect.getsource(type(model)).encode() + repr(model).encode())
    except (OSError, TypeError):
        return hashing.of_bytes(repr(model).encode())


def _frame(request: Request, registry: Registry, model: nn.Module | str) -> pd.DataFrame:
    home = _device_of(model)
    try:
        result = run(request, registry)
    finally:
        if isinstance(model, nn.Module) and home is not None:
            model.to(home)
    for row, error in result.errors.items():
        raise HarnessError(f"{row}: {error}")
    if not result.rows:
        raise UsageError("nothing was evaluated")
    frame = pd.DataFrame([line for row in result.rows for line in _lines(row)])
    frame.attrs["rows"] = list(result.rows)
    frame.attrs["records"] = [
        {"model": cell.manifest["row"], **record.to_json()}
        for cell in result.cells
        for record in cell.records
    ]
    return frame


def _device_of(model: nn.Module | str) -> Any:
    if isinstance(model, str):
        return None
    first = next(model.parameters(), None)
    return None if first is None else first.device


def _lines(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The values of a row, one a line."""
    lines = []
    for metric, content in row.items():
        if not isinstance(content, dict):
            continue
        values = {None: content} if "value" in content else content
        lines += [
            {"model": row["model"], "metric": metric, "epsilon": epsilon}
            | {key: value[key] for key in ("value", "low", "high", "n")}
            for epsilon, value in values.items()
        ]
    return lines

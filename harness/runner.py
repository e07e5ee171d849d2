"""A run: train what has no weights, open each cell, do its missing shards, score the rows."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from harness import checkpoints, plan, provenance
from harness.api import RunEnd, RunStart, ShardEnd
from harness.errors import DataError, HarnessError, ModelError, StoreError
from harness.flops import count_flops
from harness.modes import FLOAT32, Mode
from harness.numerics import check_classifier, frozen, resolve_device, use_exact_float32
from harness.observers import Observers
from harness.scoring import Cell, collect, score
from harness.sources import Place
from harness.store import CellFolder, Store
from harness.trust import FEWEST, LOOKED, checks
from harness.weights import Trainer, Weights, obtain, trained
from harness.workbench import CellSpec, Job, Workbench

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import nn

    from harness.data import ImageData
    from harness.plan import Contender
    from harness.proposals import Source
    from harness.registry import Registry
    from harness.store import Shard
    from harness.suite import Suite
    from harness.tensors import Attack

BLACK_BOX = "square"
QUERIES = 200
"""Of the black-box search that gradient attacks must not fall behind."""


@dataclass(frozen=True)
class Request:
    """What is to be run.

    Attributes:
        suite: What is measured.
        contenders: On which rows.
        out: The run folder.
        seed: Of training and attacks.
        limit: First images of the suite that are used; None for all.
        device: "auto", "cpu", "cuda" ...
        executor: Registered name.
        workers: Processes that the executor may use.
        batch_size: Most images of one pass; 0 takes what is fastest.
        place: Where images come from.
        saves_all: Keep all adversarial images.
        mode: How gradients are computed.
        flags: What is known of the rows beforehand, such as "other-attacks".
        sources: Images that were made on other models, shown beside the suite's own attacks.
    """

    suite: Suite
    contenders: tuple[Contender, ...]
    out: Path
    seed: int = 0
    limit: int | None = None
    device: str = "auto"
    executor: str = "inline"
    workers: int = 1
    batch_size: int = 0
    place: Place = field(default_factory=Place)
    saves_all: bool = False
    mode: Mode = FLOAT32
    flags: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True)
class Result:
    """What a run ended with.

    Attributes:
        rows: The table, one object for each row that could be scored.
        cells: The same rows with their records.
        errors: What went wrong, by row.
        shards: The units of work of each row.
    """

    rows: tuple[dict[str, Any], ...]
    cells: tuple[Cell, ...]
    errors: dict[str, str] = field(default_factory=dict)
    shards: tuple[Shard, ...] = ()


@dataclass(frozen=True)
class _Run:
    """A request and what it is done with."""

    request: Request
    registry: Registry
    observers: Observers
    bench: Workbench
    data: ImageData
    shards: tuple[Shard, ...]

    @property
    def trainer(self) -> Trainer:
        request = self.request
        return Trainer(
            suite=request.suite,
            registry=self.registry,
            store=Store(request.out),
            bench=self.bench,
            seed=request.seed,
            device=request.device,
            place=request.place,
            told=self.observers.epoch_finished,
        )


def run(request: Request, registry: Registry, observers: Sequence[object] = ()) -> Result:
    """Do all of a request that is not done yet; the same request again goes on where it was.

    Args:
        request: What is to be run.
        registry: Plugins.
        observers: Objects with some of the watching hooks, beside those of plugins.

    Raises:
        StoreError: The run folder cannot be written.
        DataError: The images cannot be loaded.
    """
    current = _start(request, registry, observers)
    cells, errors = _opened(current)
    jobs = [Job(cell, shard) for cell in cells for shard in _missing(current, cell)]
    current.observers.run_started(
        RunStart(
            suite=request.suite.name,
            models=tuple(cell.contender.row for cell in cells),
            shards=len(jobs),
            finished=len(cells) * len(current.shards) - len(jobs),
            workers=1 if request.executor == "inline" else request.workers,
        )
    )
    errors |= _done(current, jobs)
    found = [collect(CellFolder(cell.folder), current.shards, request.flags) for cell in cells]
    scored = tuple(cell for cell in found if cell.records)
    rows = tuple(score(request.suite, cell, registry) for cell in scored)
    current.observers.run_finished(RunEnd(request.suite.name, rows))
    return Result(rows, scored, errors, current.shards)


def train(
    request: Request, registry: Registry, observers: Sequence[object] = ()
) -> dict[str, Path]:
    """Train what has no weights yet, and nothing else; the folder of each row's weights."""
    current = _start(request, registry, observers)
    return {
        contender.row: trained(current.trainer, contender)
        for contender in request.contenders
        if contender.recipe
    }


def _start(request: Request, registry: Registry, observers: Sequence[object]) -> _Run:
    use_exact_float32()
    warnings.filterwarnings("ignore", module="lightning_fabric")
    Store(request.out).check_writable()
    suite, bench = request.suite, Workbench(registry)
    data = bench.data(suite.data, suite.data.split, request.place)
    _check_copy(suite, data)
    shards = plan.shards(data.usable(), suite.shard_size, request.limit)
    return _Run(request, registry, Observers(registry, observers), bench, data, tuple(shards))


def _check_copy(suite: Suite, data: ImageData) -> None:
    """Refuse another copy of the images than the one that was asked for by name."""
    if suite.copy and data.is_prefix:
        raise DataError(
            f"{suite.board(suite.copy)}: the first images alone do not tell which copy they are "
            "of; fetch the split with 'harness fetch', or leave the copy out"
        )
    found = suite.data.copy_of(data.fingerprint)
    if suite.copy and found != suite.copy:
        raise DataError(
            f"{suite.board(suite.copy)}: the images here are "
            f"{f'the copy {found!r}' if found else 'the ones of the suite itself'}, fingerprint "
            f"{data.fingerprint}; run {suite.board(found)}, or give the other copy with --data"
        )


def _opened(current: _Run) -> tuple[list[CellSpec], dict[str, str]]:
    """The cells whose models can be attacked, and why the others cannot."""
    cells, errors = [], {}
    for contender in current.request.contenders:
        try:
            cells.append(_open(current, contender))
        except StoreError:
            raise
        except HarnessError as error:
            errors[contender.row] = str(error)
    return cells, errors


def _open(current: _Run, contender: Contender) -> CellSpec:
    """One cell, its model checked and its facts written down when it is new."""
    request = current.request
    weights = obtain(current.trainer, contender)
    draft = _spec(request, contender, weights, request.out)
    model = None if weights.sha256 else current.bench.model(draft)
    if request.suite.data.space == "model":
        draft = _in_model_space(draft, model or current.bench.model(draft))
    suite = draft.suite
    data = current.bench.data(suite.data, suite.data.split, request.place)
    ingredients = plan.cell_ingredients(
        suite,
        contender,
        current.registry,
        data=data.fingerprint,
        weights=weights.sha256 if model is None else checkpoints.state_hash(model),
        seed=request.seed,
        precision=request.mode.name,
        sources=[source.ingredients() for source in request.sources],
    )
    folder = Store(request.out).cell(plan.key(ingredients))
    cell = replace(draft, folder=folder.path)
    wanted, is_new = _wanted(current, cell), folder.manifest() is None
    if is_new or wanted:
        model = model or current.bench.model(cell)
        facts = _checked(current, cell, model, wanted)
        facts["flags"] += (*weights.flags, *(["transfer"] if cell.sources else []))
        folder.write_manifest(
            {
                **_description(current, contender, weights, ingredients),
                **facts,
            }
        )
    return cell


def _in_model_space(cell: CellSpec, model: nn.Module) -> CellSpec:
    """The cell with its images at the size that the model works at inside."""
    size = getattr(model, "input_size", None)
    if size is None:
        raise ModelError(
            f"{cell.contender.row}: says no input_size (height, width), so it cannot be attacked "
            "in model space; run the suite on its canvas"
        )
    data = cell.suite.data
    canvas = data.canvas.scaled(*size)
    return replace(cell, suite=replace(cell.suite, data=replace(data, canvas=canvas)))


def _spec(request: Request, contender: Contender, weights: Weights, folder: Path) -> CellSpec:
    return CellSpec(
        folder=folder,
        suite=request.suite,
        contender=contender,
        weights=weights.path,
        sha256=weights.sha256,
        seed=request.seed,
        device=request.device,
        batch_size=request.batch_size,
        place=request.place,
        saves_all=request.saves_all,
        mode=request.mode,
        sources=request.sources,
    )


def _wanted(current: _Run, cell: CellSpec) -> tuple[int, ...]:
    """The images that the checks shall look at; none where earlier ones looked at as many."""
    limit = current.request.limit or LOOKED
    ids = current.data.usable()[: max(FEWEST, min(limit, LOOKED))]
    known = CellFolder(cell.folder).checks()
    if known and known.looked >= len(ids) and known.epsilon == cell.suite.headline:
        return ()
    return ids


def _checked(
    current: _Run, cell: CellSpec, model: nn.Module, wanted: tuple[int, ...]
) -> dict[str, Any]:
    """Facts and flags of a model, or an error before any attack starts.

    What the checks of the model find has a file of its own: it grows with the images asked for.
    """
    row = cell.contender.row
    card = current.registry.find("datasets", cell.suite.data.name).card
    not_applicable = _not_applicable(current, cell, model)
    samples = current.bench.samples(cell, current.data.usable()[:FEWEST])
    with frozen(model):
        check_classifier(model, samples.images, card.num_classes, row)
        if wanted:
            _write_checks(current, cell, model, wanted)
        flops = count_flops(model, cell.suite.data.canvas.image_shape, row)
    total = sum(parameter.numel() for parameter in model.parameters())
    active = getattr(model, "active_parameters", lambda: total)()
    facts = {"parameters": total, "active_parameters": active, "flops": flops}
    data = current.data
    return {
        "facts": facts,
        "flags": ["partial-data"] if data.is_partial else [],
        "images": {"fingerprint": data.fingerprint, "is_prefix": data.is_prefix},
        "unlabelled": list(data.unlabelled()),
        "not_applicable": not_applicable,
    }


def _not_applicable(current: _Run, cell: CellSpec, model: nn.Module) -> list[str]:
    """Labels of the attacks that look at routes, where the model has none."""
    attacks = cell.suite.attacks
    applicable = current.bench.applicable(attacks, model)
    if not applicable and not cell.sources:
        raise ModelError(
            f"{cell.contender.row}: every attack looks at routes, and the model has none; add "
            "one that does not, such as 'apgd'"
        )
    return [attack.label for attack in attacks if attack not in applicable]


def _write_checks(current: _Run, cell: CellSpec, model: nn.Module, wanted: tuple[int, ...]) -> None:
    suite, find = cell.suite, current.registry.find
    threat = suite.threats()[suite.headline]
    samples = current.bench.samples(cell, wanted)
    try:
        found = checks(
            model,
            samples,
            find("objectives", "ce").load(),
            threat=None if threat.norm == "severity" else threat,
            black_box=_black_box(current.registry, suite),
            batch_size=cell.batch_size or LOOKED,
        )
    except HarnessError:
        raise
    except Exception as error:  # a model of a plugin may raise anything; the other rows go on
        raise ModelError(
            f"{cell.contender.row}: a check before the attacks raised {type(error).__name__}: "
            f"{error}; see that the model gives gradients, or try a smaller --batch-size"
        ) from error
    CellFolder(cell.folder).write_checks(replace(found, epsilon=suite.headline))


def _black_box(registry: Registry, suite: Suite) -> Attack | None:
    """The registered search with its few queries, where it knows the norm and has rivals."""
    rivals = [
        attack
        for attack in suite.attacks
        if not registry.find("attacks", attack.name).card.control
        and (not attack.epsilons or suite.headline in attack.epsilons)
    ]
    is_known = suite.norm in ("linf", "l2") and registry.has("attacks", BLACK_BOX)
    if not rivals or not is_known:
        return None
    entry = registry.find("attacks", BLACK_BOX)
    run: Attack = entry.load()
    return partial(run, **entry.settle({"queries": QUERIES}, "checks"))


def _description(
    current: _Run, contender: Contender, weights: Weights, ingredients: dict[str, Any]
) -> dict[str, Any]:
    request = current.request
    device = resolve_device(request.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "row": contender.row,
        "model": contender.model,
        "recipe": contender.recipe,
        "suite": {"name": request.suite.name, "version": request.suite.version},
        "protocol": request.suite.protocol,
        "weights": {"sha256": ingredients["weights"], "source": weights.source},
        "precision": request.mode.name,
        "ingredients": ingredients,
        "provenance": provenance.collect(
            current.registry, device=name, threads=torch.get_num_threads()
        ),
    }


def _missing(current: _Run, cell: CellSpec) -> list[Shard]:
    folder = CellFolder(cell.folder)
    return [
        shard
        for shard in current.shards
        if not folder.has(shard) or (cell.saves_all and not folder.has_images(shard))
    ]


def _done(current: _Run, jobs: Sequence[Job]) -> dict[str, str]:
    """Do the jobs; the first error of each row."""
    if not jobs:
        return {}
    request = current.request
    execute = current.registry.find("executors", request.executor).load()
    folders = {(job.cell.contender.row, job.shard.index): job for job in jobs}
    errors: dict[str, str] = {}
    for end in execute(jobs, registry=current.registry, workers=request.workers):
        if end.error:
            errors.setdefault(end.model, end.error)
        _log(folders[end.model, end.shard], end)
        current.observers.shard_finished(end)
    return errors


def _log(job: Job, end: ShardEnd) -> None:
    """Write a shard's end into the events of its cell."""
    CellFolder(job.cell.folder).log(
        "shard-failed" if end.error else "shard-finished",
        shard=job.shard.name,
        images=end.images,
        seconds=round(end.seconds, 3),
        error=end.error,
    )

"""Before the first shard: a request started, its models checked, its cells opened."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from harness import checkpoints, plan, provenance
from harness.errors import DataError, HarnessError, ModelError
from harness.flops import count_flops
from harness.modes import FLOAT32, PLAIN, Mode, TrainingMode
from harness.numerics import check_classifier, frozen, resolve_device, use_exact_float32
from harness.observers import Observers
from harness.sources import Place
from harness.store import CellFolder, Store
from harness.trust import FEWEST, LOOKED, checks
from harness.weights import Trainer, Weights, obtain
from harness.workbench import CellSpec, Workbench

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
    training: TrainingMode = PLAIN
    flags: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True)
class Opening:
    """A request and what it is done with.

    Attributes:
        request: What is to be run.
        registry: Plugins.
        observers: Whoever watches.
        bench: Of this process.
        data: Images of the suite.
        shards: All that the request asks for.
    """

    request: Request
    registry: Registry
    observers: Observers
    bench: Workbench
    data: ImageData
    shards: tuple[Shard, ...]

    @property
    def trainer(self) -> Trainer:
        """What trainings of this run share."""
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
            mode=request.training,
        )


def start(request: Request, registry: Registry, observers: Sequence[object] = ()) -> Opening:
    """A request with its images loaded and its run folder found writable.

    Raises:
        StoreError: The run folder cannot be written.
        DataError: The images cannot be loaded, or are another copy than was asked for.
    """
    use_exact_float32()
    warnings.filterwarnings("ignore", module="lightning_fabric")
    Store(request.out).check_writable()
    suite, bench = request.suite, Workbench(registry)
    data = bench.data(suite.data, suite.data.split, request.place)
    _check_copy(suite, data)
    shards = plan.shards(data.usable(), suite.shard_size, request.limit)
    return Opening(request, registry, Observers(registry, observers), bench, data, tuple(shards))


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


def open_cell(current: Opening, contender: Contender) -> CellSpec:
    """One cell, its model checked and its facts written down when it is new."""
    request = current.request
    _check_groups(current, contender)
    weights = obtain(current.trainer, contender)
    spec = draft(request, contender, weights, request.out)
    model = None if weights.sha256 else current.bench.model(spec)
    if request.suite.data.space == "model":
        spec = _in_model_space(spec, model or current.bench.model(spec))
    suite = spec.suite
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
    cell = replace(spec, folder=folder.path)
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


def _check_groups(current: Opening, contender: Contender) -> None:
    """Refuse shards that would cut the groups of a model that couples images."""
    group = current.registry.find("models", contender.model).card.group
    size = current.request.suite.shard_size
    if size % group:
        raise ModelError(
            f"{contender.row}: couples {group} images with each other, and shards of {size} would "
            f"cut its groups; set shard_size to a multiple of {group} in the suite"
        )


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


def draft(request: Request, contender: Contender, weights: Weights, folder: Path) -> CellSpec:
    """A cell before its key is known."""
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


def _wanted(current: Opening, cell: CellSpec) -> tuple[int, ...]:
    """The images that the checks shall look at; none where earlier ones looked at as many."""
    limit = current.request.limit or LOOKED
    ids = current.data.usable()[: max(FEWEST, min(limit, LOOKED))]
    known = CellFolder(cell.folder).checks()
    if known and known.looked >= len(ids) and known.epsilon == cell.suite.headline:
        return ()
    return ids


def _checked(
    current: Opening, cell: CellSpec, model: nn.Module, wanted: tuple[int, ...]
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


def _not_applicable(current: Opening, cell: CellSpec, model: nn.Module) -> list[str]:
    """Labels of the attacks that look at routes, where the model has none."""
    attacks = cell.suite.attacks
    applicable = current.bench.applicable(attacks, model)
    if not applicable and not cell.sources:
        raise ModelError(
            f"{cell.contender.row}: every attack looks at routes, and the model has none; add "
            "one that does not, such as 'apgd'"
        )
    return [attack.label for attack in attacks if attack not in applicable]


def _write_checks(
    current: Opening, cell: CellSpec, model: nn.Module, wanted: tuple[int, ...]
) -> None:
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
    current: Opening, contender: Contender, weights: Weights, ingredients: dict[str, Any]
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

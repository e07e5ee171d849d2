"""Transfer: attack some models, judge others on the images that this made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from harness import runner
from harness.errors import UsageError
from harness.modes import FLOAT32
from harness.plan import contenders
from harness.proposals import Source, controls, label, saved, source, transferable
from harness.runner import Request, Result
from harness.stats import share
from harness.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from harness.plan import Contender
    from harness.records import Record, Value
    from harness.registry import Registry
    from harness.scoring import Cell
    from harness.suite import Suite


class Origins(NamedTuple):
    """Where a run's adversarial images come from."""

    rows: tuple[Contender, ...] = ()  # models to attack, unless that is done
    saved: tuple[Source, ...] = ()  # images that lie in a folder


@dataclass(frozen=True)
class Crossing:
    """What the attacks on one model do to another, at one epsilon.

    Attributes:
        source: Row that was attacked.
        target: Row that was shown the images.
        robust_accuracy: Of the target, over all images, under all attacks of the source together.
        attack_success_rate: Share of fooled images among those that both have right.
    """

    source: str
    target: str
    robust_accuracy: Value
    attack_success_rate: Value


class Matrix(NamedTuple):
    """Every model under the attacks on every model."""

    crossings: tuple[Crossing, ...]
    attacked: Result  # as an ordinary run has it
    judged: Result  # on the images of all

    @property
    def errors(self) -> dict[str, str]:
        """What went wrong, by row."""
        return self.attacked.errors | self.judged.errors


def origins(suite: Suite, wanted: Sequence[str], registry: Registry) -> Origins:
    """What `--transfer-from` names: models, as `--model` names them, or folders of npz files.

    Raises:
        UnknownName: A model that nobody registered.
        UsageError: A folder or an attacked model has nothing to show.
    """
    folders = [name for name in wanted if _is_folder(name, registry)]
    models = [name for name in wanted if name not in folders]
    rows = contenders(suite, models, registry) if models else ()
    check_transferable(suite, registry, is_attacking=bool(rows))
    return Origins(rows, tuple(saved(Path(folder), suite, registry) for folder in folders))


def _is_folder(name: str, registry: Registry) -> bool:
    model = name.rpartition(".")[0]
    is_model = registry.has("models", name) or registry.has("models", model)
    return Path(name).is_dir() and not is_model


def check_transferable(suite: Suite, registry: Registry, *, is_attacking: bool = True) -> None:
    """Refuse suites whose images cannot be shown to other models.

    Raises:
        UsageError: It is a preview, or has no attack to make such images.
    """
    if suite.protocol == "descending":
        raise UsageError(
            f"suite {suite.name}: protocol 'descending' keeps images of larger balls, which may "
            "not be shown in smaller ones; transfer with 'nested' or 'independent'"
        )
    if is_attacking and not transferable(suite, registry):
        raise UsageError(
            f"suite {suite.name}: all its attacks are controls or diagnoses, which make no images "
            "to transfer; name another with --attack, such as pgd"
        )


def run(
    request: Request, given: Origins, registry: Registry, observers: Sequence[object] = ()
) -> Result:
    """Judge rows on images that were made on other models, which are attacked where need be.

    Args:
        request: Of the rows to judge; its attacks are run on the models of `given`.
        given: Where the images come from.
        registry: Plugins.
        observers: As of `runner.run`.

    Returns:
        The judged rows; none where a model of `given` could not be attacked on all images.

    Raises:
        StoreError: The run folder cannot be written.
        DataError: The images cannot be loaded.
    """
    made = _made(replace(request, contenders=given.rows), registry, observers)
    if made.result.errors:
        return Result((), (), made.result.errors)
    return _judged(request, (*made.sources, *given.saved), registry, observers)


def matrix(
    request: Request, epsilon: str, registry: Registry, observers: Sequence[object] = ()
) -> Matrix:
    """Attack all rows of a request, and judge each on the images of all.

    Args:
        request: Of the rows.
        epsilon: Radius of the numbers, as the suite writes it.
        registry: Plugins.
        observers: As of `runner.run`.

    Returns:
        Without the rows that could not be attacked on all images, which are among the errors.
    """
    made = _made(request, registry, observers)
    names = [source.name for source in made.sources]
    rows = tuple(contender for contender in request.contenders if contender.row in names)
    if not rows:
        return Matrix((), made.result, Result((), ()))
    judged = _judged(replace(request, contenders=rows), made.sources, registry, observers)
    return Matrix(tuple(crossings(judged.cells, made.sources, epsilon)), made.result, judged)


class _Made(NamedTuple):
    sources: tuple[Source, ...]
    result: Result


def _made(request: Request, registry: Registry, observers: Sequence[object]) -> _Made:
    """The adversarial images of each row of a request, made now where they are not there."""
    if not request.contenders:
        return _Made((), Result((), ()))
    result = runner.run(replace(request, saves_all=True), registry, observers)
    errors, sources = dict(result.errors), []
    for cell in result.cells:
        row = cell.manifest["row"]
        kept = [Store(request.out).cell(cell.key).images(shard) for shard in result.shards]
        files = [path for path in kept if path is not None]
        found = source(row, cell.key, files, request.suite, registry)
        if not found.attacks:
            errors.setdefault(
                row, f"{row}: no attack made images to transfer; name another with --attack"
            )
        if row not in errors:
            sources.append(found)
    return _Made(tuple(sources), replace(result, errors=errors))


def _judged(
    request: Request, sources: Sequence[Source], registry: Registry, observers: Sequence[object]
) -> Result:
    """The rows of a request under the images of all sources, in whatever order they were named."""
    by_name = {source.name: source for source in sorted(sources, key=attrgetter("name"))}
    shown = replace(
        request,
        suite=replace(request.suite, attacks=controls(request.suite, registry)),
        sources=tuple(by_name.values()),
        mode=FLOAT32,  # nobody asks for a gradient
    )
    return runner.run(shown, registry, observers)


def crossings(cells: Sequence[Cell], sources: Iterable[Source], epsilon: str) -> Iterable[Crossing]:
    """The numbers of each source on each cell.

    Args:
        cells: Of the judged rows, each shown the images of all sources.
        sources: Rows among those of the cells.
        epsilon: Radius, as the suite writes it.
    """
    right = {
        cell.manifest["row"]: {record.sample for record in cell.records if record.is_correct}
        for cell in cells
    }
    for attacked in sources:
        labels = {label(attack, attacked.name) for attack in attacked.attacks}
        for cell in cells:
            target = cell.manifest["row"]
            robust = _robust(cell.records, labels, epsilon)
            both = right[target] & right.get(attacked.name, set()) & robust.keys()
            fooled = sum(not robust[sample] for sample in both)
            yield Crossing(
                attacked.name,
                target,
                share(sum(robust.values()), len(robust), epsilon=epsilon),
                share(fooled, len(both), epsilon=epsilon),
            )


def _robust(records: Iterable[Record], labels: set[str], epsilon: str) -> dict[int, bool]:
    """Whether each image stays right under all of some attacks."""
    robust: dict[int, bool] = {}
    for record in records:
        if record.attack in labels and record.epsilon == epsilon:
            robust[record.sample] = robust.get(record.sample, True) and record.is_robust
    return robust

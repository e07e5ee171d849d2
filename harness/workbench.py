"""What every executor's process does: open a cell once, then evaluate its shards."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from harness import checkpoints, plan
from harness.api import ShardEnd
from harness.archive import GALLERY, packed
from harness.building import bound_attack, build_model
from harness.cell import Findings, Protocol, Setting, evaluate
from harness.data import ImageData, load_images
from harness.errors import HarnessError, StoreError
from harness.judging import Defence
from harness.modes import FLOAT32, Mode
from harness.numerics import (
    ROW_GROUP,
    Batches,
    fastest_batch,
    frozen,
    resolve_device,
    use_exact_float32,
)
from harness.plan import PRETRAINED
from harness.prepare import prepared
from harness.proposals import Source, proposals
from harness.seeing import input_gradient
from harness.store import CellFolder, Shard
from harness.tensors import Classifier, RoutedClassifier, Samples

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from harness.canvas import Canvas
    from harness.cards import ModelCard
    from harness.plan import Contender
    from harness.registry import Registry
    from harness.sources import Place
    from harness.suite import AttackSpec, DataSpec, Suite
    from harness.tensors import Images

SHOWN = 8
"""Images of each cell that are always kept, for the report."""


@dataclass(frozen=True)
class CellSpec:
    """One cell, as it travels to a worker.

    Attributes:
        folder: Where its records go.
        suite: What is measured.
        contender: On which row.
        weights: File of weights; empty where building the model brings them.
        sha256: Of that file.
        seed: Of attacks, and of the model's initialisation.
        device: Name of the device; "auto" is settled in each worker.
        batch_size: Most images of one pass; 0 takes what is fastest.
        place: Where images come from.
        saves_all: Keep all adversarial images, not only the gallery's.
        mode: How gradients are computed.
        sources: Images that were made on other models, shown beside the suite's own attacks.
    """

    folder: Path
    suite: Suite
    contender: Contender
    weights: str
    sha256: str
    seed: int
    device: str
    batch_size: int
    place: Place
    saves_all: bool = False
    mode: Mode = FLOAT32
    sources: tuple[Source, ...] = ()


class Job(NamedTuple):
    """One shard of one cell."""

    cell: CellSpec
    shard: Shard


@dataclass(frozen=True)
class Workbench:
    """Performs jobs in one process, with the model of the last cell kept open.

    Attributes:
        registry: Plugins of this process.
    """

    registry: Registry
    _open: dict[Path, Setting] = field(default_factory=dict)
    _data: dict[tuple[str, Canvas, str], ImageData] = field(default_factory=dict)

    def perform(self, job: Job) -> ShardEnd:
        """Evaluate one shard and write it down.

        Returns:
            With the error where the model, a plugin or memory failed it.

        Raises:
            StoreError: The folder cannot be written: no other shard could be either.
        """
        start = time.monotonic()
        tell = partial(ShardEnd, job.cell.contender.row, job.shard.index, images=len(job.shard.ids))
        try:
            self._perform(job)
        except StoreError:
            raise
        except HarnessError as error:
            return tell(seconds=time.monotonic() - start, error=str(error))
        return tell(seconds=time.monotonic() - start)

    def samples(self, cell: CellSpec, ids: tuple[int, ...]) -> Samples:
        """Some images of a cell's suite, on its device."""
        data = self.data(cell.suite.data, cell.suite.data.split, cell.place)
        found = data.samples(torch.tensor(ids, dtype=torch.int64))
        device = resolve_device(cell.device)
        return Samples(*(None if part is None else part.to(device) for part in found))  # type: ignore[arg-type]

    def data(self, spec: DataSpec, split: str, place: Place) -> ImageData:
        """The images of a suite's split, loaded once."""
        known = (spec.name, spec.canvas, split)
        if known not in self._data:
            self._data[known] = load_images(self.registry, spec, split, place)
        return self._data[known]

    def model(self, cell: CellSpec) -> nn.Module:
        """A cell's model with its weights, on its device.

        Convolutions run with channels last, which made a gradient 1.4 times as fast on a CPU
        (benchmarks/README.md) and leaves transformers as fast as they were.
        """
        card = self.registry.find("datasets", cell.suite.data.name).card
        model = build_model(
            self.registry,
            cell.contender.model,
            num_classes=card.num_classes,
            image_shape=cell.suite.data.canvas.image_shape,
            seed=cell.seed,
            **({PRETRAINED: True} if cell.contender.weights == PRETRAINED else {}),
        )
        if cell.weights:
            checkpoints.load_weights(model, Path(cell.weights), sha256=cell.sha256)
        return model.to(resolve_device(cell.device), memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def _perform(self, job: Job) -> None:
        use_exact_float32()
        cell = job.cell
        if cell.folder not in self._open:
            self._open.clear()
            setting = self._setting(cell)
            self._open[cell.folder] = setting
            CellFolder(cell.folder).log(
                "opened",
                batch_size=setting.defence.batches.size,
                is_folded=setting.defence.surrogate is not None,
            )
        setting = self._open[cell.folder]
        with frozen(setting.defence.model):
            samples = self.samples(cell, job.shard.ids)
            findings = evaluate(setting, samples)
        folder = CellFolder(cell.folder)
        _keep_images(folder, job, samples, findings)
        folder.write(job.shard, findings.records)

    def _setting(self, cell: CellSpec) -> Setting:
        model = self.model(cell)
        threats, loss = cell.suite.threats(), self.registry.find("objectives", "ce").load()
        own = self.applicable(cell.suite.attacks, model)
        shown = [proposals(source, threats, loss) for source in cell.sources]
        return Setting(
            defence=self._defence(cell, model),
            attacks=[
                *(
                    bound_attack(
                        attack,
                        self.registry,
                        is_routed=isinstance(model, RoutedClassifier),
                        is_coupled=self._card(cell).group > 1,
                    )
                    for attack in own
                ),
                *chain(*shown),
            ],
            threats=threats,
            protocol=Protocol(cell.suite.protocol),
            seed=cell.seed,
        )

    def _defence(self, cell: CellSpec, model: Classifier) -> Defence:
        """The model with its cheaper copy, and as many images at once as are fast.

        Where results depend on who is passed together, the shard alone decides, not a clock, and
        a model that couples images is climbed itself.
        """
        card = self._card(cell)
        usable = self.data(cell.suite.data, cell.suite.data.split, cell.place).usable()
        images = self.samples(cell, usable[:ROW_GROUP]).images
        surrogate = prepared(model, images, cell.mode) if card.group == 1 else None
        size = cell.batch_size or cell.suite.shard_size
        if not (cell.batch_size or card.group > 1 or card.draws > 1):
            size = _fastest(surrogate.model if surrogate else model, images, largest=size)
        return Defence(
            model=model,
            batches=Batches(size, is_bucketed=cell.mode.is_bucketed, group=card.group),
            probes=self._probes(cell.suite, "attacked"),
            clean_probes=self._probes(cell.suite, "clean"),
            surrogate=surrogate,
            draws=card.draws,
        )

    def _card(self, cell: CellSpec) -> ModelCard:
        card: ModelCard = self.registry.find("models", cell.contender.model).card
        return card

    def _probes(self, suite: Suite, on: str) -> list[Callable[..., Any]]:
        """Those of a suite that look at attacked, or at clean images."""
        entries = [self.registry.find("probes", name) for name in suite.probes]
        return [entry.load() for entry in entries if entry.card.on == on]

    def applicable(self, attacks: Sequence[AttackSpec], model: Classifier) -> list[AttackSpec]:
        """The attacks that have a meaning for a model."""
        if isinstance(model, RoutedClassifier):
            return list(attacks)
        return [attack for attack in attacks if not plan.needs_routes(attack, self.registry)]


def _fastest(model: Classifier, images: Images, *, largest: int) -> int:
    """The number of images whose gradients are fastest together."""

    def run(size: int) -> None:
        points = images[torch.arange(size, device=images.device) % len(images)].requires_grad_()
        input_gradient(model(points).square().sum(dim=1), points)
        if images.device.type == "cuda":
            torch.cuda.synchronize()

    with frozen(model), torch.enable_grad():
        return fastest_batch(run, largest=largest)


def _keep_images(folder: CellFolder, job: Job, samples: Samples, findings: Findings) -> None:
    if job.shard.index == 0:
        folder.write_images(GALLERY, packed(samples, findings.adversarial, SHOWN))
    if job.cell.saves_all:
        content = packed(samples, findings.adversarial, len(samples.ids))
        folder.write_images(job.shard.name, content)

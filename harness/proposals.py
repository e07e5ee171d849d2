"""Adversarial images that were made on another model, proposed as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness import hashing
from harness.archive import GALLERY, Library, member, members
from harness.errors import DataError, UsageError
from harness.judging import BoundAttack
from harness.tensors import Images, Labels, Loss, Noise, Objective
from harness.threat import ThreatModel
from harness.views import DIAGNOSTIC

if TYPE_CHECKING:
    from harness.registry import Registry
    from harness.suite import AttackSpec, Suite

SAME = 1e-6
"""Largest difference of two pixels that are the same: far below one step of 8 bits (4e-3)."""


@dataclass(frozen=True)
class Source:
    """Adversarial images that were made on a model.

    Attributes:
        name: Row of that model; stands behind the @ in the labels of its attacks.
        identity: Key of the cell that made them, or hash of the files: never where they lie.
        files: As `--save-adversarial` writes them.
        attacks: Where there are images of each attack: epsilons, as the suite writes them.
    """

    name: str
    identity: str
    files: tuple[Path, ...]
    attacks: Mapping[str, tuple[str, ...]]

    def ingredients(self) -> dict[str, Any]:
        """What the records of a model that is shown these images depend on."""
        attacks = {attack: list(epsilons) for attack, epsilons in self.attacks.items()}
        return {"name": self.name, "identity": self.identity, "attacks": attacks}


def label(attack: str, source: str) -> str:
    """The name in records of an attack whose images were made on another model.

    >>> label("pgd", "cnn/digits.standard")
    'pgd@cnn/digits.standard'
    """
    return f"{attack}@{source}"


def controls(suite: Suite, registry: Registry) -> tuple[AttackSpec, ...]:
    """The yardsticks among a suite's attacks: every model meets them itself."""
    return tuple(
        attack for attack in suite.attacks if registry.find("attacks", attack.name).card.control
    )


def transferable(suite: Suite, registry: Registry) -> tuple[AttackSpec, ...]:
    """The attacks whose images are shown to other models: no control, and judged as a whole."""
    own = controls(suite, registry)
    return tuple(
        attack for attack in suite.attacks if attack not in own and attack.view not in DIAGNOSTIC
    )


def source(
    name: str, identity: str, files: Sequence[Path], suite: Suite, registry: Registry
) -> Source:
    """What files hold for a suite: images of attacks that are transferable, or not the suite's.

    Raises:
        DataError: A file holds something else.
    """
    shown = {attack.label for attack in transferable(suite, registry)}
    kept = {attack.label for attack in suite.attacks} - shown
    texts = {epsilon.text.replace("/", "_"): epsilon.text for epsilon in suite.epsilons}
    attacks: dict[str, tuple[str, ...]] = {}
    for array in members(files):
        attack, _, epsilon = array.rpartition("@")
        if attack and attack not in kept and epsilon in texts:
            attacks[attack] = (*attacks.get(attack, ()), texts[epsilon])
    return Source(name, identity, tuple(files), attacks)


def saved(folder: Path, suite: Suite, registry: Registry) -> Source:
    """The images of a folder of npz files, named by their hash.

    Raises:
        UsageError: There are none, or none at the suite's headline epsilon.
        DataError: A file holds something else.
    """
    files = [path for path in sorted(folder.glob("*.npz")) if path.stem != GALLERY]
    if not files:
        raise UsageError(
            f"--transfer-from {folder}: holds no npz files of all images; give the folder images/ "
            "of a cell that was run with --save-adversarial"
        )
    identity = hashing.of_sources(folder, files)
    found = source(f"saved-{identity[:8]}", identity, files, suite, registry)
    if not any(suite.headline in epsilons for epsilons in found.attacks.values()):
        raise UsageError(
            f"--transfer-from {folder}: holds no images at the headline epsilon of suite "
            f"{suite.name} of an attack that is no control, arrays named "
            f"{member('ATTACK', suite.headline)}; make them with "
            f"'harness run --suite {suite.name} --save-adversarial'"
        )
    return found


def proposals(
    source: Source, threats: Mapping[str, ThreatModel], loss: Loss
) -> Iterator[BoundAttack]:
    """Each attack of a source, as one that proposes its saved images.

    Args:
        source: Whose images.
        threats: Ball of each epsilon as the suite writes it.
        loss: Never asked for.

    Raises:
        DataError: A file cannot be read.
    """
    library = Library.of(source.files)
    for attack, epsilons in source.attacks.items():
        arrays = {threats[epsilon].epsilon: member(attack, epsilon) for epsilon in epsilons}
        run = Proposals(library, arrays)
        yield BoundAttack(label(attack, source.name), run, loss, {}, epsilons)


@dataclass(frozen=True)
class Proposals:
    """An attack that proposes what was saved, and projects nothing.

    Samples are found by their ids, in whatever order they come; one that has no image raises, and
    so becomes a failed record.

    Attributes:
        library: The images.
        arrays: Their names, by epsilon.
    """

    library: Library
    arrays: Mapping[float, str]

    def __call__(
        self,
        objective: Objective,  # noqa: ARG002 - the signature of an attack
        images: Images,
        labels: Labels,  # noqa: ARG002
        threat: ThreatModel,
        *,
        noise: Noise,
        **parameters: Any,  # noqa: ARG002
    ) -> Images:
        """The saved images of these samples.

        Raises:
            LookupError: A sample has none.
            DataError: They were made from other clean images.
        """
        samples = noise.samples.tolist()
        clean = self.library.images("clean", samples).to(images.device)
        self._refuse_others(clean, images, samples)
        return self.library.images(self.arrays[threat.epsilon], samples).to(images.device)

    def _refuse_others(self, saved: torch.Tensor, images: Images, samples: list[int]) -> None:
        is_same = torch.zeros(len(samples), dtype=torch.bool)
        if saved.shape == images.shape:
            is_same = (saved - images).abs().flatten(1).amax(1).cpu() <= SAME
        if bool(is_same.all()):
            return
        first = samples[int((~is_same).nonzero()[0])]
        raise DataError(
            f"{self.library.file_and_row(first)[0]}: its clean image of sample {first}, of shape "
            f"{tuple(saved.shape[1:])}, is not the suite's, of shape {tuple(images.shape[1:])}; "
            "attack the source on this suite and this copy of the data"
        )

"""Entries tried again: some images attacked once more, or shown what others handed in."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from harness import checkpoints, hashing
from harness.bits import Bits, pack
from harness.entries import Entry
from harness.errors import EntryError, UsageError
from harness.numerics import Batches, frozen
from harness.opening import Opening, Request, draft, start
from harness.plan import Contender
from harness.proof import Finding
from harness.runner import run
from harness.seeing import predict
from harness.tensors import Images, Samples, is_fooled
from harness.weights import INCLUDED, obtain

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

    from harness.registry import Registry
    from harness.suite import Suite

BATCH = 128
LARGEST = 16 * 2**30
"""Bytes of the images that are handed in, unpacked."""


def contender_of(entry: Entry, registry: Registry, weights: str = "") -> Contender:
    """The row that an entry is of, with the weights that it was measured with.

    Args:
        entry: Whose row.
        registry: Where its model is.
        weights: File of the weights; without it the recipe trains them, or the plugin brings them.
    """
    model = entry.content["model"]
    if weights:
        return Contender(model["name"], weights=weights, sha256=entry.content["weights"]["sha256"])
    if model["recipe"]:
        return Contender(model["name"], recipe=model["recipe"])
    card = registry.find("models", model["name"]).card
    return Contender(model["name"], weights=card.weights or INCLUDED, sha256=card.sha256)


def replayed(entry: Entry, request: Request, registry: Registry, *, count: int) -> list[Finding]:
    """Attack some images of an entry again and compare what they withstand.

    Which images follows from a hash of the entry, so that nobody can choose them. Where the model
    couples images, whole groups are attacked.

    Args:
        entry: What is doubted.
        request: Suite, run folder, device and the one contender.
        registry: Plugins.
        count: Images.
    """
    refuse_other_suite(entry, request.suite)
    _opened(entry, request, registry)
    chosen = _chosen(entry, count, _group(request, registry))
    data = replace(request.suite.data, samples=chosen)
    suite = replace(request.suite, data=data, copy="")  # a few images tell no copy
    again = replace(request, suite=suite, seed=int(entry.content["model"]["seed"]), limit=None)
    result = run(again, registry)
    if result.errors or not result.cells:
        return [Finding(entry.where, f"cannot be tried again: {'; '.join(result.errors.values())}")]
    cell = result.cells[0]
    others = _other_weights(entry, cell.manifest["weights"]["sha256"])
    if others:
        return [Finding(entry.where, f"cannot be tried again: {others}")]
    places = {sample: place for place, sample in enumerate(entry.samples)}
    wrong: dict[tuple[str, str], int] = {}
    for record in cell.records:
        key = (record.attack, record.epsilon)
        if bool(entry.robust_alone(*key)[places[record.sample]]) != record.is_robust:
            wrong[key] = wrong.get(key, 0) + 1
    return [
        Finding(entry.where, f"{attack} at {epsilon}: {number} of {len(chosen)} images differ")
        for (attack, epsilon), number in wrong.items()
    ]


def _opened(entry: Entry, request: Request, registry: Registry) -> Opening:
    """The request of the entry's seed, on the entry's images.

    Raises:
        EntryError: The images here are others.
    """
    current = start(replace(request, seed=int(entry.content["model"]["seed"])), registry)
    told, found = entry.content["data"]["fingerprint"], current.data.fingerprint
    is_whole = request.suite.data.space != "model" and "limited" not in entry.content["flags"]
    if is_whole and told != found:
        raise EntryError(
            f"{entry.where}: the images here are {found[:12]}, those of the entry {told[:12]}; "
            "give the same copy with --data"
        )
    return current


def _other_weights(entry: Entry, found: str) -> str:
    """What is wrong with weights of this hash; empty where they are the entry's."""
    told = entry.content["weights"]["sha256"]
    if found == told:
        return ""
    return (
        f"the weights here are {found[:12]}, those of the entry {told[:12]}; "
        "give their file with --weights"
    )


def refuse_other_suite(entry: Entry, suite: Suite) -> None:
    """Refuse an entry of another suite or version: its images and attacks are others.

    Raises:
        UsageError: It is one.
    """
    about = entry.content["suite"]
    told, asked = (about["name"], about["version"]), (suite.name, suite.version)
    if entry.content["reported"]:
        raise UsageError(f"{entry.where}: is reported, and has no bits of its images")
    if told != asked:
        raise UsageError(
            f"{entry.where}: is of suite {told[0]} version {told[1]}, not of {asked[0]} version "
            f"{asked[1]}; name its own with --suite"
        )


def _group(request: Request, registry: Registry) -> int:
    """Consecutive images that the request's model couples."""
    group: int = registry.find("models", request.contenders[0].model).card.group
    return group


def _chosen(entry: Entry, count: int, group: int) -> tuple[int, ...]:
    """At least so many images, in whole groups, in the entry's order."""
    key = hashing.of_value(entry.content["bits"])
    samples = entry.samples
    starts = range(0, len(samples), group)
    order = sorted(starts, key=lambda place: hashing.of_value([key, samples[place]]))
    wanted = sorted(order[: -(-count // group)])
    return tuple(sample for place in wanted for sample in samples[place : place + group])


class Handed(NamedTuple):
    """What somebody hands in against an entry."""

    ids: tuple[int, ...]
    images: Images
    sha256: str  # of the file


@dataclass(frozen=True)
class Broken:
    """What of it counts.

    Attributes:
        entry: With the images that it broke among its best known.
        epsilon: Ball in which they lie.
        broken: Images that are wrong now and were robust before.
        known: Images that are wrong, but were so before.
        refused: Why others do not count, by sample id.
    """

    entry: Entry
    epsilon: str
    broken: tuple[int, ...]
    known: tuple[int, ...]
    refused: Mapping[int, str]


def read_handed(path: Path) -> Handed:
    """The images of an npz file: `ids`, and `images` in [0, 1] as float32, one for each id.

    Raises:
        UsageError: It is no such file.
    """
    try:
        with zipfile.ZipFile(path) as file:
            if sum(member.file_size for member in file.infolist()) > LARGEST:
                raise UsageError(f"{path}: more than {LARGEST >> 30} GiB; hand in fewer images")
        with np.load(path, allow_pickle=False) as file:
            ids, images = file["ids"], file["images"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(
            f"{path}: not an npz file with 'ids' and 'images': {error}; write it with "
            "numpy.savez(path, ids=..., images=...)"
        ) from error
    if ids.dtype.kind not in "iu" or images.dtype.kind != "f":
        raise UsageError(
            f"{path}: ids of {ids.dtype} and images of {images.dtype}; ids must be whole numbers "
            "and images floats in [0, 1]"
        )
    if ids.ndim != 1 or images.ndim != 4 or len(ids) != len(images):  # noqa: PLR2004 - a batch
        raise UsageError(
            f"{path}: {ids.shape} ids and images of shape {images.shape}; give one image of "
            "(channel, height, width) for each id"
        )
    listed = tuple(int(sample) for sample in ids)
    if len(set(listed)) < len(listed):
        raise UsageError(f"{path}: a sample id stands twice; hand in one image for each")
    return Handed(listed, torch.from_numpy(images.astype(np.float32)), hashing.of_file(path))


def broken(
    entry: Entry,
    handed: Handed,
    request: Request,
    registry: Registry,
    *,
    epsilon: str,
    source: str,
) -> Broken:
    """Judge images by the rules of every attack: in the ball and in [0, 1], on the model itself.

    Args:
        entry: What they are to lower.
        handed: The images.
        request: Suite, run folder, device and the one contender.
        registry: Plugins.
        epsilon: Ball, as the suite writes it.
        source: Who found them, and how.

    Raises:
        EntryError: The weights or the images here are not those of the entry.
        UsageError: The suite is not the entry's, or an image none of its; or the model couples
            images, so that none can be judged without its mates.
    """
    refuse_other_suite(entry, request.suite)
    group = _group(request, registry)
    if group > 1:
        raise UsageError(
            f"{entry.where}: the model couples {group} images with each other, so that images "
            "handed in one by one cannot be judged; break the row of the same model without drops"
        )
    strangers = sorted(set(handed.ids) - set(entry.samples))
    if strangers:
        raise UsageError(f"sample {strangers[0]} is not one of the entry's {entry.count} images")
    model, samples = _loaded(entry, request, registry, handed.ids)
    images = handed.images.to(samples.images.device)
    if images.shape != samples.images.shape:
        raise UsageError(
            f"images of shape {tuple(images.shape[1:])}; the suite's are "
            f"{tuple(samples.images.shape[1:])}"
        )
    threat = request.suite.threats()[epsilon]
    allowed = images.flatten(1).isfinite().all(dim=1) & threat.contains(images, samples.images)
    with frozen(model):
        logits = predict(model, images, batches=Batches(BATCH))
    fooled = is_fooled(logits, samples.labels, samples.accepted) & logits.isfinite().all(dim=1)
    before = entry.best_known(epsilon)
    if before is None:
        raise EntryError(f"{entry.where}: has no bits at {epsilon}")
    return _counted(entry, handed, epsilon, source, before, allowed.tolist(), fooled.tolist())


def _counted(  # noqa: PLR0913 - one row of columns
    entry: Entry,
    handed: Handed,
    epsilon: str,
    source: str,
    before: Bits,
    allowed: list[bool],
    fooled: list[bool],
) -> Broken:
    places = {sample: place for place, sample in enumerate(entry.samples)}
    bits = np.zeros(entry.count, dtype=bool)
    refused, known = {}, []
    for sample, is_allowed, is_wrong in zip(handed.ids, allowed, fooled, strict=True):
        if not is_allowed:
            refused[sample] = "outside the ball or [0, 1], or not finite"
        elif not is_wrong:
            refused[sample] = "the model has it right"
        elif not before[places[sample]]:
            known.append(sample)
        else:
            bits[places[sample]] = True
    found = tuple(sample for sample in handed.ids if bits[places[sample]])
    addition = {"epsilon": epsilon, "broken": pack(bits), "source": source, "sha256": handed.sha256}
    best = [*entry.content["best_known"], *([addition] if found else [])]
    content: dict[str, Any] = {**entry.content, "best_known": best}
    return Broken(Entry(content, entry.where), epsilon, found, tuple(known), refused)


def _loaded(
    entry: Entry, request: Request, registry: Registry, ids: tuple[int, ...]
) -> tuple[nn.Module, Samples]:
    """The model of an entry, by the hash of its weights, and some images of its suite."""
    if request.suite.data.space == "model":
        raise UsageError(
            f"suite {request.suite.name}: images in each model's own size cannot be handed in; "
            "break a board of the canvas"
        )
    current = _opened(entry, request, registry)
    contender = request.contenders[0]
    weights = obtain(current.trainer, contender)
    cell = draft(current.request, contender, weights, request.out)
    model = current.bench.model(cell)
    others = _other_weights(entry, weights.sha256 or checkpoints.state_hash(model))
    if others:
        raise EntryError(f"{entry.where}: {others}")
    return model, current.bench.samples(cell, ids)

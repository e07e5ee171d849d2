"""Run the official AutoPGD on drawn images, and keep what it did in tests/golden/apgd.

pip install pyautoattack==0.2.0
python tests/golden/make_autopgd.py [--against FOLDER]

With --against, the package is first held to the numbers in FOLDER that the official repository
gave on photographs; every array must be equal.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch.nn import functional

if TYPE_CHECKING:
    from pyautoattack.autopgd_base import APGDAttack

HERE = Path(__file__).parent / "apgd"
COUNT, SIZE, WRONG = 9, 16, (4,)
RUNS = {
    "drawn_ce_linf": ("Linf", 2 / 255, 20, "ce"),
    "drawn_dlr_linf": ("Linf", 2 / 255, 20, "dlr"),
    "drawn_ce_l2": ("L2", 0.12, 20, "ce"),
    "drawn_dlr_l2": ("L2", 0.12, 20, "dlr"),
    "drawn_t_linf": ("Linf", 2 / 255, 10, "dlr-targeted"),
}
TRACED = 1
"""Images whose every point is kept, of the runs on cross-entropy."""


class Single(NamedTuple):
    """One run of the official inner loop.

    Attributes:
        index: Places of the attacked images.
        targets: Classes that they are pulled towards; None without.
        points: What the model was asked at each step.
        logits: What it said.
        losses: The official loss of them.
        fooled: Whether the official code counts an image as fooled.
    """

    index: torch.Tensor
    targets: torch.Tensor | None
    points: torch.Tensor
    logits: torch.Tensor
    losses: torch.Tensor
    fooled: torch.Tensor


def main() -> None:
    """Check the package where asked to, then write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path)
    given = parser.parse_args().against
    torch.set_num_threads(1)
    if given is not None:
        _compare(given)
    with np.load(HERE / "tinynet_weights.npz") as file:
        weights = {name: torch.from_numpy(array) for name, array in file.items()}
    pixels = _drawn()
    images = torch.from_numpy(pixels).float() / 255
    labels = _network(images, weights).argmax(dim=1)
    labels[list(WRONG)] = (labels[list(WRONG)] + 1) % 10
    np.savez_compressed(HERE / "drawn_inputs.npz", x_uint8=pixels, y=labels.numpy())
    for name, (norm, epsilon, steps, loss) in RUNS.items():
        about = {"norm": norm, "eps": epsilon, "n_iter": steps, "loss": loss}
        arrays = _attacked(images, labels, weights, about)
        traced = arrays.pop("points")
        if loss == "ce":
            arrays |= {"r0_trace_rows": np.arange(TRACED), "r0_trace": traced[:, :TRACED]}
        np.savez_compressed(HERE / f"{name}.npz", meta=json.dumps(about), **arrays)


def _compare(folder: Path) -> None:
    """Hold the package to the numbers of the official repository, array by array."""
    with np.load(folder / "tinynet_weights.npz") as file:
        weights = {name: torch.from_numpy(array) for name, array in file.items()}
    with np.load(folder / "inputs.npz") as file:
        images = torch.from_numpy(file["x_uint8"]).float() / 255
        labels = torch.from_numpy(file["y"])
    for name in RUNS:
        with np.load(folder / f"{name.replace('drawn', 'apgd')}.npz") as file:
            official = dict(file)
        found = _attacked(images, labels, weights, json.loads(str(official["meta"])))
        del found["points"]
        for key, array in found.items():
            np.testing.assert_array_equal(array, official[key], err_msg=f"{name}: {key}")
        print(f"{name}: {len(found)} arrays equal")  # noqa: T201


def _drawn() -> np.ndarray:
    """Waves of random length, direction and phase, and a little noise; no photographs."""
    random = np.random.RandomState(1)
    rows, columns = np.mgrid[:SIZE, :SIZE] / SIZE
    waves = random.uniform(-2, 2, (2, 4, COUNT, 3, 1, 1))
    phases = random.uniform(0, 2 * np.pi, (4, COUNT, 3, 1, 1))
    sizes = random.uniform(0, 1, (4, COUNT, 3, 1, 1))
    angle = 2 * np.pi * (waves[0] * rows + waves[1] * columns) + phases
    drawn = (sizes * np.cos(angle)).sum(axis=0) + 0.1 * random.randn(COUNT, 3, SIZE, SIZE)
    return (255 * np.clip(0.5 + 0.25 * drawn, 0, 1)).round().astype(np.uint8)


def _network(images: torch.Tensor, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    features = (images - 0.5) / 0.25
    for layer in ("c1", "c2", "c3"):
        kernel, bias = weights[f"{layer}.weight"], weights[f"{layer}.bias"]
        features = functional.relu(functional.conv2d(features, kernel, bias, 2, 1))
    return functional.linear(features.mean(dim=(2, 3)), weights["fc.weight"], weights["fc.bias"])


def _attacked(
    images: torch.Tensor,
    labels: torch.Tensor,
    weights: dict[str, torch.Tensor],
    about: dict,
) -> dict[str, np.ndarray]:
    """What the official code returned, and what each of its runs did."""
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

    asked: list[tuple[torch.Tensor, torch.Tensor]] = []

    def model(candidates: torch.Tensor) -> torch.Tensor:
        logits = _network(candidates, weights)
        asked.append((candidates.detach().clone(), logits.detach().clone()))
        return logits

    settings = {"norm": about["norm"], "eps": about["eps"], "n_iter": about["n_iter"], "seed": 0}
    targeted = about["loss"] == "dlr-targeted"
    kind = APGDAttack_targeted if targeted else APGDAttack
    attack = kind(model, **settings, **({} if targeted else {"loss": about["loss"]}))
    singles: list[Single] = []
    inner = attack.attack_single_run

    def single_run(some: torch.Tensor, of_some: torch.Tensor) -> tuple:
        before = len(asked)
        result = inner(some, of_some)
        index = (images[None] == some[:, None]).flatten(2).all(dim=2).int().argmax(dim=1)
        points, logits = (torch.stack(part) for part in zip(*asked[before:], strict=True))
        losses = torch.stack([_loss(attack, about["loss"], row, of_some) for row in logits])
        targets = attack.y_target if targeted else None
        singles.append(Single(index, targets, points, logits, losses, ~result[1]))
        return result

    attack.attack_single_run = single_run
    found = attack.perturb(images, labels)
    right = asked[0][1].argmax(dim=1) == labels
    fooled = right & (_network(found, weights).argmax(dim=1) != labels)
    own = {"y": labels, "x_adv": found, "success": fooled, "points": singles[0].points}
    for place, single in enumerate(singles):
        own |= {f"r{place}_{name}": value for name, value in _told(single, labels).items()}
    return {name: value.detach().numpy() for name, value in own.items()}


def _loss(
    attack: APGDAttack, name: str, logits: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    if name == "ce":
        return functional.cross_entropy(logits, labels, reduction="none")
    return (attack.dlr_loss if name == "dlr" else attack.dlr_loss_targeted)(logits, labels)


def _told(single: Single, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    wrong = single.logits.argmax(dim=2) != labels[single.index]
    first = torch.where(wrong.any(dim=0), wrong.int().argmax(dim=0), -1)
    told = {
        "index": single.index,
        "start": single.points[0],
        "losses": single.losses,
        "success": single.fooled,
        "first_fooled_step": first,
    }
    return told if single.targets is None else {**told, "y_target": single.targets}


if __name__ == "__main__":
    main()

"""A dual model at several weights from one training, attacked whole and by its halves."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from harness.api import AttackError, ThreatModel
from harness.passes import objective_of
from harness.plugins import load_plugins
from harness.suite import find_suite
from harness.tensors import Member, Noise
from harness.testing import LinearModel, linear_samples
from harness_attacks.fgsm import fgsm
from harness_attacks.objectives import negative_margin
from harness_dual_moe.attacks import part_alone
from harness_dual_moe.dual import Combination, Dual

SAMPLES = linear_samples(4, gap=0.1)


class Flipped(nn.Module):
    """`LinearModel` with the classes of its second half of pixels exchanged."""

    def forward(self, images):
        signs = torch.ones_like(images)
        signs[..., images.shape[-1] // 2 :] = -1
        return LinearModel()(0.5 + signs * (images - 0.5)) + 0.4 * torch.tensor([-1.0, 1.0])


def attacked(alpha, **parameters):
    model = Dual(LinearModel(), Flipped(), Combination(alpha, "logits")).eval()
    bound = objective_of(model, negative_margin, SAMPLES.labels, batch_size=8)
    noise = Noise(1, SAMPLES.ids, (3, 8, 8))
    attacks = parameters.pop("attacks", (Member("fgsm", fgsm),))
    threat = ThreatModel("linf", 0.2)
    images = part_alone(
        bound, SAMPLES.images, SAMPLES.labels, threat, noise=noise, attacks=attacks, **parameters
    )
    return images, bound.score(images).fooled


@pytest.mark.parametrize(("part", "signs"), [("standard", {-1.0}), ("robust", {-1.0, 1.0})])
def test_the_gradient_is_that_of_the_part_alone(part, signs):
    images, _ = attacked(0.5, part=part)

    assert set((images - SAMPLES.images).sign().flatten().tolist()) == signs


def test_what_fools_the_part_counts_where_it_fools_the_whole():
    _, alone = attacked(0.0, part="standard")
    _, mixed = attacked(0.9, part="standard")

    assert alone.all()
    assert not mixed.any()


def test_without_attacks_there_is_nothing_to_do():
    with pytest.raises(AttackError, match='write attacks = \\["apgd"\\]'):
        attacked(0.5, attacks=())


def test_the_sweep_is_one_training_at_five_weights():
    registry = load_plugins()
    suite = find_suite("dual-alpha", registry)

    entries = [registry.find("models", spec.name) for spec in suite.models]

    assert [entry.defaults["alpha"] for entry in entries] == [0, 0.25, 0.5, 0.75, 1]
    assert {entry.card.trained_as for entry in entries} == {"dual/digits"}


def test_rows_of_two_weights_train_once_and_are_attacked_anew(harness, tmp_path):
    text = find_suite_text().replace("epochs = 15", "epochs = 1")
    text = text.replace("steps = 20", "steps = 3").replace("steps = 10", "steps = 2")
    (tmp_path / "sweep.toml").write_text(text)

    done = harness(
        "run", "--suite", "sweep.toml", "--limit", 8, "--out", "runs", "--json",
        "--model", "dual/digits-a000", "--model", "dual/digits-a100",
    )  # fmt: skip

    assert done.code == 0, done.err
    rows = json.loads(done.out)["rows"]
    assert [row["model"].partition(".")[0] for row in rows] == [
        "dual/digits-a000",
        "dual/digits-a100",
    ]
    assert len(list((tmp_path / "runs" / "weights").glob("*/card.json"))) == 1


def find_suite_text():
    from pathlib import Path

    return Path(str(load_plugins().find("suites", "dual-alpha").target)).read_text()

"""Natural corruptions: keyed by sample, the same in any batch, and refused where they cannot be."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from harness.api import AttackError, ThreatModel, UsageError
from harness.plugins import load_plugins
from harness.suite import find_suite
from harness.tensors import Noise, noise_key

pytest.importorskip("imagecorruptions", exc_type=ImportError)
from harness_corruptions.corrupt import corrupt, names

CORRUPTIONS = find_suite("cifar10-corruptions", load_plugins()).attacks
SUITE = [attack.name.partition("/")[2] for attack in CORRUPTIONS]


def pictures(count=2):
    rows = torch.linspace(0.1, 0.9, 32)
    plain = rows[:, None] * torch.ones(32) * torch.tensor([1.0, 0.8, 0.6])[:, None, None]
    return torch.stack([plain.roll(3 * number, dims=2) for number in range(count)])


def corrupted(images, name, severity=3, ids=None):
    labels = torch.zeros(len(images), dtype=torch.int64)
    ids = torch.arange(len(images)) if ids is None else ids
    noise = Noise(noise_key(0, name), ids, (3, 32, 32))
    threat = ThreatModel("severity", severity)
    return corrupt(None, images, labels, threat, noise=noise, name=name)


@pytest.mark.parametrize("name", SUITE)
def test_a_corruption_changes_images_and_keeps_the_pixel_range(name):
    images = pictures()
    before = images.clone()

    found = corrupted(images, name)

    assert ThreatModel("severity", 3).contains(found, images).all()
    assert (found - images).abs().amax() > 1 / 255
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", SUITE)
def test_a_corruption_is_the_same_alone_and_in_a_batch(name):
    images = pictures()

    together = corrupted(images, name)
    alone = corrupted(images[1:], name, ids=torch.tensor([1]))

    assert torch.equal(alone[0], together[1])


@pytest.mark.parametrize("name", ["gaussian-noise", "defocus-blur", "contrast"])
def test_a_higher_severity_changes_more(name):
    images = pictures()

    mild, strong = (corrupted(images, name, severity) for severity in (1, 5))

    assert (strong - images).norm() > (mild - images).norm()


def test_two_samples_are_given_different_noise():
    one, other = corrupted(pictures(1).expand(2, -1, -1, -1), "gaussian-noise")

    assert not torch.equal(one, other)


def test_numpy_is_left_as_it_was_found():
    np.random.seed(7)  # noqa: NPY002 - the library's own generator
    before = np.random.get_state()[1].tolist()  # noqa: NPY002

    corrupted(pictures(), "snow")

    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_the_corruption_that_the_library_breaks_is_not_offered():
    import imagecorruptions

    assert "spatter" not in names(imagecorruptions)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "fogg"}, "did you mean 'fog'"),
        ({"threat": ThreatModel("linf", 0.1)}, "use a suite of norm 'severity'"),
        ({"images": torch.zeros(1, 1, 32, 32)}, "needs colour images of at least 32 pixels"),
        ({"images": torch.zeros(1, 3, 16, 16)}, "needs colour images of at least 32 pixels"),
    ],
    ids=["unknown", "ball", "grey", "small"],
)
def test_what_cannot_be_is_refused(change, message):
    plain = {"name": "fog", "threat": ThreatModel("severity", 1), "images": pictures(1)}
    asked = {**plain, **change}
    noise = Noise(0, torch.arange(1), (3, 32, 32))

    with pytest.raises(AttackError, match=message):
        corrupt(
            None, asked["images"], torch.zeros(1), asked["threat"], noise=noise, name=asked["name"]
        )


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)

    with pytest.raises(AttackError, match=r"pip install 'moe-robustness-harness\[corruptions\]'"):
        corrupted(pictures(), "fog")


def test_a_severity_has_no_ball_for_other_attacks():
    with pytest.raises(UsageError, match="only corruptions can be used with it"):
        ThreatModel("severity", 1).steepest(pictures())


@pytest.mark.parametrize("severity", [0.5, 6])
def test_there_are_five_severities(severity):
    with pytest.raises(UsageError, match="is not one of 1, 2, 3, 4, 5"):
        ThreatModel("severity", severity)

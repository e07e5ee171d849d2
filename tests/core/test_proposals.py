"""Images made on one model and judged on another, where both boundaries are known."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch

from harness.archive import packed
from harness.cell import Protocol, Setting, evaluate
from harness.errors import DataError, UsageError
from harness.judging import BoundAttack, Defence
from harness.numerics import Batches
from harness.proposals import Source, controls, proposals, saved, transferable
from harness.suite import attack_spec, find_suite
from harness.tensors import Samples
from harness.testing import LinearModel
from harness.threat import ThreatModel

GRID = {"0.05": 0.05, "0.2": 0.2}
THREATS = {text: ThreatModel("linf", value) for text, value in GRID.items()}


class Shifted(LinearModel):
    """LinearModel whose plane is nearer: at a mean pixel of 0.6."""

    def forward(self, images):
        return super().forward(images - 0.1)


def push(objective, images, labels, threat, *, noise):
    """The exact worst case of LinearModel: all pixels down."""
    return (images - threat.epsilon).clamp(0, 1)


def loss(outcome):
    return -outcome.margin


def samples():
    """Images at four distances from the plane of LinearModel: 0.02, 0.12, 0.17 and 0.32."""
    means = torch.tensor([0.52, 0.62, 0.67, 0.82])
    images = means[:, None, None, None].expand(-1, 3, 4, 4).clone()
    return Samples(torch.tensor([10, 11, 12, 13]), images, torch.ones(4, dtype=torch.int64))


def setting(attacks, *, model=None, protocol="nested"):
    defence = Defence(model or LinearModel(), Batches(64))
    return Setting(defence, attacks, THREATS, Protocol(protocol), seed=0)


def white_box(protocol="nested"):
    return setting([BoundAttack("push", push, loss, {})], protocol=protocol)


def source(folder, chosen, *, protocol="nested", name="a.npz"):
    """What `push` makes of LinearModel's images, saved."""
    found = evaluate(white_box(protocol), chosen)
    (folder / name).write_bytes(packed(chosen, found.adversarial, len(chosen.ids)))
    return Source("linear", "key", (folder / name,), {"push": tuple(GRID)})


def judged(given, chosen, *, model=None, protocol="nested"):
    attacks = list(proposals(given, THREATS, loss))
    return evaluate(setting(attacks, model=model, protocol=protocol), chosen).records


def robust(records):
    return {(record.sample, record.epsilon): record.is_robust for record in records}


@pytest.mark.parametrize("protocol", ["nested", "independent"])
def test_on_their_own_model_the_images_do_what_the_attack_did(tmp_path, protocol):
    given = source(tmp_path, samples(), protocol=protocol)

    found = judged(given, samples(), protocol=protocol)

    assert robust(found) == robust(evaluate(white_box(protocol), samples()).records)
    assert {record.attack for record in found} == {"push@linear"}


def test_another_model_falls_where_its_own_plane_lies_between(tmp_path):
    given = source(tmp_path, samples())

    found = robust(judged(given, samples(), model=Shifted()))

    # planes at 0.5 and 0.6. Sample 10 (0.52) is wrong for Shifted from the start. 11 (0.62)
    # crosses 0.6 at 0.05, 12 (0.67) at 0.2 only, 13 (0.82) stays at 0.62
    assert found == {
        (10, "0.05"): False, (10, "0.2"): False,
        (11, "0.05"): False, (11, "0.2"): False,
        (12, "0.05"): True, (12, "0.2"): False,
        (13, "0.05"): True, (13, "0.2"): True,
    }  # fmt: skip


def test_under_nested_a_source_shows_the_point_at_which_it_fell_first(tmp_path):
    given = source(tmp_path, samples())

    record = judged(given, samples())[1]

    # sample 10 falls at 0.05, and was never pushed by 0.2
    assert (record.sample, record.epsilon, record.flags) == (10, "0.2", ("carried",))
    assert record.norm == pytest.approx(0.05, abs=1e-6)


def test_what_a_source_did_not_attack_stays_clean(tmp_path):
    wrong = samples()._replace(labels=torch.tensor([1, 1, 0, 1]))
    given = source(tmp_path, wrong)

    records = judged(given, samples(), model=Shifted())

    # LinearModel has sample 12 wrong under these labels, so it shows the clean image
    assert [record.norm for record in records if record.sample == 12] == [0.0, 0.0]


def test_no_order_of_the_samples_mixes_images_up(tmp_path):
    given = source(tmp_path, samples().rows(torch.tensor([2, 0, 3, 1])))

    backwards = judged(given, samples().rows(torch.tensor([3, 2, 1, 0])), model=Shifted())

    straight = judged(source(tmp_path, samples(), name="b.npz"), samples(), model=Shifted())
    assert robust(backwards) == robust(straight)
    assert {record.reason for record in backwards} == {""}


def test_a_sample_without_an_image_fails_with_the_reason_and_the_others_do_not(tmp_path):
    given = source(tmp_path, samples().rows(torch.tensor([0, 2, 3])))

    records = judged(given, samples())

    failed = [record for record in records if "failed" in record.flags]
    assert {record.sample for record in failed} == {11}
    assert all("no saved image of this sample" in record.reason for record in failed)
    assert all(record.is_robust for record in failed)
    assert not robust(records)[12, "0.2"]


def test_what_leaves_the_ball_is_refused_not_projected(tmp_path):
    chosen = samples()
    outside = {("push", text): chosen.images - 2 * value for text, value in GRID.items()}
    (tmp_path / "a.npz").write_bytes(packed(chosen, outside, 4))
    given = Source("linear", "key", (tmp_path / "a.npz",), {"push": tuple(GRID)})

    records = judged(given, chosen)

    assert all("outside the ball" in record.reason for record in records)


@pytest.mark.parametrize(
    "other",
    [samples().images + 0.01, torch.zeros(4, 3, 8, 8)],
    ids=["other pixels", "another size"],
)
def test_images_of_other_data_stop_with_the_name_of_the_file(tmp_path, other):
    given = source(tmp_path, samples()._replace(images=other))

    with pytest.raises(DataError, match=r"a\.npz: its clean image of sample 10.*this suite"):
        judged(given, samples())


def test_an_attack_is_shown_only_where_it_has_images(tmp_path):
    given = dataclasses.replace(source(tmp_path, samples()), attacks={"push": ("0.2",)})

    assert {record.epsilon for record in judged(given, samples())} == {"0.2"}


def test_a_source_travels_to_a_worker(tmp_path):
    given = source(tmp_path, samples())

    assert pickle.loads(pickle.dumps(given)) == given  # noqa: S301 - our own


def test_its_place_is_no_part_of_what_a_source_is(tmp_path):
    given = source(tmp_path, samples())

    assert str(tmp_path) not in str(given.ingredients())
    assert given.ingredients()["identity"] == "key"


@pytest.fixture
def suite(tiny, registry):
    return find_suite(str(tiny), registry)


def keep(folder, *names, pixels=0.5):
    """A file with one image and arrays of these names."""
    import numpy as np

    image = np.full((1, 1, 8, 8), pixels, dtype=np.float32)
    arrays = {"ids": np.array([0]), "labels": np.array([0]), "clean": image}
    np.savez(folder / "00000.npz", **arrays, **dict.fromkeys(names, image))


def test_controls_and_diagnoses_are_not_transferred(suite, registry):
    router = dataclasses.replace(attack_spec("pgd", "", registry), label="r", view="router")
    wider = dataclasses.replace(suite, attacks=(*suite.attacks, router))

    assert [attack.label for attack in transferable(wider, registry)] == ["pgd"]
    assert [attack.label for attack in controls(wider, registry)] == ["noise"]


def test_a_folder_shows_all_its_attacks_at_the_epsilons_of_the_suite(tmp_path, suite, registry):
    keep(tmp_path, "noise@8_255", "pgd@8_255", "pgd@32_255", "pgd@64_255", "mine@32_255")

    found = saved(tmp_path, suite, registry)

    assert found.attacks == {"pgd": ("8/255", "32/255"), "mine": ("32/255",)}
    assert found.name == f"saved-{found.identity[:8]}"


def test_a_folder_is_what_its_files_hold_not_where_it_lies(tmp_path, suite, registry):
    for name, pixels in (("here", 0.5), ("there", 0.5), ("other", 0.25)):
        (tmp_path / name).mkdir()
        keep(tmp_path / name, "pgd@32_255", pixels=pixels)

    here, there, other = (
        saved(tmp_path / name, suite, registry).ingredients() for name in ("here", "there", "other")
    )

    assert here == there
    assert here != other


@pytest.mark.parametrize(
    ("names", "remedy"),
    [
        ([], r"arrays named ATTACK@32_255"),
        (["noise@32_255"], r"no images at the headline epsilon"),
        (["pgd@8_255"], r"--save-adversarial"),
    ],
    ids=["none", "controls", "another epsilon"],
)
def test_a_folder_with_nothing_to_show_is_refused(tmp_path, suite, registry, names, remedy):
    keep(tmp_path, *names)

    with pytest.raises(UsageError, match=remedy):
        saved(tmp_path, suite, registry)


def test_the_gallery_alone_is_no_folder_of_all_images(tmp_path, suite, registry):
    keep(tmp_path, "pgd@32_255")
    (tmp_path / "00000.npz").rename(tmp_path / "gallery.npz")

    with pytest.raises(UsageError, match="run with --save-adversarial"):
        saved(tmp_path, suite, registry)

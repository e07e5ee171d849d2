"""Entries tried again, and broken by images that somebody hands in."""

from __future__ import annotations

import json

import numpy as np
import pytest

from harness.entries import read_entry

ENTRY = "leaderboard/tiny/cnn/digits.standard.json"


def change(path, alter):
    content = json.loads(path.read_text())
    alter(content)
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def test_an_honest_entry_is_replayed_with_equal_bits(harness, tiny, published, weights):
    done = harness("validate", "--suite", tiny, "--entry", ENTRY, "--replay", 3,
                   "--weights", weights)  # fmt: skip

    assert done.code == 0, done.err + done.out
    assert "0 errors" in done.err


def flip(content):
    """Every image that PGD fools is said to withstand it, with values to match."""
    robust = content["bits"]["attacks"]["pgd"]["robust"]
    robust["32/255"] = robust["8/255"] = content["bits"]["clean"]
    clean = content["values"]["clean-accuracy"]
    content["values"]["robust-accuracy"] = {"8/255": clean, "32/255": clean}
    content["values"]["auc"] = clean


def test_flipped_bits_are_found_by_replay(harness, tiny, published, weights):
    # metrics without AUC, so that the flipped entry is consistent in itself
    tiny.write_text(tiny.read_text().replace(', "auc"', ""))
    change(published / ENTRY, flip)
    change(published / ENTRY, lambda content: content["values"].pop("auc"))

    alone = harness("validate", "--suite", tiny, "--entry", ENTRY)
    again = harness("validate", "--suite", tiny, "--entry", ENTRY, "--replay", 20,
                    "--weights", weights)  # fmt: skip

    assert alone.code == 0, alone.out
    assert again.code == 1
    assert "pgd at 32/255: " in again.out
    assert "of 20 images differ" in again.out


def test_a_replay_with_other_weights_says_so(harness, tiny, published):
    done = harness("validate", "--suite", tiny, "--entry", ENTRY, "--replay", 3,
                   "--weights", other_weights(published))  # fmt: skip

    assert done.code == 1
    assert "cannot be tried again: " in done.out
    assert "was expected; the file was altered or is another one" in done.out


def test_an_entry_of_other_weights_than_were_trained_here_is_not_judged(harness, tiny, published):
    def alter(content):
        content["weights"]["sha256"] = content["ingredients"]["weights"] = "b" * 64

    change(published / ENTRY, alter)
    ids, _, images = adversarial(published)

    again = harness("validate", "--suite", tiny, "--entry", ENTRY, "--replay", 3)
    broken = hand_in(harness, tiny, published, ids, images)

    told = "those of the entry bbbbbbbbbbbb; give their file with --weights"
    assert (again.code, broken.code) == (1, 1)
    assert "cannot be tried again: the weights here are " in again.out
    assert told in again.out
    assert told in " ".join(broken.err.split())


def other_weights(folder):
    from safetensors.torch import load_file, save_file

    [path] = folder.glob("runs/weights/*/*.safetensors")
    tensors = {name: tensor + 1 for name, tensor in load_file(path).items()}
    save_file(tensors, folder / "other.safetensors")
    return folder / "other.safetensors"


def adversarial(folder):
    """Ids, labels, clean and PGD's images of all twenty digits."""
    files = [np.load(path) for path in sorted(folder.glob("runs/*/images/*.npz"))]
    names = ("ids", "clean", "pgd@32_255")
    ids, clean, found = (np.concatenate([file[name] for file in files]) for name in names)
    _, first = np.unique(ids, return_index=True)  # eight of them lie in a file of their own, too
    return ids[first], clean[first], found[first]


def hand_in(harness, tiny, folder, ids, images, **options):
    np.savez(folder / "mine.npz", ids=ids, images=images)
    extra = [item for name, value in options.items() for item in (f"--{name}", value)]
    return harness("break", ENTRY, "mine.npz", "--suite", tiny, "--source", "the tests", *extra,
                   "--json")  # fmt: skip


@pytest.fixture
def credulous(published):
    """An entry that claims all its right images as robust, so that PGD's images break it."""
    change(published / ENTRY, flip)
    return published


def test_an_image_that_fools_the_model_lowers_the_best_known_column(
    harness, tiny, credulous, weights
):
    ids, _, images = adversarial(credulous)

    done = hand_in(harness, tiny, credulous, ids, images, weights=weights)

    told = json.loads(done.out)
    # of 14 right images PGD fools 6; the six wrong ones were wrong before
    assert (len(told["broken"]), len(told["known"]), len(told["refused"])) == (6, 6, 8)
    assert set(told["refused"].values()) == {"the model has it right"}
    entry = read_entry(credulous / ENTRY)
    assert entry.best_known("32/255").sum() == 8
    assert entry.robust("32/255").sum() == 14
    assert entry.content["best_known"][0]["source"] == "the tests"
    harness("publish", "--suite", tiny, "--runs", "none")
    assert "40.0 [21.9, 61.3]" in (credulous / "leaderboard/tiny.md").read_text()


def test_what_leaves_the_ball_or_the_box_does_not_count(harness, tiny, credulous, weights):
    ids, clean, images = adversarial(credulous)
    images[0], images[1], images[2] = 1 - clean[0], images[1] + 2, np.nan

    done = hand_in(harness, tiny, credulous, ids[:3], images[:3], weights=weights)

    assert json.loads(done.out)["refused"] == {
        str(sample): "outside the ball or [0, 1], or not finite" for sample in ids[:3]
    }
    assert read_entry(credulous / ENTRY).content["best_known"] == []


def test_what_was_wrong_before_changes_nothing(harness, tiny, published, weights):
    ids, _, images = adversarial(published)
    before = (published / ENTRY).read_bytes()

    done = hand_in(harness, tiny, published, ids, images, weights=weights)

    assert (json.loads(done.out)["broken"], done.code) == ([], 0)
    assert (published / ENTRY).read_bytes() == before


def test_a_source_of_two_lines_does_not_spoil_the_entry(harness, tiny, credulous, weights):
    ids, _, images = adversarial(credulous)
    before = (credulous / ENTRY).read_bytes()

    done = hand_in(harness, tiny, credulous, ids, images, weights=weights, source="a\nb")

    assert done.code == 1
    assert "hidden characters" in done.err
    assert (credulous / ENTRY).read_bytes() == before


REFUSED = [
    ("a stranger", lambda ids, images: (ids + 20, images), "is not one of the entry's 20"),
    ("another size", lambda ids, images: (ids, images[:, :, :4]), "the suite's are"),
]


@pytest.mark.parametrize(("alter", "told"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_images_of_something_else_are_refused(harness, tiny, published, weights, alter, told):
    ids, _, images = adversarial(published)

    done = hand_in(harness, tiny, published, *alter(ids, images), weights=weights)

    assert (done.code, told in done.err) == (2, True), done.err


def test_other_weights_or_another_suite_judge_nothing(harness, tiny, published):
    ids, _, images = adversarial(published)

    other = hand_in(harness, tiny, published, ids, images, weights=other_weights(published))
    tiny.write_text(tiny.read_text().replace("version = 1", "version = 2"))
    newer = hand_in(harness, tiny, published, ids, images)

    assert other.code == 1
    assert "Traceback" not in other.err
    assert "is of suite tiny version 1, not of tiny version 2" in newer.err

"""The npz files of images: what was written is found again by sample, whatever the order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.archive import Library, members, packed
from harness.errors import DataError
from harness.tensors import Samples


def samples(*ids):
    """Images whose every pixel tells their id."""
    images = torch.tensor(ids, dtype=torch.float32)[:, None, None, None].expand(-1, 1, 2, 2) / 100
    return Samples(torch.tensor(ids), images.clone(), torch.zeros(len(ids), dtype=torch.int64))


def write(path, *ids, attack="pgd"):
    """A file in which the adversarial images are the clean ones, plus 0.5."""
    chosen = samples(*ids)
    path.write_bytes(packed(chosen, {(attack, "8/255"): chosen.images + 0.5}, len(ids)))
    return path


def test_images_are_found_by_sample_in_any_order_over_several_files(tmp_path):
    library = Library.of([write(tmp_path / "a.npz", 3, 1), write(tmp_path / "b.npz", 7, 5)])

    found = library.images("pgd@8_255", [5, 3, 7, 1])

    assert torch.allclose(found[:, 0, 0, 0], torch.tensor([0.55, 0.53, 0.57, 0.51]))
    assert library.file_and_row(5) == (tmp_path / "b.npz", 1)


def test_only_the_first_images_are_kept_where_few_are_asked_for(tmp_path):
    chosen = samples(1, 2, 3)
    (tmp_path / "a.npz").write_bytes(packed(chosen, {("pgd", "0.5"): chosen.images}, 2))

    arrays = np.load(tmp_path / "a.npz")

    assert arrays["ids"].tolist() == [1, 2]
    assert sorted(arrays.files) == ["clean", "ids", "labels", "pgd@0.5"]


def test_of_two_files_with_one_sample_the_first_counts(tmp_path):
    first, second = write(tmp_path / "a.npz", 1), write(tmp_path / "b.npz", 1, 2)

    assert Library.of([first, second]).file_and_row(1) == (first, 0)
    assert Library.of([second, first]).file_and_row(1) == (second, 0)


@pytest.mark.parametrize(
    ("name", "ids"), [("pgd@8_255", [1, 9]), ("fgsm@8_255", [1])], ids=["sample", "attack"]
)
def test_what_was_not_saved_is_said_to_be_absent(tmp_path, name, ids):
    library = Library.of([write(tmp_path / "a.npz", 1)])

    with pytest.raises(LookupError, match="no saved image of this sample"):
        library.images(name, ids)


def test_the_names_of_all_files_are_listed_once(tmp_path):
    files = [write(tmp_path / "a.npz", 1), write(tmp_path / "b.npz", 2, attack="fgsm")]

    assert members(files) == ["ids", "labels", "clean", "pgd@8_255", "fgsm@8_255"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"text"], ids=["empty", "torn", "no"])
def test_another_file_is_refused_by_its_name(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)

    with pytest.raises(DataError, match=r"a\.npz: no npz of adversarial images.*save-adversarial"):
        members([tmp_path / "a.npz"])


def test_an_npz_of_something_else_is_refused_by_its_name(tmp_path):
    np.savez(tmp_path / "a.npz", weights=np.zeros(3))

    with pytest.raises(DataError, match=r"a\.npz.*ids is not a file"):
        Library.of([tmp_path / "a.npz"])

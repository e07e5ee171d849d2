"""Attack one model, judge another: what is done once, what is kept apart, what is counted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from harness import runner
from harness.errors import UnknownName, UsageError
from harness.flags import FLAGS, UNRANKED
from harness.forecast import _seconds_per_image
from harness.leaderboard import gather
from harness.modes import Mode
from harness.plan import contenders
from harness.plugins import load_plugins
from harness.proposals import Source
from harness.records import Record
from harness.runner import Request
from harness.scoring import Cell
from harness.store import Store
from harness.suite import find_suite
from harness.transfer import check_transferable, crossings, matrix, origins, run

NEAREST = """
import torch
from harness import ModelCard, hookimpl
from sklearn.datasets import load_digits

class Nearest(torch.nn.Module):
    '''The digit whose mean image is nearest, by some of the rows of pixels.'''

    def __init__(self, rows):
        super().__init__()
        digits = load_digits()
        images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
        labels = torch.tensor(digits.target)
        means = torch.stack([images[labels == digit].mean(dim=0) for digit in range(10)])
        self.register_buffer("means", means)
        self.rows = rows

    def forward(self, images):
        gaps = (images[:, None] - self.means)[:, :, :, self.rows]
        return -10 * gaps.square().flatten(2).sum(dim=2)
"""
REGISTER = """
@hookimpl
def register_models(register):
    register("near/{name}", lambda context: Nearest(slice({rows})),
             card=ModelCard(weights="included"))
"""


def plugin(folder, name, rows):
    path = folder / f"{name}.py"
    path.write_text(NEAREST + REGISTER.format(name=name, rows=rows))
    return str(path)


class Lab:
    """Two models that need no training, a suite of twenty digits, and a run folder."""

    def __init__(self, folder, tiny):
        self.folder = folder
        self.plugins = [plugin(folder, "whole", "0, 8"), plugin(folder, "upper", "0, 6")]
        self.registry = load_plugins(self.plugins)
        self.suite = find_suite(str(tiny), self.registry)

    def request(self, *models, registry=None, **changes):
        found = contenders(self.suite, models, registry or self.registry)
        request = Request(suite=self.suite, contenders=found, out=self.folder / "runs")
        return dataclasses.replace(request, device="cpu", batch_size=64, **changes)

    def judge(self, target, *names, observers=(), registry=None, **changes):
        registry = registry or self.registry
        given = origins(self.suite, names, registry)
        request = self.request(target, registry=registry, **changes)
        return run(request, given, registry, observers)

    def attacked(self, *models, **changes):
        return runner.run(self.request(*models, **changes), self.registry)


@pytest.fixture
def lab(tmp_path, tiny):
    return Lab(tmp_path, tiny)


class Shards:
    """An observer that counts what is done."""

    def __init__(self):
        self.done = []

    from harness.api import hookimpl

    @hookimpl
    def shard_finished(self, event):
        self.done.append((event.model, event.shard))


def robust(cell, attack):
    return {
        (record.sample, record.epsilon): record.is_robust
        for record in cell.records
        if record.attack == attack
    }


def test_on_the_diagonal_every_image_fares_as_in_the_ordinary_row(lab):
    [ordinary] = lab.attacked("near/whole").cells

    [shown] = lab.judge("near/whole", "near/whole").cells

    assert robust(shown, "pgd@near/whole") == robust(ordinary, "pgd")
    assert robust(shown, "noise") == robust(ordinary, "noise")
    assert not all(robust(ordinary, "pgd").values())


def test_a_row_meets_its_controls_and_the_images_of_every_source(lab):
    result = lab.judge("near/upper", "near/whole", "near/upper")

    [row], [cell] = result.rows, result.cells
    assert list(dict.fromkeys(record.attack for record in cell.records)) == [
        "noise", "pgd@near/upper", "pgd@near/whole",
    ]  # fmt: skip
    assert row["transfer_from"] == ["near/upper", "near/whole"]
    assert row["flags"][0] == "transfer"
    assert {record.backwards for record in cell.records} == {0}


def test_the_same_request_again_does_nothing(lab):
    first, second = Shards(), Shards()

    before = lab.judge("near/upper", "near/whole", observers=[first])
    after = lab.judge("near/upper", "near/whole", observers=[second])

    assert [model for model, _ in first.done] == ["near/whole"] * 3 + ["near/upper"] * 3
    assert second.done == []
    assert before.rows == after.rows


def test_images_that_are_there_are_taken_and_those_of_a_plain_run_are_made(lab):
    lab.attacked("near/whole", saves_all=True)
    lab.attacked("near/upper")
    shards = Shards()

    lab.judge("near/upper", "near/whole", "near/upper", observers=[shards])

    # near/whole kept its images; near/upper has records only; then near/upper is judged
    assert [model for model, _ in shards.done] == ["near/upper"] * 6


def test_a_limited_run_serves_the_whole_one(lab):
    shards = Shards()
    limited = lab.judge("near/upper", "near/whole", limit=10, flags=("limited",))

    whole = lab.judge("near/upper", "near/whole", observers=[shards])
    again = lab.judge("near/upper", "near/whole", limit=10, flags=("limited",))

    # shard 0 is whole in both; shard 1 had two images; shard 2 is new
    assert shards.done == [(model, shard) for model in ("near/whole", "near/upper")
                           for shard in (1, 2)]  # fmt: skip
    assert limited.rows == again.rows
    assert whole.rows[0]["n"] == 20


def ingredients(result):
    return result.cells[0].manifest["ingredients"]


def test_who_the_sources_are_is_in_the_key_and_their_order_is_not(lab):
    one = lab.judge("near/upper", "near/whole")
    both = lab.judge("near/upper", "near/whole", "near/upper")
    turned = lab.judge("near/upper", "near/upper", "near/whole")
    other_seed = lab.judge("near/upper", "near/whole", seed=1)

    keys = [result.cells[0].key for result in (one, both, turned, other_seed)]
    [source] = ingredients(one)["sources"]
    assert keys[1] == keys[2]
    assert len(set(keys)) == 3
    assert source["name"] == "near/whole"
    assert source["identity"] == lab.attacked("near/whole").cells[0].key
    assert str(lab.folder) not in json.dumps(ingredients(one))


def test_an_ordinary_row_has_no_sources_in_its_key(lab):
    assert "sources" not in ingredients(lab.attacked("near/whole"))


def test_the_board_takes_the_ordinary_row_whatever_came_last(lab):
    lab.attacked("near/upper")
    lab.judge("near/upper", "near/whole")

    board = gather(lab.suite, Store(lab.folder / "runs"), lab.registry)

    assert {row["model"] for row in board.rows} == {"near/upper", "near/whole"}
    assert not any("transfer" in row["flags"] or "transfer_from" in row for row in board.rows)


def test_rows_of_a_transfer_never_rank(lab):
    assert "transfer" in UNRANKED
    assert "not for the board" in FLAGS["transfer"]


def test_the_time_of_judging_is_not_taken_for_the_time_of_an_attack(lab):
    lab.judge("near/upper", "near/whole")

    paces = [
        _seconds_per_image(Store(lab.folder / "runs"), model)
        for model in ("near/whole", "near/upper")
    ]

    assert paces[0] > 0
    assert paces[1] is None


def test_only_the_source_is_asked_for_gradients_in_another_precision(lab):
    [cell] = lab.judge("near/upper", "near/whole", mode=Mode("bfloat16-gradients")).cells

    [source] = cell.manifest["ingredients"]["sources"]
    of_source = Store(lab.folder / "runs").cell(source["identity"]).manifest()
    assert cell.manifest["precision"] == "float32"
    assert of_source["precision"] == "bfloat16-gradients"


def folder_of(lab, result):
    return str(lab.folder / "runs" / result.cells[0].key / "images")


def test_a_saved_folder_serves_without_the_model_that_was_attacked(lab):
    folder = folder_of(lab, lab.attacked("near/whole", saves_all=True))
    live = lab.judge("near/upper", "near/whole").cells[0]
    without = load_plugins([lab.plugins[1]])

    [cell] = lab.judge("near/upper", folder, registry=without).cells

    [source] = cell.manifest["ingredients"]["sources"]
    assert not without.has("models", "near/whole")
    assert robust(cell, f"pgd@{source['name']}") == robust(live, "pgd@near/whole")


def test_images_that_were_shown_may_be_saved_and_shown_again(lab):
    shown = lab.judge("near/upper", "near/whole", saves_all=True)

    [cell] = lab.judge("near/upper", folder_of(lab, shown)).cells

    [source] = cell.manifest["ingredients"]["sources"]
    assert list(source["attacks"]) == ["pgd@near/whole"]
    assert robust(cell, f"pgd@near/whole@{source['name']}") == robust(
        shown.cells[0], "pgd@near/whole"
    )


def test_samples_that_a_folder_lacks_are_failures_that_say_so(lab):
    folder = folder_of(lab, lab.attacked("near/whole", saves_all=True, limit=10))

    result = lab.judge("near/upper", folder)

    failed = {record.sample for record in result.cells[0].records if record.reason}
    reasons = {record.reason for record in result.cells[0].records if record.reason}
    assert failed <= set(range(10, 20))
    assert reasons == {"LookupError: no saved image of this sample"}
    assert "attack-failed" in result.rows[0]["flags"]


def test_images_of_other_data_fail_the_row_with_the_name_of_the_file(lab):
    import numpy as np

    folder = Path(folder_of(lab, lab.attacked("near/whole", saves_all=True)))
    with np.load(folder / "00001.npz") as file:
        arrays = dict(file)
    np.savez(folder / "00001.npz", **{**arrays, "clean": arrays["clean"] * 0.5})

    result = lab.judge("near/upper", str(folder))

    assert "00001.npz: its clean image" in result.errors["near/upper"]
    assert "missing-images" in result.rows[0]["flags"]


BROKEN = """
import torch
from harness import ModelCard, hookimpl

@hookimpl
def register_models(register):
    register("flat", lambda context: torch.nn.Flatten(), card=ModelCard(weights="included"))
"""


def broken(lab):
    (lab.folder / "flat.py").write_text(BROKEN)
    return load_plugins([*lab.plugins, str(lab.folder / "flat.py")])


def test_a_source_that_cannot_be_attacked_leaves_its_targets_unjudged(lab):
    result = lab.judge("near/upper", "near/whole", "flat", registry=broken(lab))

    assert "build the model for 10 classes" in result.errors["flat"]
    assert result.rows == ()


def test_a_matrix_goes_on_without_the_model_that_cannot_be_attacked(lab):
    known = broken(lab)
    request = lab.request("near/whole", "flat", "near/upper", registry=known)

    found = matrix(request, "32/255", known)

    names = {(crossing.source, crossing.target) for crossing in found.crossings}
    assert list(found.errors) == ["flat"]
    assert names == {(a, b) for a in ("near/whole", "near/upper")
                     for b in ("near/whole", "near/upper")}  # fmt: skip


def test_the_diagonal_of_a_matrix_is_white_box_robust_accuracy(lab):
    request = lab.request("near/whole", "near/upper")

    found = matrix(request, "32/255", lab.registry)

    white_box = {
        cell.manifest["row"]: sum(bit for (_, e), bit in robust(cell, "pgd").items() if e[0] == "3")
        for cell in found.attacked.cells
    }
    diagonal = {
        crossing.source: round(20 * crossing.robust_accuracy.value)
        for crossing in found.crossings
        if crossing.source == crossing.target
    }
    assert diagonal == white_box


def record(sample, attack, *, clean=1, adversarial=1):
    return Record(sample, attack, "0.1", 1, clean, 0.0, adversarial, 0.0)


def cell(row, records):
    return Cell(row, {"row": row}, tuple(records), ())


def test_a_crossing_counts_all_attacks_of_a_source_together_image_by_image():
    a = Source("a", "", (), {"x": ("0.1",), "y": ("0.1",)})
    # of four images b has three right; x@a fools image 0, y@a fools image 1, the control image 2
    b = [
        record(0, "x@a", adversarial=0), record(0, "y@a"), record(0, "noise"),
        record(1, "x@a"), record(1, "y@a", adversarial=0), record(1, "noise"),
        record(2, "x@a"), record(2, "y@a"), record(2, "noise", adversarial=0),
        record(3, "x@a", clean=0, adversarial=0), record(3, "y@a", clean=0, adversarial=0),
    ]  # fmt: skip
    # a has image 0 wrong
    own = [record(sample, "x@a", clean=int(sample > 0)) for sample in range(4)]

    found = crossings([cell("a", own), cell("b", b)], [a], "0.1")

    [crossing] = [item for item in found if item.target == "b"]
    # robust: image 2 of four; of 1 and 2, which both have right, 1 is fooled
    assert (crossing.robust_accuracy.value, crossing.robust_accuracy.n) == (0.25, 4)
    assert (crossing.attack_success_rate.value, crossing.attack_success_rate.n) == (0.5, 2)


def test_where_no_attack_ran_a_crossing_has_no_number():
    a = Source("a", "", (), {"x": ("0.1",)})

    [crossing] = crossings([cell("a", [record(0, "x@a")])], [a], "0.2")

    assert crossing.robust_accuracy.value is None
    assert crossing.robust_accuracy.reason == "no images"


def test_an_unknown_source_is_named_with_the_nearest_model(lab):
    with pytest.raises(UnknownName, match="did you mean 'near/whole'"):
        origins(lab.suite, ["near/whol"], lab.registry)


def test_a_registered_model_is_no_folder_even_where_one_has_its_name(lab, monkeypatch):
    (lab.folder / "near" / "whole").mkdir(parents=True)
    monkeypatch.chdir(lab.folder)

    found = origins(lab.suite, ["near/whole"], lab.registry)

    assert [contender.row for contender in found.rows] == ["near/whole"]
    assert found.saved == ()


def test_a_suite_of_controls_has_nothing_to_transfer(lab):
    noise = dataclasses.replace(lab.suite, attacks=lab.suite.attacks[:1])

    with pytest.raises(UsageError, match="name another with --attack"):
        check_transferable(noise, lab.registry)


def test_a_preview_is_not_transferred(lab):
    preview = dataclasses.replace(lab.suite, protocol="descending")

    with pytest.raises(UsageError, match="'nested' or 'independent'"):
        check_transferable(preview, lab.registry)

"""Transfer, as a user meets it."""

from __future__ import annotations

import json

import pytest

MODELS = ("--model", "cnn/digits", "--model", "vit/digits")


def test_the_matrix_of_two_models_has_four_cells_and_is_made_once(harness, tiny):
    first = harness("transfer", "--suite", tiny, *MODELS, "--json")
    second = harness("transfer", "--suite", tiny, *MODELS)

    content = json.loads(first.out)
    cells = {(item["source"], item["target"]): item for item in content["crossings"]}
    ordinary = {row["model"]: row["clean_accuracy"]["value"] for row in content["attacked"]}
    assert (content["epsilon"], content["attacks"]) == ("32/255", ["pgd"])
    assert len(cells) == 4
    assert set(ordinary) == {"cnn/digits.standard", "vit/digits.standard"}
    assert {cell["robust_accuracy"]["n"] for cell in cells.values()} == {20}
    assert all(
        cell["robust_accuracy"]["value"] <= ordinary[target] for (_, target), cell in cells.items()
    )
    assert second.err.count("6 shards were finished before; 0 to do") == 2
    assert "n = 20" in second.out
    assert "equal names: white box" in second.out


def test_a_run_shows_the_images_of_another_model_to_a_worker(harness, tiny):
    options = ("--suite", tiny, "--model", "cnn/digits", "--transfer-from", "vit/digits.standard")
    done = harness("run", *options, "--executor", "process", "--workers", 1, "--json")
    again = harness("run", *options)

    [row] = json.loads(done.out)["rows"]
    assert done.code == 0, done.err
    assert (row["model"], row["transfer_from"]) == ("cnn/digits.standard", ["vit/digits.standard"])
    assert row["flags"] == ["transfer"]
    assert again.err.count("3 shards were finished before; 0 to do") == 2
    assert "attacks noise, pgd@vit/digits.standard" in " ".join(again.out.split())


def test_such_a_row_is_not_published(harness, tiny):
    harness("run", "--suite", tiny, "--model", "cnn/digits", "--transfer-from", "cnn/digits")

    done = harness("publish", "--suite", tiny, "--json")

    [row] = json.loads(done.out)["rows"]
    assert "transfer_from" not in row
    assert row["flags"] == []


BAD = [
    (["run", "--transfer-from", "cnn/digts"], 1, "did you mean 'cnn/digits'"),
    (["run", "--transfer-from", "."], 2, "run with --save-adversarial"),
    (["run", "--transfer-from", "cnn/digits", "--attack", "noise"], 2, "another with --attack"),
    (["transfer", "--attack", "clean"], 2, "another with --attack"),
    (["transfer", "--epsilon", "7/255"], 2, "has 8/255, 32/255"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "remedy"), BAD, ids=[" ".join(item[0]) for item in BAD]
)
def test_what_cannot_be_transferred_is_refused_with_the_remedy(
    harness, tiny, arguments, code, remedy
):
    done = harness(*arguments, "--suite", tiny)

    assert (done.code, remedy in done.err) == (code, True), done.err
    assert "Traceback" not in done.err

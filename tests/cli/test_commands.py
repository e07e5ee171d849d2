"""The command line, as a user meets it."""

from __future__ import annotations

import json

import pytest

LISTS = [
    ["ls", "models"],
    ["ls", "suites"],
    ["ls", "attacks"],
    ["show", "pgd-40-vmoe"],
    ["show", "digits-linf"],
    ["plugins"],
    ["plan"],
]


@pytest.mark.parametrize("arguments", LISTS, ids=[" ".join(item) for item in LISTS])
def test_a_command_that_only_lists_prints_json_without_torch(harness, tmp_path, arguments):
    code = (
        "import runpy, sys, atexit\n"
        "atexit.register(lambda: sys.stderr.write(f'TORCH={\"torch\" in sys.modules}'))\n"
        f"sys.argv = ['harness', *{[*arguments, '--json']!r}]\n"
        "runpy.run_module('harness', run_name='__main__')\n"
    )
    (tmp_path / "probe.py").write_text(code)

    done = harness_python(tmp_path)

    assert json.loads(done.stdout)
    assert "TORCH=False" in done.stderr


def harness_python(folder):
    import subprocess
    import sys

    return subprocess.run(
        [sys.executable, "probe.py"], cwd=folder, capture_output=True, text=True, check=True
    )


def test_a_run_shows_the_table_and_the_same_command_does_nothing_again(harness, tiny):
    first = harness("run", "--suite", tiny, "--json")
    second = harness("run", "--suite", tiny, "--json")

    assert first.code == 0, first.err
    assert json.loads(first.out) == json.loads(second.out)
    assert "3 shards were finished before; 0 to do" in second.err


def test_a_row_has_its_metrics_by_name_with_intervals(harness, tiny):
    content = json.loads(harness("run", "--suite", tiny, "--json").out)

    row = content["rows"][0]
    assert (content["suite"], content["protocol"]) == ("tiny", "nested")
    assert row["model"] == "cnn/digits.standard"
    assert row["clean_accuracy"]["n"] == 20
    assert set(row["robust_accuracy"]) == {"8/255", "32/255"}
    assert set(row["robust_accuracy"]["8/255"]) == {"value", "low", "high", "n"}
    assert row["flags"] == []


def test_the_table_names_model_numbers_and_protocol(harness, tiny):
    done = harness("run", "--suite", tiny)

    assert "cnn/digits.standard" in done.out
    assert "protocol nested" in done.out
    assert "n = 20" in done.out


def test_a_limited_run_is_marked_and_serves_the_whole_one(harness, tiny):
    limited = json.loads(harness("run", "--suite", tiny, "--limit", 10, "--json").out)
    whole = harness("run", "--suite", tiny, "--json")

    assert limited["rows"][0]["flags"] == ["limited"]
    assert limited["rows"][0]["clean_accuracy"]["n"] == 10
    assert json.loads(whole.out)["rows"][0]["flags"] == []


def test_training_alone_leaves_weights_that_a_run_uses(harness, tiny):
    trained = json.loads(harness("train", "--suite", tiny, "--json").out)
    plan = json.loads(harness("plan", "--suite", tiny, "--json").out)

    assert list(trained) == ["cnn/digits.standard"]
    assert plan["rows"][0]["weights"] == "trained"


def test_a_training_in_mixed_precision_is_one_of_its_own_and_says_so(harness, tiny, tmp_path):
    line = ("train", "--suite", tiny, "--json")
    [plain] = json.loads(harness(*line).out).values()

    done = harness(*line, "--precision", "bfloat16-mixed")

    [mixed] = json.loads(done.out).values()
    card = json.loads((tmp_path / mixed["weights"]).with_name("card.json").read_text())
    assert card["ingredients"]["mode"] == "bfloat16-mixed"
    assert mixed["sha256"] != plain["sha256"]
    assert "images/s" in done.err


def test_a_training_that_starts_from_weights_says_so_and_a_run_uses_it(harness, tiny, tmp_path):
    [first] = json.loads(harness("train", "--suite", tiny, "--json").out).values()
    start = ("--suite", tiny, "--model", "cnn/digits", "--start", first["weights"], "--json")

    done = harness("train", *start)
    row = json.loads(harness("run", *start).out)["rows"][0]

    [second] = json.loads(done.out).values()
    card = json.loads((tmp_path / second["weights"]).with_name("card.json").read_text())
    told = {"file": "weights.safetensors", "sha256": first["sha256"], "changes": []}
    assert card["start"] == told
    assert card["ingredients"]["start"] == first["sha256"]
    assert second["epochs"][0]["loss"] < first["epochs"][-1]["loss"]
    assert row["flags"] == ["started-from-weights"]
    assert list(tmp_path.glob("runs/*/manifest.json"))
    assert len(list(tmp_path.glob("runs/weights/*/card.json"))) == 2


def test_the_plan_knows_what_is_finished(harness, tiny):
    before = json.loads(harness("plan", "--suite", tiny, "--json").out)["rows"][0]
    harness("run", "--suite", tiny)
    after = json.loads(harness("plan", "--suite", tiny, "--json").out)["rows"][0]

    assert (before["shards_done"], after["shards_done"]) == (0, 3)
    # noise costs nothing, PGD four passes at each of two epsilons
    assert before["passes"] == 8
    assert after["seconds_left"] == 0


def test_publishing_writes_the_table_and_entries_with_bits(harness, tiny, tmp_path):
    from harness.entries import read_entry

    rows = json.loads(harness("run", "--suite", tiny, "--json").out)["rows"]

    done = harness("publish", "--suite", tiny)

    entry = read_entry(tmp_path / "leaderboard/tiny/cnn/digits.standard.json")
    assert done.code == 0, done.err
    assert "cnn/digits.standard" in (tmp_path / "leaderboard/tiny.md").read_text()
    assert entry.robust("8/255").mean() == rows[0]["robust_accuracy"]["8/255"]["value"]
    assert entry.content["checks"]["looked"] == 20
    assert str(tmp_path) not in json.dumps(entry.content)


def test_publishing_a_limited_run_says_why_not(harness, tiny):
    harness("run", "--suite", tiny, "--limit", 8)

    done = harness("publish", "--suite", tiny)

    assert done.code == 1
    assert "run it first" in done.err


def test_adversarial_images_are_kept_on_request(harness, tiny, tmp_path):
    import numpy as np

    harness("run", "--suite", tiny, "--save-adversarial")

    [path] = tmp_path.glob("runs/*/images/00000.npz")
    images = np.load(path)
    assert images["pgd@8_255"].shape == (8, 1, 8, 8)
    # 8/255 and rounding
    assert np.abs(images["pgd@8_255"] - images["clean"]).max() <= 8 / 255 + 1e-6


def test_records_are_the_same_for_every_batch_size_executor_and_number_of_workers(
    harness, tiny, tmp_path
):
    harness("run", "--suite", tiny, "--out", "a")
    shutil_copy_weights(tmp_path, "a", "b", "c")

    harness("run", "--suite", tiny, "--out", "b", "--batch-size", 7)
    harness("run", "--suite", tiny, "--out", "c", "--executor", "process", "--workers", 2)

    assert shards(tmp_path / "a") == shards(tmp_path / "b") == shards(tmp_path / "c")
    assert len(shards(tmp_path / "a")) == 3


def test_records_are_the_same_for_every_shard_size(harness, tiny, tmp_path):
    harness("run", "--suite", tiny, "--out", "a")
    shutil_copy_weights(tmp_path, "a", "b")
    tiny.write_text(tiny.read_text().replace("shard_size = 8", "shard_size = 20"))

    harness("run", "--suite", tiny, "--out", "b")

    assert records(tmp_path / "a") == records(tmp_path / "b")


def shutil_copy_weights(folder, source, *targets):
    import shutil

    for target in targets:
        shutil.copytree(folder / source / "weights", folder / target / "weights")


def shards(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.glob("*/shards/*.jsonl")}


def records(folder):
    texts = [path.read_text() for path in sorted(folder.glob("*/shards/*.jsonl"))]
    return [line for text in texts for line in text.splitlines()[:-1]]


BAD = [
    (["run", "--model", "vit/digts"], "did you mean 'vit/digits'"),
    (["run", "--suite", "digits-lnf"], "did you mean 'digits-linf'"),
    (["run", "--attack", "pdg"], "did you mean 'pgd'"),
    (["run", "--attack", "pgd:cee"], "did you mean 'ce'"),
    (["run", "--executor", "proces"], "did you mean 'process'"),
    (["run", "--plugin", "nope.py"], "no such file"),
    (["run", "--data", "nowhere"], "no such folder"),
    (["run", "--device", "tpu9"], "try --device cpu"),
    (["run", "--no-plugin", "nobody"], "no such plugin"),
    (["run", "--weights", "x.safetensors"], "exactly one --model"),
    (["run", "--model", "cnn/digits", "--weights", "x.safetensors"], "cannot be read"),
    (["train", "--start", "x.safetensors"], "exactly one --model"),
    (["train", "--precision", "bfloat16"], "did you mean 'bfloat16-mixed'"),
    (["train", "--model", "cnn/digits", "--start", "x.safetensors"], "cannot be read"),
    (["plan", "--model", "cnn/digits", "--start", "x.safetensors"], "cannot be read"),
    (["ls", "modles"], "did you mean 'models'"),
    (["show", "pgdd"], "did you mean 'pgd'"),
    (["publish", "--runs", "nowhere"], "run it first"),
]


WRONG_LINES = [
    ["run", "--data", "nowhere"],
    ["run", "--device", "tpu9"],
    ["run", "--no-plugin", "nobody"],
    ["run", "--weights", "x.safetensors"],
    ["train", "--start", "x.safetensors"],
    ["train", "--precision", "bfloat16"],
    ["ls", "modles"],
]
"""What no plugin, suite or file could make right."""


@pytest.mark.parametrize(("arguments", "remedy"), BAD, ids=[" ".join(item[0]) for item in BAD])
def test_bad_input_gets_one_line_with_the_remedy(harness, arguments, remedy):
    done = harness(*arguments)

    assert done.code == (2 if arguments in WRONG_LINES else 1)
    assert remedy in done.err
    assert "Traceback" not in done.err


def test_an_unwritable_run_folder_is_refused_before_training(harness, tiny, tmp_path):
    (tmp_path / "file").write_text("")

    done = harness("run", "--suite", tiny, "--out", "file/runs")

    assert done.code == 1
    assert "choose another --out" in done.err


def test_a_broken_plugin_is_shown_and_the_others_work(harness, tiny, tmp_path):
    (tmp_path / "broken.py").write_text("import no_such_module\n")

    done = harness("run", "--suite", tiny, "--plugin", "broken.py", "--json")

    assert done.code == 0
    assert "plugin 'broken' is broken: ModuleNotFoundError" in done.err


def test_a_bad_model_does_not_cost_the_good_ones_their_rows(harness, tiny, tmp_path):
    (tmp_path / "bad.py").write_text(
        "import torch\n"
        "from harness import ModelCard, hookimpl\n"
        "@hookimpl\n"
        "def register_models(register):\n"
        "    register('bad', lambda context: torch.nn.Flatten(),\n"
        "             card=ModelCard(weights='included'))\n"
    )

    done = harness(
        "run", "--suite", tiny, "--plugin", "bad.py",
        "--model", "bad", "--model", "cnn/digits", "--json",
    )  # fmt: skip

    assert done.code == 3
    assert "build the model for 10 classes" in done.err
    assert [row["model"] for row in json.loads(done.out)["rows"]] == ["cnn/digits.standard"]


def test_weights_of_another_model_are_refused_before_any_attack(harness, tiny, tmp_path):
    from safetensors.torch import save_file
    from torch import zeros

    save_file({"other": zeros(1)}, tmp_path / "other.safetensors")

    done = harness(
        "run", "--suite", tiny, "--model", "cnn/digits", "--weights", "other.safetensors"
    )

    assert done.code == 1
    assert "weights of another model" in done.err


def test_the_doctor_finds_this_machine_fit(harness):
    done = harness("doctor", "--json")

    content = json.loads(done.out)
    assert done.code == 0, done.out
    assert content["ok"]
    assert "padded batches, attention" in [check["check"] for check in content["checks"]]

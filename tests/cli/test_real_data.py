"""Real images from the command line: the paths that a user of CIFAR or ImageNet takes."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Picture

EFFICIENTNET = "weights/tf_efficientnet_lite0.safetensors"
ROBUST = "weights/resnet14w24_cifar10_at.safetensors"
INPUT_SIZE = """
import torch
from torch import nn
from harness import ModelCard, hookimpl

class Sixteen(nn.Module):
    input_size = (16, 16)

    def __init__(self, pixels, classes):
        super().__init__()
        self.linear = nn.Linear(pixels, classes)

    def forward(self, images):
        return self.linear(nn.functional.interpolate(images, (16, 16)).flatten(1))

def build(context):
    return Sixteen(context.image_shape[0] * 256, context.num_classes)

@hookimpl
def register_models(register):
    register("sixteen", build, card=ModelCard("Works at 16 pixels.", weights="included"))
"""

THIN = """
from torch import nn
from harness import hookimpl

def build(context):
    return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(192, context.num_classes))

@hookimpl
def register_models(register):
    register("thin", build)
"""


@pytest.fixture
def cifar(harness, data_dir):
    """Runs a command over CIFAR-10 with the robust ResNet's weights."""

    def call(command, *arguments, suite="cifar10-linf"):
        given = ["--suite", suite, "--data", data_dir, "--model", "cnn/resnet14w24"]
        weights = ["--weights", data_dir / ROBUST]
        return harness(command, *given, *weights, *arguments)

    return call


@pytest.fixture
def imagenet(harness, data_dir):
    """Runs a command over the ImageNet sample with EfficientNet-Lite0."""

    def call(command, *arguments, suite="imagenet-linf"):
        given = ["--suite", suite, "--data", data_dir, "--model", "timm/tf_efficientnet_lite0"]
        weights = ["--weights", data_dir / EFFICIENTNET]
        return harness(command, *given, *weights, *arguments)

    return call


def test_numbers_of_another_copy_name_it(cifar):
    done = cifar("run", "--offline", "--attack", "fgsm", "--limit", "32", "--json")

    row = json.loads(done.out)["rows"][0]
    assert row["board"] == "cifar10-linf@jpeg75"
    assert {"other-data", "limited", "other-attacks"} <= set(row["flags"])
    assert row["clean_accuracy"]["n"] == 32


def test_a_robust_network_raises_no_flag_of_the_checks(cifar, tmp_path):
    done = cifar("run", "--offline", "--attack", "pgd", "--limit", "32", "--json")

    row = json.loads(done.out)["rows"][0]
    checks = json.loads(next(tmp_path.glob("runs/*/checks.json")).read_text())
    assert set(row["flags"]) == {"other-data", "limited", "other-attacks"}
    assert (checks["looked"], checks["flags"]) == (32, [])
    assert len(checks["samples"]) > 16


def test_the_table_names_the_copy(cifar):
    done = cifar("run", "--offline", "--attack", "fgsm", "--limit", "8")

    assert "cifar10-linf@jpeg75" in done.out


def test_a_copy_that_was_asked_for_and_is_not_there_is_refused(cifar):
    done = cifar("run", "--offline", "--limit", "8", suite="cifar10-linf@png")

    assert done.code == 1
    assert "the images here are the copy 'jpeg75'" in done.err


def test_the_copy_that_was_asked_for_runs(cifar):
    done = cifar("run", "--attack", "clean", "--limit", "8", "--json", suite="cifar10-linf@jpeg75")

    assert done.code == 0, done.err


def test_rows_of_a_copy_that_is_named_later_move_to_its_board(harness, cifar, tmp_path):
    tiny = tmp_path / "tiny.toml"
    tiny.write_text(
        'name = "tiny"\nversion = 1\n[data]\nname = "cifar10"\nsamples = [3, 1]\n'
        '[data.copies]\nsmall = "FINGERPRINT"\n[threat]\nnorm = "linf"\n'
        'epsilons = ["8/255"]\nheadline = "8/255"\n[[attacks]]\nname = "fgsm"\n'
    )
    first = json.loads(cifar("run", "--json", suite=tiny).out)["rows"][0]
    manifest = json.loads(next(tmp_path.glob("runs/*/manifest.json")).read_text())
    fingerprint = manifest["ingredients"]["data"]
    tiny.write_text(tiny.read_text().replace("FINGERPRINT", fingerprint))
    second = json.loads(cifar("run", "--json", suite=tiny).out)["rows"][0]

    of_suite = harness("publish", "--suite", tiny)
    of_copy = harness("publish", "--suite", f"{tiny}@small")

    assert (first["board"], second["board"]) == ("tiny", "tiny@small")
    assert of_suite.code == 1
    assert "rows on another copy of the data: publish tiny@small" in of_suite.err
    assert of_copy.out.strip() == "leaderboard/tiny@small.md"
    assert "(tiny@small)" in (tmp_path / "leaderboard" / "tiny@small.md").read_text()


@pytest.mark.slow
def test_weights_trained_on_real_images_are_found_again(harness, data_dir, tmp_path):
    suite = tmp_path / "small.toml"
    suite.write_text(
        'name = "small"\nversion = 1\n[data]\nname = "tiny-imagenet"\nsplit = "valid"\n'
        'samples = [1]\n[threat]\nnorm = "linf"\nepsilons = ["8/255"]\nheadline = "8/255"\n'
        '[[attacks]]\nname = "fgsm"\n[recipes.standard]\nepochs = 1\nbatch_size = 5000\n'
    )
    (tmp_path / "use.py").write_text(
        "import harness\n"
        f"model = harness.load_model('thin.standard', suite='small.toml', data={str(data_dir)!r},"
        " plugins=['thin.py'])\nprint(type(model).__name__)\n"
    )
    (tmp_path / "thin.py").write_text(THIN)
    told = harness(
        *["run", "--suite", "small.toml", "--plugin", "thin.py", "--model", "thin"],
        *["--recipe", "standard", "--data", data_dir, "--json"],
    )

    loaded = subprocess.run(
        [sys.executable, "use.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert "partial-training" in json.loads(told.out)["rows"][0]["flags"]
    assert loaded.stdout.strip() == "Sequential", loaded.stderr


@pytest.mark.slow
def test_a_small_copy_of_imagenet_is_used_and_marked(imagenet):
    done = imagenet("run", "--offline", "--attack", "clean", "--json")

    row = json.loads(done.out)["rows"][0]
    assert "partial-data" in row["flags"]
    # timm's own evaluation transform gives 453 of the 500
    assert round(row["clean_accuracy"]["value"] * 500) == pytest.approx(453, abs=2)
    assert row["clean_accuracy"]["n"] == 500


def test_the_plan_of_a_small_copy_counts_its_images(imagenet):
    done = imagenet("plan", "--json")

    assert json.loads(done.out)["rows"][0]["images"] == 500


def test_weights_for_other_classes_are_refused_with_both_counts(harness, data_dir):
    done = harness(
        *["run", "--suite", "cifar10-linf", "--data", data_dir, "--offline", "--limit", "8"],
        *["--model", "timm/tf_efficientnet_lite0", "--weights", data_dir / EFFICIENTNET],
    )

    assert done.code == 1
    assert "1000 classes" in done.err
    assert "10" in done.err


def test_pretrained_weights_without_a_network_say_what_to_do(harness, data_dir):
    done = harness(
        *["run", "--suite", "imagenet-linf", "--data", data_dir, "--offline", "--limit", "4"],
        *["--model", "timm/tf_efficientnet_lite0", "--weights", "pretrained"],
    )

    assert done.code == 1
    assert "--weights FILE" in done.err


def test_a_model_without_pretrained_weights_says_so(harness):
    done = harness("run", "--model", "cnn/digits", "--weights", "pretrained")

    assert done.code == 2
    assert "brings no pretrained weights" in done.err


def test_images_that_are_nowhere_are_missed_with_all_places(harness, data_dir):
    done = harness(
        *["run", "--suite", "cifar100-linf", "--data", data_dir, "--offline"],
        *["--model", "cnn/resnet14w24"],
    )

    assert done.code == 1
    assert f"no cifar100/test-*.parquet in {data_dir}/cifar100" in done.err
    assert "--offline forbids to ask the hub" in done.err


def test_images_without_labels_do_not_keep_a_row_off_the_board(harness, tmp_path):
    suite = tmp_path / "two.toml"
    suite.write_text(
        'name = "two"\nversion = 1\nmetrics = ["fdr-at-1"]\n[data]\nname = "files/PATH"\n'
        'split = "test"\nlabels = "sets"\n[data.canvas]\nsize = 32\n[threat]\nnorm = "linf"\n'
        'epsilons = ["8/255"]\nheadline = "8/255"\n[[attacks]]\nname = "fgsm"\n'.replace(
            "PATH", str(tmp_path / "few")
        )
    )
    features = Features({"image": Image(), "label": ClassLabel(num_classes=10)})
    pictures = [Picture.new("RGB", (32, 32), (40 * place, 9, 9)) for place in range(3)]
    rows = Dataset.from_dict({"image": pictures, "label": [0, 1, 2]}, features=features)
    (tmp_path / "few").mkdir()
    rows.to_parquet(tmp_path / "few" / "test.parquet")
    (tmp_path / "sets.json").write_text("[[1], [], [2, 3]]")
    (tmp_path / "thin.py").write_text(INPUT_SIZE)
    harness(
        *["run", "--suite", suite, "--plugin", "thin.py", "--model", "sixteen"],
        *["--labels", "sets.json"],
    )

    published = harness("publish", "--suite", suite, "--json")

    assert published.code == 0, published.err
    (row,) = json.loads(published.out)["rows"]
    assert row["n"] == 2


@pytest.mark.slow
def test_label_sets_change_who_is_right(imagenet, tmp_path):
    suite = "imagenet-real-multilabel"
    (tmp_path / "all.json").write_text(json.dumps([[0, 1]] * 3 + [[]] + [list(range(999))] * 496))

    done = imagenet(
        "run", "--attack", "fgsm", "--limit", "8", "--labels", "all.json", "--json", suite=suite
    )

    row = json.loads(done.out)["rows"][0]
    # none of the first three shows a tench or a goldfish; the fourth has no label; all others count
    assert row["precision_at_1"]["value"] == pytest.approx(5 / 8)
    assert row["precision_at_1"]["n"] == 8


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["--attack", "pgd:dlr"], "objective 'dlr' has no meaning"),
        (["--attack", "fgsm"], "give it with --labels"),
        (["--attack", "fgsm", "--labels", "nowhere.json"], "nowhere.json: cannot be read"),
    ],
    ids=["dlr", "no file", "missing file"],
)
def test_label_sets_refuse_what_has_no_meaning(imagenet, arguments, remedy):
    done = imagenet("run", "--limit", "4", *arguments, suite="imagenet-real-multilabel")

    assert done.code == 1
    assert remedy in done.err


def test_model_space_attacks_at_the_models_own_size(harness, tmp_path):
    (tmp_path / "sixteen.py").write_text(INPUT_SIZE)

    done = harness(
        *["run", "--suite", "digits-linf@model-space", "--plugin", "sixteen.py"],
        *["--model", "sixteen", "--limit", "4", "--attack", "fgsm", "--json"],
        "--save-adversarial",
    )

    row = json.loads(done.out)["rows"][0]
    kept = np.load(next(tmp_path.glob("runs/*/images/gallery.npz")))
    assert row["board"] == "digits-linf@model-space"
    assert kept["clean"].shape == (4, 1, 16, 16)


def test_model_space_needs_a_model_that_says_its_size(harness):
    done = harness(
        *["run", "--suite", "digits-linf@model-space", "--model", "cnn/digits", "--limit", "4"],
        *["--recipe", "standard"],
    )

    assert done.code == 1
    assert "says no input_size" in done.err


@pytest.mark.slow
def test_a_command_line_of_corruptions_shows_severities(cifar):
    pytest.importorskip("imagecorruptions", exc_type=ImportError)

    done = cifar("run", "--limit", "4", "--json", suite="cifar10-corruptions")

    row = json.loads(done.out)["rows"][0]
    assert list(row["mean_accuracy"]) == ["1", "2", "3", "4", "5"]
    assert row["board"] == "cifar10-corruptions@jpeg75"

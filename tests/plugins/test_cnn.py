"""Networks for small images: their sizes, and the given weights of the small ResNet."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from harness.api import ModelError
from harness.building import build_model
from harness.flops import count_flops
from harness.numerics import Batches
from harness.seeing import predict

DATA = Path(os.environ.get("HARNESS_DATA", Path(__file__).parents[3] / "shared" / "data"))
WEIGHTS = DATA / "weights" / "resnet14w24_cifar10_at.safetensors"
PICTURES = DATA / "cifar10" / "plain_text"

# parameters, and multiply-adds of one image at 32 and at 64 pixels, for 10 classes; AdvMoE's
# networks have 11.174 / 2.798, 36.479 / 9.126, 15.312 / 4.013 and 0.176 / 0.046 M parameters
# and 0.5554 / 0.1393, 5.2433 / 1.3109, 0.3138 / 0.0791 and 0.0724 / 0.0183 G multiply-adds
COSTS = {
    "cnn/resnet18": (11_173_962, 555_422_720, 2_221_675_520),
    "cnn/resnet18-half": (2_797_610, 139_299_328, 557_189_632),
    "cnn/wrn28-10": (36_479_194, 5_243_328_768, 20_973_295_872),
    "cnn/wrn28-10-half": (9_126_002, 1_310_944_384, 5_243_767_936),
    "cnn/vgg16": (15_311_818, 313_788_928, 1_253_378_560),
    "cnn/vgg16-half": (4_013_034, 79_071_744, 315_296_256),
    "cnn/densenet40": (176_122, 72_365_352, 289_457_448),
    "cnn/densenet40-half": (45_802, 18_257_556, 73_028_244),
    "cnn/resnet14w24": (392_674, 59_646_912, 238_584_768),
    "cnn/resnet14w24-s2": (392_674, 14_912_448, 59_646_912),
}
LIGHT = [name for name, (_, adds, _) in COSTS.items() if adds < 2_000_000_000]


def build(registry, name, size=32, device="cpu", **parameters):
    with torch.device(device):
        return build_model(
            registry, name, num_classes=10, image_shape=(3, size, size), seed=1, **parameters
        ).eval()


@pytest.mark.parametrize("name", COSTS)
def test_has_the_parameters_and_the_cost_of_the_published_network(registry, name):
    model = build(registry, name, device="meta")

    parameters = sum(parameter.numel() for parameter in model.parameters())
    operations = [count_flops(model, (3, size, size), name) for size in (32, 64)]

    # a multiply-add is two operations
    assert (parameters, *[count // 2 for count in operations]) == COSTS[name]


def test_the_network_of_the_digits_keeps_its_parameters(registry):
    model = build_model(registry, "cnn/digits", num_classes=10, image_shape=(1, 8, 8), seed=1)

    # stem 144 + 32, blocks 4,672 + 14,528 + 57,728, head 650
    assert sum(parameter.numel() for parameter in model.parameters()) == 77_754
    assert {key.split(".")[0] for key in model.state_dict()} == {"stem", "bn", "blocks", "head"}


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("name", LIGHT)
def test_each_pixel_of_either_size_has_a_gradient(registry, name, size):
    model = build(registry, name, size)
    images = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(1))

    logits = model(images.requires_grad_())
    logits.square().sum().backward()

    assert logits.shape == (1, 10)
    assert logits.isfinite().all()
    assert (images.grad != 0).float().mean() > 0.99


def test_a_ratio_that_leaves_no_channel_is_refused(registry):
    with pytest.raises(ModelError, match="must be at least 1/12"):
        build(registry, "cnn/densenet40", ratio=0.01)


def given(registry):
    if not WEIGHTS.is_file():
        pytest.skip(f"{WEIGHTS.name} is not there; HARNESS_DATA names the folder of data")
    model = build(registry, "cnn/resnet14w24")
    model.load_state_dict(load_file(WEIGHTS), strict=True)
    return model


def test_the_given_weights_fit_by_strict_key(registry):
    model = given(registry)

    assert torch.equal(model.linear.weight, load_file(WEIGHTS)["linear.weight"])


def test_the_given_weights_classify_as_their_note_says(registry):
    model = given(registry)
    files = sorted(PICTURES.glob("test-*.parquet"))
    if not files:
        pytest.skip("no CIFAR-10 test images; HARNESS_DATA names the folder of data")
    table = pq.read_table(files[0]).slice(0, 200).to_pydict()
    pixels = [np.array(Image.open(io.BytesIO(item["bytes"]))) for item in table["img"]]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255

    predictions = predict(model, images, batches=Batches(200)).argmax(dim=1)

    # 71.0 % of 2,000 images; of 200, one standard error is 3.2 points
    accuracy = (predictions == torch.tensor(table["label"])).float().mean()
    assert 0.66 <= accuracy <= 0.76

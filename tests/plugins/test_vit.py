"""Vision transformers: the papers' counts, the official code's numbers, timm's weights."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from golden_files import golden_arrays
from harness.api import ModelContext
from harness.building import build_model
from harness.checkpoints import load_weights, state_hash
from harness.errors import CheckpointError, ModelError
from harness.flops import count_flops
from harness_vit.convert import from_flax
from harness_vit.models import Normalised, from_timm
from harness_vit.vit import Architecture, Block, DenseViT, Head, Mlp

DATA = Path(os.environ.get("HARNESS_DATA", Path(__file__).parents[3] / "shared" / "data"))
LITE = DATA / "weights" / "tf_efficientnet_lite0.safetensors"
GIVEN = pytest.mark.skipif(not LITE.exists(), reason=f"no {LITE.name} in the folder of data")

COUNTS = {
    "vit/s32-vmoe": (27_595_240, 27_643_880),
    "vit/b32": (88_814_824, 88_887_784),
    "vit/b+32": (128_889_448, 128_968_488),
    "vit/b++32": (178_119_528, 178_204_648),
    "vit/b+++32": (237_389_800, 237_481_000),
    "vit/l32": (307_585_000, 307_682_280),
    # without pre_logits; +(577 - 197) positions of the width
    "vit/ti16": (5_717_416, 5_790_376),
    "vit/s16": (22_050_664, 22_196_584),
    "vit/b16": (86_567_656, 86_859_496),
}
"""Parameters for 1000 classes at 224 and at 384 pixels; the first six of the V-MoE reference."""


def build(registry, name, size=224, classes=1000, device="meta", **parameters):
    with torch.device(device):
        return build_model(
            registry, name, num_classes=classes, image_shape=(3, size, size), seed=1, **parameters
        ).eval()


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def small(**changes):
    """The golden files' transformer: four blocks of width 32 on patches of 4x4 pixels."""
    torch.manual_seed(0)
    architecture = Architecture(4, 32, 4, 4, 64, **changes)
    return DenseViT(architecture, channels=3, num_classes=10, input_size=(16, 16)).eval()


def golden(name):
    return golden_arrays("vmoe", name)


def params(arrays):
    """The parameters of a golden file by their flax paths."""
    return arrays.under("params/")


def pictures(arrays):
    """The images of a golden file in our range and layout."""
    return (torch.tensor(arrays["images"]).permute(0, 3, 1, 2).contiguous() + 1) / 2


def spread(tensor):
    return float(tensor.detach().double().std())


@pytest.mark.parametrize("name", COUNTS)
def test_has_the_parameters_of_the_reference(registry, name):
    assert tuple(count(build(registry, name, size)) for size in (224, 384)) == COUNTS[name]


@pytest.mark.parametrize(
    ("name", "size", "tokens"),
    [
        ("vit/b32", 224, 50),
        ("vit/b32", 384, 145),
        ("vit/b16", 224, 197),
        ("vit/b16", 384, 577),
        ("vit/ti4", 32, 65),
        ("vit/ti8", 64, 65),
    ],
)
def test_has_a_token_for_each_patch_and_one_for_the_class(registry, name, size, tokens):
    model = build(registry, name, size)

    assert model.embedding(torch.zeros(2, 3, size, size, device="meta")).shape[1] == tokens


def test_the_small_patches_change_only_the_embedding(registry):
    counts = [
        count(build(registry, name, size)) - count(build(registry, name, size).embedding)
        for name, size in (("vit/ti4", 32), ("vit/ti8", 64), ("vit/ti16", 224))
    ]

    assert len(set(counts)) == 1


def test_pre_logits_are_one_dense_layer(registry):
    with_layer, without = (build(registry, "vit/b32", pre_logits=on) for on in (True, False))

    assert count(with_layer) - count(without) == 768 * 768 + 768


@pytest.mark.parametrize(("name", "published"), [("vit/b32", 8.9), ("vit/b++32", 17.9)])
def test_costs_what_the_paper_says(registry, name, published):
    model = build(registry, name)

    # theirs counts the element-wise operations, too
    assert count_flops(model, (3, 224, 224), name) / 1e9 == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize(
    ("name", "logits"), [("dense_vitjax_f32.npz", "logits"), ("dense_f32.npz", "eval/logits")]
)
def test_gives_the_logits_of_the_official_code(name, logits):
    arrays = golden(name)
    expected = torch.tensor(arrays[logits])
    model = small()

    model.load_state_dict(from_flax(params(arrays)))

    # the README's bound between float32 and float64 runs, as a part of the largest entry
    difference = (model(pictures(arrays)) - expected).abs().max()
    assert difference <= 4e-6 * expected.abs().max()


def test_gives_the_image_gradient_of_the_official_code():
    arrays = golden("dense_f32.npz")
    expected = torch.tensor(arrays["eval/dimage_softmax"]).permute(0, 3, 1, 2)
    model = small()
    model.load_state_dict(from_flax(params(arrays)))
    images = pictures(arrays).requires_grad_()

    loss = functional.cross_entropy(model(images), torch.tensor(arrays["labels"]).long())
    (gradient,) = torch.autograd.grad(loss, images)

    # our pixels are in [0, 1], theirs in [-1, 1]: one of ours is two of theirs
    assert (gradient / 2 - expected).abs().max() <= 4e-6 * expected.abs().max()


def test_gives_the_pre_logits_of_the_official_code():
    arrays = golden("e8_k2_perimage_bf16_f32.npz")
    wanted = ("pre_logits/", "head/", "Encoder/encoder_norm/")
    state = from_flax({k: v for k, v in params(arrays).items() if k.startswith(wanted)})
    head = Head(32, 10, pre_logits=True)

    head.load_state_dict({name.removeprefix("head."): value for name, value in state.items()})

    expected = torch.tensor(arrays["eval/logits"])
    found = head(torch.tensor(arrays["eval/block3/output"]))
    assert (found - expected).abs().max() <= 4e-6 * expected.abs().max()


def test_both_official_trees_give_the_same_state():
    arrays = golden("dense_vitjax_f32.npz")
    here, there = params(arrays), params(golden("dense_f32.npz"))
    names = json.loads(str(arrays["name_map"]))

    states = from_flax(here), from_flax({names[path]: there[names[path]] for path in here})

    assert set(names.values()) == set(there)
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0] | states[1])


def test_the_numbering_of_the_published_files_gives_the_same_state():
    here = params(golden("dense_vitjax_f32.npz"))
    published = {
        path.replace("LayerNorm_1", "LayerNorm_2")
        .replace("MultiHeadDotProductAttention_0", "MultiHeadDotProductAttention_1")
        .replace("MlpBlock_0", "MlpBlock_3"): value
        for path, value in here.items()
    }

    states = from_flax(here), from_flax(published)

    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0] | states[1])


def test_foreign_parameters_are_refused_by_their_path():
    with pytest.raises(CheckpointError, match=r"encoderblock_1/Moe/Router.* without experts"):
        from_flax({"Encoder/encoderblock_1/Moe/Router/dense/kernel": np.zeros((2, 2))})


def test_a_parameter_under_two_names_is_refused():
    with pytest.raises(CheckpointError, match=r"head\.norm\.bias comes twice"):
        from_flax({f"{tree}/encoder_norm/bias": np.zeros(2) for tree in ("Encoder", "Transformer")})


def test_starts_as_the_reference_but_for_the_kernel_of_the_head():
    torch.manual_seed(0)
    architecture = Architecture(8, 128, 1, 4, 512, pre_logits=True)
    model = DenseViT(architecture, channels=3, num_classes=10, input_size=(64, 64))
    [block] = model.blocks

    # Xavier: sqrt(2 / (in + out)); LeCun: sqrt(1 / in)
    assert spread(block.attention.query.weight) == pytest.approx(math.sqrt(2 / 256), rel=0.03)
    assert spread(block.mlp.hidden.weight) == pytest.approx(math.sqrt(2 / 640), rel=0.03)
    assert spread(model.embedding.patches.weight) == pytest.approx(math.sqrt(1 / 192), rel=0.03)
    assert spread(model.head.pre_logits.weight) == pytest.approx(math.sqrt(1 / 128), rel=0.03)
    assert spread(model.embedding.positions) == pytest.approx(0.02, rel=0.03)
    assert spread(block.mlp.out.bias) == pytest.approx(1e-6, rel=0.3)
    assert not model.embedding.class_token.any()
    assert not block.attention.out.bias.any()
    assert model.head.logits.bias.tolist() == pytest.approx([-math.log(10)] * 10)
    assert 0 < spread(model.head.logits.weight) < 0.02


def test_a_block_takes_another_network_in_place_of_its_mlp():
    block = Block(8, 2, nn.Identity())
    tokens = torch.randn(3, 5, 8)

    attended = block.attended(tokens)

    assert torch.allclose(block(tokens), attended + block.mlp_norm(attended))


def test_without_positions_the_order_of_the_tokens_says_nothing():
    torch.manual_seed(0)
    block = Block(8, 2, Mlp(8, 16))
    tokens = torch.randn(3, 5, 8)
    order = torch.tensor([4, 2, 0, 1, 3])

    assert torch.allclose(block(tokens[:, order]), block(tokens)[:, order], atol=1e-6)


def test_images_of_another_size_are_resized_inside(registry):
    model = build(registry, "vit/ti8", 20, 10, device="cpu", image_size=32, depth=1)
    images = torch.rand(2, 3, 20, 20)

    larger = functional.interpolate(images, (32, 32), mode="bilinear", antialias=True)

    assert torch.allclose(model(images), model(larger), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "size", "parameters", "expected"),
    [
        pytest.param("vit/b32", 224, {}, (224, 224), id="canvas"),
        pytest.param("vit/b32", 224, {"image_size": 384}, (384, 384), id="image-size"),
        pytest.param("vit/digits", 8, {}, (8, 8), id="digits"),
        pytest.param("timm/vit_base_patch32_384", 224, {}, (384, 384), id="timm"),
    ],
)
def test_tells_the_size_that_the_inner_network_works_at(registry, name, size, parameters, expected):
    model = build(registry, name, size, **parameters)

    assert model.input_size == expected
    with pytest.raises(AttributeError):
        model.input_size = (1, 1)


def test_a_canvas_may_be_wider_than_high(registry):
    with torch.device("meta"):
        model = build_model(
            registry, "vit/ti8", num_classes=7, image_shape=(1, 16, 32), seed=1, depth=1
        )

    assert model(torch.zeros(2, 1, 16, 32, device="meta")).shape == (2, 7)
    assert model.input_size == (16, 32)


@pytest.mark.parametrize(
    ("parameters", "remedy"),
    [
        ({}, "patches of 32 pixels do not fill images of 100x100; set image_size to a multiple"),
        ({"image_size": 33}, "do not fill images of 33x33"),
        ({"image_size": -32}, "do not fill images of -32x-32"),
        ({"image_size": 64, "heads": 7}, "7 heads do not share a width of 768"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_with_the_remedy(registry, parameters, remedy):
    with pytest.raises(ModelError, match=remedy):
        build(registry, "vit/b32", 100, **parameters)


def test_the_model_of_the_digits_keeps_its_keys(registry):
    keys = build(registry, "vit/digits", 8, 10, device="cpu").state_dict()

    # 3 blocks of 12 tensors; positions, patches (2), final norm (2) and head (2)
    assert len(keys) == 3 * 12 + 7
    assert all(key.startswith("inner.") for key in keys)


@pytest.mark.parametrize("prefix", ["", "inner."], ids=["timm", "ours"])
def test_loads_the_keys_of_timm_and_its_own(tmp_path, prefix):
    plain = timm.create_model("resnet10t", num_classes=10)
    path = tmp_path / "plain.safetensors"
    save_file({prefix + key: value for key, value in plain.state_dict().items()}, path)
    model = from_timm(ModelContext(10, (3, 32, 32), None), name="resnet10t", pretrained=False)

    load_weights(model, path)

    assert state_hash(model.inner) == state_hash(plain)


def test_loads_the_keys_of_the_inner_model_where_it_is_a_part():
    inner = nn.Linear(2, 3)
    whole = nn.ModuleDict(
        {"part": Normalised(nn.Linear(2, 3), mean=(0.5,), std=(0.5,), input_size=(1, 2))}
    )

    whole.load_state_dict({f"part.{key}": value for key, value in inner.state_dict().items()})

    assert state_hash(whole["part"].inner) == state_hash(inner)


@GIVEN
def test_given_weights_of_timm_give_timms_logits(registry):
    model = build(registry, "timm/tf_efficientnet_lite0", device="cpu")
    plain = timm.create_model("tf_efficientnet_lite0", checkpoint_path=str(LITE)).eval()
    images = torch.rand(2, 3, 224, 224)
    # timm's configuration of this model: mean and spread one half
    normalised = (images - 0.5) / 0.5

    load_weights(model, LITE)

    with torch.no_grad():
        assert torch.allclose(model(images), plain(normalised), atol=1e-5, rtol=1e-5)


@GIVEN
def test_given_weights_for_other_classes_are_refused_with_both_counts(registry):
    model = build(registry, "timm/tf_efficientnet_lite0", classes=10, device="cpu")
    before = state_hash(model)

    with pytest.raises(CheckpointError, match="head has 1000 classes, the data set has 10"):
        load_weights(model, LITE)

    assert state_hash(model) == before


@pytest.mark.parametrize(
    ("name", "classes", "remedy"),
    [
        ("resnet10t", 10, "know 1000 classes, the data set has 10; .* new head by a recipe"),
        ("vit_base_patch32_plus_256", 1000, "timm has no weights .* give --weights FILE"),
        ("resnet10t", 1000, "cannot be fetched: .* leave pretrained out and give --weights FILE"),
        ("resnet10x", 1000, "timm has no model 'resnet10x'; did you mean"),
    ],
    ids=["classes", "none", "offline", "unknown"],
)
def test_weights_that_cannot_be_had_are_refused_with_the_remedy(
    registry, tmp_path, monkeypatch, name, classes, remedy
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    with pytest.raises(ModelError, match=remedy):
        build(registry, f"timm/{name}", classes=classes, device="cpu", pretrained=True)

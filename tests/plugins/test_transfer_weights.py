"""Transformers that take weights of another size: positions, heads and official files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.ndimage import zoom

from golden_files import golden_arrays, golden_file
from harness.api import CheckpointError
from harness_vit.convert import convert as convert_dense
from harness_vit.npz import read_npz
from harness_vit.vit import Architecture, DenseViT
from harness_vmoe.convert import convert
from harness_vmoe.model import VMoE
from harness_vmoe.moe import Sparsity

PLUGIN = """
from harness.api import ModelCard, hookimpl


def build(context):
    from harness_vit.vit import Architecture
    from harness_vmoe.model import VMoE
    from harness_vmoe.moe import Sparsity

    return VMoE(
        Architecture(4, 32, 4, 4, 64), Sparsity(4, 2), moe_blocks=(1, 3), channels=3,
        num_classes=context.num_classes, input_size=(16, 16),
    )


@hookimpl
def register_models(register):
    register("golden/vmoe", build, card=ModelCard("The model of the golden files."))
"""


def dense(size=16, classes=10, *, pre_logits=False, channels=3):
    return DenseViT(
        Architecture(4, 32, 4, 4, 64, pre_logits=pre_logits),
        channels=channels,
        num_classes=classes,
        input_size=(size, size),
    ).eval()


def sparse(size=16, classes=10):
    return VMoE(
        Architecture(4, 32, 4, 4, 64),
        Sparsity(4, 2),
        moe_blocks=(1, 3),
        channels=3,
        num_classes=classes,
        input_size=(size, size),
    ).eval()


@pytest.mark.parametrize("make", [dense, sparse])
def test_weights_of_the_same_model_are_taken_as_they_are(make):
    state = make().state_dict()

    found = make().fitted(state)

    assert (found.own, found.changes) == ((), ())
    assert all(found.state[name] is tensor for name, tensor in state.items())


@pytest.mark.parametrize("make", [dense, sparse])
@pytest.mark.parametrize("size", [8, 24, 36])
def test_positions_are_stretched_as_the_official_code_does_and_the_class_token_is_kept(make, size):
    state = make().state_dict()
    positions = state["embedding.positions"]

    found = make(size).fitted(state)

    grid = positions[0, 1:].reshape(4, 4, 32).numpy()
    wanted = zoom(grid, (size / 16, size / 16, 1), order=1).reshape(-1, 32)
    stretched = found.state["embedding.positions"]
    assert torch.allclose(stretched[0, 1:], torch.tensor(wanted), atol=1e-6)
    assert torch.equal(stretched[:, 0], positions[:, 0])
    assert found.changes == (
        f"embedding.positions: stretched from 17 to {1 + (size // 4) ** 2} tokens",
    )


def test_positions_of_no_square_are_refused():
    state = {**dense().state_dict(), "embedding.positions": torch.zeros(1, 13, 32)}

    with pytest.raises(CheckpointError, match=r"12 patches are no square.*square images"):
        dense().fitted(state)


@pytest.mark.parametrize("make", [dense, sparse])
def test_a_head_for_other_classes_is_left_to_the_model(make):
    found = make().fitted(make(classes=1000).state_dict())

    assert found.own == ("head.logits.weight", "head.logits.bias")
    assert not set(found.own) & set(found.state)
    assert found.changes[0] == "head.logits: dropped, of 1000 classes"


def test_a_layer_before_the_head_is_dropped_where_the_model_has_none():
    found = dense().fitted(dense(pre_logits=True).state_dict())

    assert set(found.state) == set(dense().state_dict())
    assert found.changes == ("head.pre_logits: dropped, the model has none",)


def test_a_layer_before_the_head_that_the_file_has_not_is_named():
    found = dense(pre_logits=True).fitted(dense().state_dict())

    assert found.own == ("head.pre_logits.weight", "head.pre_logits.bias")
    assert found.changes[0] == "head.pre_logits.weight: the model's own"


def test_an_official_file_gives_the_official_logits():
    arrays = golden_arrays("vmoe", "k2_ample_f32.npz")
    model = sparse()

    model.load_state_dict(convert(golden_file("vmoe", "k2_ample_f32.npz")))

    images = torch.tensor(arrays["images"]).permute(0, 3, 1, 2)
    logits = model((images + 1) / 2)
    assert torch.allclose(logits, torch.tensor(arrays["eval/logits"]), atol=2e-5)


def test_an_official_dense_file_gives_the_official_logits():
    arrays = golden_arrays("vmoe", "dense_vitjax_f32.npz")
    model = dense()

    model.load_state_dict(convert_dense(golden_file("vmoe", "dense_vitjax_f32.npz")))

    images = torch.tensor(arrays["images"]).permute(0, 3, 1, 2)
    assert torch.allclose(model((images + 1) / 2), torch.tensor(arrays["logits"]), atol=2e-5)


def test_the_command_writes_weights_that_give_the_official_logits(harness, tmp_path):
    (tmp_path / "golden.py").write_text(PLUGIN)

    done = harness(
        "convert", "--from", "vmoe-released", golden_file("vmoe", "k2_ample_f32.npz"),
        "--plugin", "golden.py", "--model", "golden/vmoe", "--to", "out/golden.safetensors",
    )  # fmt: skip

    assert done.code == 0, done.err
    assert "use it with --weights" in done.out
    card = json.loads((tmp_path / "out/golden.json").read_text())
    model, arrays = sparse(), golden_arrays("vmoe", "k2_ample_f32.npz")
    model.load_state_dict(load_file(tmp_path / "out/golden.safetensors"))
    images = torch.tensor(arrays["images"]).permute(0, 3, 1, 2)
    logits = model((images + 1) / 2)
    assert torch.allclose(logits, torch.tensor(arrays["eval/logits"]), atol=2e-5)
    assert card["source"]["file"] == "k2_ample_f32.npz"


def test_arrays_without_a_prefix_are_all_parameters(tmp_path):
    np.savez(tmp_path / "plain.npz", **{"head/bias": np.zeros(3, np.float32)})

    assert list(read_npz(tmp_path / "plain.npz")) == ["head/bias"]


def test_arrays_beside_the_parameters_are_not_read(tmp_path):
    np.savez(tmp_path / "both.npz", **{"params/head/bias": np.zeros(3), "step": np.arange(1)})

    assert list(read_npz(tmp_path / "both.npz")) == ["head/bias"]


@pytest.mark.parametrize("content", [b"", b"\x82\xa6params", b"PK\x03\x04cut off"])
def test_other_files_are_refused_with_the_way_to_an_npz(tmp_path, content):
    (tmp_path / "shard").write_bytes(content)

    with pytest.raises(CheckpointError, match=r"no npz file: restore .* numpy\.savez"):
        read_npz(tmp_path / "shard")


def test_a_single_array_is_refused(tmp_path):
    np.save(tmp_path / "one.npy", np.zeros(3))

    with pytest.raises(CheckpointError, match="a single array, no npz file"):
        read_npz(tmp_path / "one.npy")


@pytest.mark.parametrize(
    ("array", "remedy"),
    [
        (np.array([{}]), "head/bias is damaged, or no array of numbers"),
        (np.arange(3), "head/bias is of type int64; save the parameters alone, as float32"),
        (np.array("text"), "head/bias is of type <U4; save the parameters alone"),
    ],
    ids=["pickle", "integers", "text"],
)
def test_what_is_no_parameter_is_refused(tmp_path, array, remedy):
    np.savez(tmp_path / "odd.npz", **{"head/bias": array})

    with pytest.raises(CheckpointError, match=remedy):
        read_npz(tmp_path / "odd.npz")


def test_an_unknown_converter_is_refused_with_the_nearest(harness):
    done = harness(
        "convert", "--from", "vmoe-relased", "x.npz", "--model", "vmoe/digits",
        "--to", "out.safetensors",
    )  # fmt: skip

    assert done.code == 1
    assert "did you mean 'vmoe-released'" in done.err

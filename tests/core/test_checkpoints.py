"""Weights: read with suspicion, refused with the remedy, and never executed."""

from __future__ import annotations

import os
import pickle
import socket
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save as save_safetensors
from safetensors.torch import save_file
from torch import nn

from harness import hashing
from harness.checkpoints import (
    CARD,
    WEIGHTS,
    fetch,
    is_url,
    load_weights,
    plain_state,
    read_card,
    save_weights,
    state_hash,
)
from harness.errors import CheckpointError, StoreError

ANY_HASH = "0" * 64


class Trap:
    """A thing whose unpickling would make a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def network(seed):
    """A small model with parameters and buffers."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def under_inner(_, state, *__):
    """Put the keys of a bare network under `inner`."""
    for key in [key for key in state if not key.startswith("inner.")]:
        state[f"inner.{key}"] = state.pop(key)


def equal(one, other):
    """The models hold the same numbers."""
    return state_hash(one) == state_hash(other)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The address of a server of this machine that serves the folder `web`."""
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "web"
    folder.mkdir()
    handler = partial(Silent, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        thread = threading.Thread(target=served.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()
        thread.join()


class Silent(SimpleHTTPRequestHandler):
    """Tells nobody what it serves."""

    def log_message(self, *_):
        """Nothing."""


@pytest.fixture
def closed(monkeypatch):
    """An address where nobody listens."""
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}/weights.safetensors"


def test_weights_survive_the_way_to_a_file_and_back(tmp_path):
    trained, fresh = network(0), network(1)

    saved = save_weights(tmp_path, trained, {"row": "toy"})
    loaded = load_weights(fresh, tmp_path / WEIGHTS, sha256=saved)

    assert equal(fresh, trained)
    assert loaded == saved == hashing.of_file(tmp_path / WEIGHTS)


def test_the_hash_of_a_state_is_that_of_its_file(tmp_path):
    model = network(0)

    saved = save_weights(tmp_path, model, {})

    assert state_hash(model) == saved


def test_different_weights_have_different_hashes():
    assert state_hash(network(0)) != state_hash(network(1))


def test_tied_weights_can_be_saved(tmp_path):
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    fresh = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))

    save_weights(tmp_path, tied, {})
    load_weights(fresh, tmp_path / WEIGHTS)

    assert torch.equal(fresh[1].weight, tied[0].weight)


def test_a_copied_state_does_not_follow_the_model():
    model = network(0)
    before = plain_state(model)

    nn.init.zeros_(model[0].weight)

    assert before["0.weight"].abs().sum() > 0


def test_the_card_tells_the_hash(tmp_path):
    saved = save_weights(tmp_path, network(0), {"row": "toy", "epochs": 3})

    assert read_card(tmp_path) == {"row": "toy", "epochs": 3, "sha256": saved}


def test_there_is_no_card_where_the_weights_could_not_be_written(tmp_path):
    (tmp_path / WEIGHTS).mkdir()

    with pytest.raises(StoreError, match="cannot write"):
        save_weights(tmp_path, network(0), {"row": "toy"})

    assert not (tmp_path / CARD).exists()


def test_a_card_without_weights_is_no_card(tmp_path):
    save_weights(tmp_path, network(0), {"row": "toy"})

    (tmp_path / WEIGHTS).unlink()

    assert read_card(tmp_path) is None


@pytest.mark.parametrize("text", ["", '{"row": '], ids=["empty", "torn"])
def test_a_damaged_card_is_no_card(tmp_path, text):
    save_weights(tmp_path, network(0), {"row": "toy"})

    (tmp_path / CARD).write_text(text)

    assert read_card(tmp_path) is None


def test_a_folder_that_nobody_wrote_has_no_card(tmp_path):
    assert read_card(tmp_path / "nowhere") is None


def test_a_file_of_another_hash_is_refused_and_not_loaded(tmp_path):
    save_weights(tmp_path, network(0), {})
    fresh = network(1)

    with pytest.raises(CheckpointError, match="altered or is another one: fetch it again"):
        load_weights(fresh, tmp_path / WEIGHTS, sha256=ANY_HASH)

    assert equal(fresh, network(1))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"gone\.safetensors: cannot be read: No such file"):
        load_weights(network(0), tmp_path / "gone.safetensors")


@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        pytest.param(b"<!DOCTYPE html><p>Sign in", "fetch the file again in a browser", id="page"),
        pytest.param(b"\n <html><head>", "fetch the file again in a browser", id="bare-page"),
        pytest.param(b'<?xml version="1.0"?>', "fetch the file again in a browser", id="xml"),
        pytest.param(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n",
            "run 'git lfs pull'",
            id="lfs-pointer",
        ),
        pytest.param(b"", "no safetensors file and no PyTorch checkpoint", id="empty"),
        pytest.param(b"just text", "no safetensors file and no PyTorch checkpoint", id="text"),
        pytest.param(b"PK\x03\x04 and no more", "is damaged; it was not executed", id="zip"),
        pytest.param(b"\x80\x02 and no more", "is damaged; it was not executed", id="pickle"),
    ],
)
def test_what_holds_no_weights_is_refused_with_the_remedy(tmp_path, content, remedy):
    path = tmp_path / "model.bin"
    path.write_bytes(content)

    with pytest.raises(CheckpointError, match=remedy):
        load_weights(network(0), path)


def test_a_safetensors_file_that_was_cut_off_is_refused(tmp_path):
    save_weights(tmp_path, network(0), {})
    path = tmp_path / WEIGHTS
    path.write_bytes(path.read_bytes()[:-8])

    with pytest.raises(CheckpointError, match="no safetensors file"):
        load_weights(network(0), path)


@pytest.mark.parametrize(
    "save",
    [
        pytest.param(torch.save, id="zip"),
        pytest.param(partial(torch.save, _use_new_zipfile_serialization=False), id="legacy"),
        pytest.param(
            lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2)),
            id="plain-pickle",
        ),
    ],
)
def test_code_in_a_pickle_is_refused_and_not_executed(tmp_path, save):
    path, folder = tmp_path / "model.pt", tmp_path / "made-by-the-trap"
    save({"0.weight": Trap(folder)}, path)

    with pytest.raises(CheckpointError, match="save its state_dict with safetensors"):
        load_weights(network(0), path)

    assert not folder.exists()


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda state: state, id="bare"),
        pytest.param(lambda state: {"state_dict": state, "epoch": 3}, id="state_dict"),
        pytest.param(lambda state: {"model": state}, id="model"),
        pytest.param(lambda state: {"model_state_dict": state}, id="model_state_dict"),
        pytest.param(lambda state: {"state_dict": {"model": state}}, id="twice"),
    ],
)
def test_a_pickle_of_nothing_but_tensors_loads(tmp_path, wrap):
    trained, fresh = network(0), network(1)
    torch.save(wrap(trained.state_dict()), tmp_path / "model.pt")

    load_weights(fresh, tmp_path / "model.pt")

    assert equal(fresh, trained)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param([torch.zeros(2)], id="list"),
        pytest.param({"epoch": 3}, id="no-tensor"),
        pytest.param(torch.zeros(2), id="tensor"),
    ],
)
def test_a_pickle_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")

    with pytest.raises(CheckpointError, match="holds no state dict, a table of tensors by name"):
        load_weights(network(0), tmp_path / "model.pt")


def test_missing_and_unexpected_weights_are_named(tmp_path):
    state = network(0).state_dict()
    state["head.weight"] = state.pop("2.weight")
    save_file(state, tmp_path / "model.safetensors")

    with pytest.raises(CheckpointError, match=r"missing 2\.weight; unexpected head\.weight"):
        load_weights(network(0), tmp_path / "model.safetensors")


def test_weights_beside_those_of_the_model_are_refused(tmp_path):
    state = network(0).state_dict() | {"head.weight": torch.zeros(2)}
    save_file(state, tmp_path / "model.safetensors")

    with pytest.raises(CheckpointError, match=r"weights of another model: unexpected head\.weight"):
        load_weights(network(0), tmp_path / "model.safetensors")


def test_of_many_missing_weights_the_first_are_named_and_the_rest_counted(tmp_path):
    save_file({"0.weight": torch.zeros(4, 3)}, tmp_path / "model.safetensors")

    # 2 + 5 + 2 entries in the state of the network, one of them in the file, three named
    with pytest.raises(CheckpointError, match=r"missing 0\.bias, 1\.weight, 1\.bias and 5 more"):
        load_weights(network(0), tmp_path / "model.safetensors")


def test_a_wrong_shape_is_refused_with_both_shapes(tmp_path):
    state = network(0).state_dict() | {"0.weight": torch.zeros(4, 5)}
    save_file(state, tmp_path / "model.safetensors")

    with pytest.raises(CheckpointError, match=r"0\.weight has shape \(4, 5\), .* \(4, 3\)"):
        load_weights(network(0), tmp_path / "model.safetensors")


def test_a_head_of_other_classes_is_refused_with_both_counts(tmp_path):
    head = {"2.weight": torch.zeros(7, 4), "2.bias": torch.zeros(7)}
    save_file(network(0).state_dict() | head, tmp_path / "model.safetensors")
    fresh = network(1)

    with pytest.raises(CheckpointError, match=r"head has 7 classes, the data set has 2; take a"):
        load_weights(fresh, tmp_path / "model.safetensors")

    assert equal(fresh, network(1))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"2.weight": torch.zeros(7, 5), "2.bias": torch.zeros(7)}, id="inputs"),
        pytest.param({"2.weight": torch.zeros(7, 4), "0.bias": torch.zeros(7)}, id="other-layer"),
        pytest.param({"2.weight": torch.zeros(7, 4), "2.bias": torch.zeros(8)}, id="two-counts"),
        pytest.param({"2.bias": torch.zeros(())}, id="scalar"),
    ],
)
def test_other_shapes_are_not_taken_for_a_head(tmp_path, changes):
    save_file(network(0).state_dict() | changes, tmp_path / "model.safetensors")

    with pytest.raises(CheckpointError, match=r"has shape \(.*\), the model's has \("):
        load_weights(network(0), tmp_path / "model.safetensors")


def test_a_model_may_know_other_names_for_its_weights(tmp_path):
    save_file(network(0).state_dict(), tmp_path / "model.safetensors")
    fresh = nn.ModuleDict({"inner": network(1)})
    fresh.register_load_state_dict_pre_hook(under_inner)

    load_weights(fresh, tmp_path / "model.safetensors")

    assert equal(fresh["inner"], network(0))


@pytest.mark.parametrize("number", [float("nan"), float("inf")], ids=str)
def test_weights_that_are_no_numbers_are_refused(tmp_path, number):
    state = network(0).state_dict() | {"2.bias": torch.tensor([0.0, number])}
    save_file(state, tmp_path / "model.safetensors")

    with pytest.raises(CheckpointError, match=r"2\.bias holds NaN or infinite values"):
        load_weights(network(0), tmp_path / "model.safetensors")


def test_a_refused_file_changes_nothing_in_the_model(tmp_path):
    state = network(0).state_dict() | {"2.bias": torch.tensor([0.0, float("nan")])}
    save_file(state, tmp_path / "model.safetensors")
    fresh = network(1)

    with pytest.raises(CheckpointError, match="holds NaN"):
        load_weights(fresh, tmp_path / "model.safetensors")

    assert equal(fresh, network(1))


def test_a_file_on_the_web_is_fetched_as_it_is(tmp_path, server):
    content = bytes(range(256)) * 100
    (tmp_path / "web" / "model.bin").write_bytes(content)

    path = fetch(f"{server}/model.bin", hashing.of_bytes(content), tmp_path / "fetched")

    assert path.read_bytes() == content


def test_a_file_is_fetched_once(tmp_path, server):
    (tmp_path / "web" / "model.bin").write_bytes(b"weights")
    sha256 = hashing.of_bytes(b"weights")
    first = fetch(f"{server}/model.bin", sha256, tmp_path / "fetched")
    (tmp_path / "web" / "model.bin").unlink()

    second = fetch(f"{server}/model.bin", sha256, tmp_path / "fetched")

    assert second == first
    assert second.read_bytes() == b"weights"


def test_an_answer_that_is_an_error_is_explained_and_not_kept(tmp_path, server):
    with pytest.raises(CheckpointError, match="fetch it elsewhere and give --weights FILE"):
        fetch(f"{server}/gone.bin", ANY_HASH, tmp_path / "fetched")

    assert not (tmp_path / "fetched").exists()


def test_an_address_where_nobody_answers_is_explained(tmp_path, closed):
    with pytest.raises(CheckpointError, match="fetch it elsewhere and give --weights FILE") as told:
        fetch(closed, ANY_HASH, tmp_path)

    assert isinstance(told.value.__cause__, URLError)


@pytest.mark.parametrize("address", ["file:///gone.bin", "not a url"])
def test_what_is_no_address_on_the_web_is_refused(tmp_path, address):
    with pytest.raises(CheckpointError, match="use --weights FILE for a file"):
        fetch(address, ANY_HASH, tmp_path)


def test_a_download_with_another_hash_is_refused_and_not_kept(tmp_path, server):
    (tmp_path / "web" / "model.bin").write_bytes(b"something else")

    with pytest.raises(CheckpointError, match="nothing was kept"):
        fetch(f"{server}/model.bin", ANY_HASH, tmp_path / "fetched")

    assert not (tmp_path / "fetched").exists()


def test_safetensors_whose_length_looks_like_a_pickle_are_read(tmp_path):
    # 105 tensors of these names make a header whose length has the low byte 0x80
    layers = nn.ParameterDict({f"layer{j}": nn.Parameter(torch.zeros(1)) for j in range(105)})
    states = {f"layer{j}.weight": torch.zeros(1) for j in range(105)}
    content = save_safetensors(states)
    path = tmp_path / "many.safetensors"
    path.write_bytes(content)

    assert content[:1] == b"\x80"
    with pytest.raises(CheckpointError, match="weights of another model"):
        load_weights(layers, path)


def test_an_address_without_a_hash_is_refused_before_anything_is_fetched(tmp_path, server):
    (tmp_path / "web" / "model.bin").write_bytes(b"weights")

    with pytest.raises(CheckpointError, match="states no sha256; add one, or use --weights FILE"):
        fetch(f"{server}/model.bin", "", tmp_path / "fetched")

    assert not (tmp_path / "fetched").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://host/model.bin", True),
        ("http://host/model.bin", True),
        ("file:///model.bin", False),
        ("weights/model.bin", False),
        ("included", False),
    ],
)
def test_only_addresses_on_the_web_are_urls(text, expected):
    assert is_url(text) is expected

"""The copy that attacks climb: the same function with fewer layers, or the model itself."""

from __future__ import annotations

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.utils import parametrizations

from harness.errors import UsageError
from harness.modes import Mode
from harness.prepare import Captured, folded, prepared
from harness.tensors import Noise


def images(count=8, size=12):
    return Noise(0, torch.arange(count), (3, size, size)).uniform(0) / 2 + 0.5


def norms(model):
    return [path for path, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]


def shaken(model):
    """Evaluation mode, with statistics and scales that are not those of a fresh norm."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.3, 0.3)
                nn.init.uniform_(module.running_var, 0.5, 2)
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.uniform_(module.bias, -0.3, 0.3)
    return model.eval().requires_grad_(requires_grad=False)


class Net(nn.Module):
    """A convolution, what `forward` makes of it, and a linear head."""

    def __init__(self, body, channels=6):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.other = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.body = body
        self.head = nn.Linear(channels, 5)

    def forward(self, images):
        return self.head(self.body(self, images).mean(dim=(2, 3)))


def chain(net, images):
    return net.other(net.second(net.norm(net.conv(images)).relu()))


def norm_first(net, images):
    return net.second(net.norm(net.conv(images).relu())).tanh()


def used_twice(net, images):
    features = net.conv(images)
    return net.norm(features) + features.tanh()


def shared_convolution(net, images):
    features = net.norm(net.conv(images)).relu()
    return net.norm(net.second(net.other(net.second(features)).relu())).tanh()


def shared_norm(net, images):
    return net.norm(net.second(net.norm(net.conv(images)).relu()))


@pytest.mark.parametrize(
    ("body", "left"),
    [
        pytest.param(chain, [], id="each norm after a convolution"),
        pytest.param(norm_first, ["norm", "other"], id="a norm before a convolution"),
        pytest.param(used_twice, ["norm", "other"], id="an output that is used twice"),
        pytest.param(shared_convolution, ["norm", "other"], id="a convolution called twice"),
        pytest.param(shared_norm, ["norm", "other"], id="a norm called twice"),
    ],
)
def test_a_norm_is_folded_only_where_it_alone_follows_a_convolution(body, left):
    model = shaken(Net(body))

    twin = folded(model, images())

    assert norms(twin) == left
    assert (twin is model) is bool(left)


def test_the_copy_gives_the_same_logits_and_gradients():
    model, points = shaken(Net(chain)), images().requires_grad_()

    twin = folded(model, images())

    mine, other = model(points), twin(points)
    (expected,) = torch.autograd.grad(mine[:, 0].sum(), points)
    (found,) = torch.autograd.grad(other[:, 0].sum(), points)
    assert torch.allclose(mine, other, atol=1e-5)
    assert torch.allclose(expected, found, atol=1e-5)


def test_the_original_is_left_as_it_is_and_shares_what_is_not_folded():
    model = shaken(Net(chain))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]

    twin = folded(model, images())

    assert [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert twin.head.weight.data_ptr() == model.head.weight.data_ptr()
    assert twin.conv.weight.data_ptr() != model.conv.weight.data_ptr()


def test_gradients_of_parameters_are_wanted_again_afterwards_and_the_mode_is_as_found():
    model = shaken(Net(chain)).train().requires_grad_()

    prepared(model, images(), Mode())

    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_preparing_draws_nothing_from_the_global_generator():
    model = shaken(Net(chain))
    before = torch.get_rng_state()

    prepared(model, images(), Mode())

    assert torch.equal(torch.get_rng_state(), before)


def test_an_activation_inside_a_norm_is_kept():
    model = shaken(
        nn.Sequential(nn.Conv2d(3, 6, 3), BatchNormAct2d(6), nn.AvgPool2d(10), nn.Flatten())
    )

    twin = folded(model, images())

    assert norms(twin) == []
    assert torch.allclose(twin(images()), model(images()), atol=1e-6)
    assert (twin(images()) >= 0).all()


def test_an_activation_that_a_norm_has_in_its_code_is_not_folded_away():
    class Rectified(nn.BatchNorm2d):
        def forward(self, features):
            return super().forward(features).relu()

    model = shaken(Net(chain))
    model.norm = shaken(Rectified(6))

    assert norms(folded(model, images())) == ["norm"]


@pytest.mark.parametrize(
    "hook",
    [
        lambda module: module.register_forward_hook(lambda *_: None),
        lambda module: module.register_forward_pre_hook(lambda *_: None),
        lambda module: module.register_full_backward_hook(lambda *_: None),
    ],
    ids=["forward", "before forward", "backward"],
)
@pytest.mark.parametrize("name", ["conv", "norm"])
def test_a_module_with_a_hook_is_not_folded(hook, name):
    model = shaken(Net(chain))
    hook(model.get_submodule(name))

    assert norms(folded(model, images())) == ["norm"]


@pytest.mark.parametrize("kind", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_a_parametrised_convolution_is_not_folded(kind):
    model = shaken(Net(chain))
    kind(model.conv)
    model.eval()

    assert norms(folded(model, images())) == ["norm"]


def test_parts_are_folded_where_the_whole_cannot_be_traced():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
            self.norm = nn.BatchNorm2d(6)

        def forward(self, images):
            features = self.part(images)
            return (self.norm(features) if features.sum() > 0 else -features).mean(dim=(2, 3))

    model = shaken(Branching())

    twin = folded(model, images())

    assert norms(twin) == ["norm"]
    assert torch.allclose(twin(images()), model(images()), atol=1e-6)


class Uncopied(nn.Sequential):
    """A module that holds something that cannot be copied."""

    def __deepcopy__(self, memo):
        raise TypeError("a lock cannot be copied")


def test_a_module_whose_copy_is_itself_is_left_alone():
    class Single(nn.Conv2d):
        def __deepcopy__(self, memo):
            return self

    model = shaken(Net(chain))
    model.conv = Single(3, 6, 3, padding=1)
    before = model.conv

    assert folded(model, images()) is model
    assert norms(model) == ["norm", "other"]
    assert model.conv is before


def uncopied():
    return shaken(Uncopied(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten()))


def test_a_model_that_cannot_be_copied_is_attacked_itself():
    model = uncopied()

    assert folded(model, images()) is model
    assert prepared(model, images(), Mode()) is None


def test_a_model_that_cannot_be_copied_cannot_be_compiled_either():
    with pytest.raises(UsageError, match="a lock cannot be copied; leave it out"):
        prepared(uncopied(), images(), Mode(is_compiled=True))


def test_a_model_without_gradient_is_prepared_too():
    model = shaken(Net(lambda net, images: chain(net, images.detach())))

    assert norms(prepared(model, images(), Mode()).model) == []


def test_other_numbers_make_a_surrogate_of_a_model_with_nothing_to_fold():
    model = shaken(nn.Sequential(nn.Flatten(), nn.Linear(432, 5)))

    assert prepared(model, images(), Mode()) is None
    assert prepared(model, images(), Mode("tf32")) == (model, "tf32")


def test_cuda_graphs_ask_for_a_cuda_device():
    with pytest.raises(UsageError, match="needs a CUDA device"):
        prepared(shaken(Net(chain)), images(), Mode(is_captured=True))


def test_a_captured_model_passes_as_it_is_where_no_gradient_is_wanted():
    model = shaken(Net(chain))

    assert torch.equal(Captured(model)(images()), model(images()))

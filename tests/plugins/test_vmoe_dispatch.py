"""Three ways to send tokens to experts give the same outputs and gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from harness_vmoe.dispatch import DISPATCHES, Experts, einsum, grouped, loop

FAST = pytest.mark.parametrize("dispatch", [grouped, loop], ids=lambda way: way.__name__)


def experts(num_experts=5, width=16, hidden=24, dtype=torch.float32):
    """Experts that differ, unlike those before training."""
    torch.manual_seed(0)
    mlp = Experts(num_experts, width, hidden).to(dtype)
    with torch.no_grad():
        for parameter in mlp.parameters():
            parameter.add_(torch.randn_like(parameter) / 4)
    return mlp


def choices(tokens, num_selected, num_experts):
    """Different experts for each token, none of them the last."""
    scores = torch.rand(tokens, num_experts - 1, generator=torch.Generator().manual_seed(1))
    return scores.argsort(dim=1)[:, :num_selected]


def outputs_and_gradients(dispatch, mlp, tokens, chosen):
    tokens = tokens.clone().requires_grad_()
    outputs = dispatch(mlp, tokens, chosen)
    loss = (outputs * torch.linspace(-1, 1, outputs.numel()).view_as(outputs)).sum()
    return [outputs, *torch.autograd.grad(loss, [tokens, *mlp.parameters()])]


@FAST
@pytest.mark.parametrize(
    ("dtype", "width", "bound"),
    [
        pytest.param(torch.float32, 16, 1e-5, id="float32"),
        pytest.param(torch.float32, 15, 1e-5, id="unaligned"),
        pytest.param(torch.float64, 16, 1e-13, id="float64"),
    ],
)
@pytest.mark.parametrize("num_selected", [1, 2, 4])
def test_agrees_with_the_reference(dispatch, dtype, width, bound, num_selected):
    mlp = experts(width=width, dtype=dtype)
    tokens, chosen = torch.randn(37, width, dtype=dtype), choices(37, num_selected, 5)

    found = outputs_and_gradients(dispatch, mlp, tokens, chosen)
    expected = outputs_and_gradients(einsum, mlp, tokens, chosen)

    for mine, theirs in zip(found, expected, strict=True):
        assert (mine - theirs).abs().max() <= bound * theirs.abs().max()


@FAST
def test_agrees_with_the_reference_in_mixed_precision(dispatch):
    mlp, tokens, chosen = experts(), torch.randn(37, 16), choices(37, 2, 5)

    with torch.autocast("cpu", torch.bfloat16):
        found = outputs_and_gradients(dispatch, mlp, tokens, chosen)
    expected = outputs_and_gradients(einsum, mlp, tokens, chosen)

    for mine, theirs in zip(found, expected, strict=True):
        assert (mine - theirs).abs().max() <= 0.03 * theirs.abs().max()


@FAST
def test_works_where_torch_has_no_grouped_product(dispatch, monkeypatch):
    mlp, tokens, chosen = experts(), torch.randn(37, 16), choices(37, 2, 5)
    expected = dispatch(mlp, tokens, chosen)

    monkeypatch.delattr(functional, "grouped_mm", raising=False)

    assert torch.allclose(dispatch(mlp, tokens, chosen), expected, atol=1e-6)


@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_works_on_the_meta_device(dispatch):
    mlp, tokens, chosen = experts().to("meta"), torch.randn(37, 16), choices(37, 2, 5)

    outputs = DISPATCHES[dispatch](mlp, tokens.to("meta"), chosen.to("meta"))

    assert outputs.shape == (37, 2, 16)


@FAST
def test_a_row_has_the_same_bits_whoever_else_is_there(dispatch):
    mlp = experts(width=192, hidden=768)
    tokens, chosen = torch.randn(203, 192), choices(203, 2, 5)

    together = dispatch(mlp, tokens, chosen)
    few = dispatch(mlp, tokens[::29], chosen[::29])
    order = torch.randperm(203)

    assert torch.equal(together[::29], few)
    assert torch.equal(dispatch(mlp, tokens[order], chosen[order]), together[order])


def test_an_expert_without_tokens_has_no_gradient():
    mlp, tokens, chosen = experts(), torch.randn(37, 16), choices(37, 2, 5)

    _, _, *gradients = outputs_and_gradients(grouped, mlp, tokens, chosen)

    assert not any(gradient[-1].any() for gradient in gradients)
    assert all(gradient[:-1].any() for gradient in gradients)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 64])
def test_the_buffer_holds_every_choice_once(count):
    mlp, tokens = experts(), torch.randn(count, 16)
    everyone_to_one = torch.full((count, 1), 2)

    found = grouped(mlp, tokens, everyone_to_one)

    assert torch.allclose(found, einsum(mlp, tokens, everyone_to_one), atol=1e-5)


@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_the_inputs_stay_as_they_are(dispatch):
    mlp, tokens, chosen = experts(), torch.randn(9, 16), choices(9, 2, 5)
    before = tokens.clone(), chosen.clone()

    DISPATCHES[dispatch](mlp, tokens, chosen)

    assert torch.equal(tokens, before[0])
    assert torch.equal(chosen, before[1])


def test_all_experts_start_alike():
    mlp = Experts(3, 8, 16)

    for parameter in mlp.parameters():
        assert torch.equal(parameter, parameter[:1].expand_as(parameter))
    # Xavier-uniform: sqrt(6 / (in + out)) at most
    assert 0.4 < float(mlp.hidden.weight.detach().abs().max()) <= (6 / 24) ** 0.5
    assert 0 < float(mlp.hidden.bias.detach().abs().max()) < 1e-5

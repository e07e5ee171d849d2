"""Operations, against counts by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from harness.errors import ModelError
from harness.flops import count_flops


def test_a_linear_layer_counts_two_for_each_weight():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 10))

    # 48 * 10 products, each with its addition; the bias is not counted
    assert count_flops(model, (3, 4, 4), "linear") == 960


def test_a_convolution_counts_two_for_each_weight_and_place():
    model = nn.Conv2d(3, 8, 3, padding=1)

    # 2 * (3 * 3 * 3 weights) * 8 channels * 16 places
    assert count_flops(model, (3, 4, 4), "convolution") == 6912


class Attention(nn.Module):
    def forward(self, images):
        tokens = images.flatten(2)
        return functional.scaled_dot_product_attention(tokens, tokens, tokens)


def test_fused_attention_counts_both_of_its_products():
    # 3 tokens of width 16: scores 2 * 3 * 3 * 16, mixture the same
    assert count_flops(Attention(), (3, 4, 4), "attention") == 2 * 288


def test_batch_norm_and_relu_count_as_nothing():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2)).eval()

    assert count_flops(model, (3, 4, 4), "free") == 0


class Unusual(nn.Module):
    def forward(self, images):
        return torch.fft.fft2(images).abs()


def test_an_operator_without_a_formula_is_refused_with_the_remedy():
    with pytest.raises(ModelError, match="register_flop_formula"):
        count_flops(Unusual(), (3, 4, 4), "unusual")


@pytest.mark.parametrize("draw", [torch.randn_like, torch.rand_like, torch.bernoulli])
def test_drawing_random_numbers_counts_as_nothing(draw):
    class Noisy(nn.Module):
        def forward(self, images):
            return images + draw(images)

    assert count_flops(Noisy(), (3, 4, 4), "noisy") == 0


class Grouped(nn.Module):
    """Eight rows where the image needs three; on the meta device those that it needs."""

    def __init__(self, *, knows_meta):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 16, 4))
        self.knows_meta = knows_meta

    def forward(self, images):
        rows = images.flatten(2).flatten(0, 1)
        if images.is_meta and self.knows_meta:
            return rows @ self.weight[0]
        padded = functional.pad(rows, (0, 0, 0, 5 * len(images)))
        ends = torch.tensor(
            [4 * len(images), 8 * len(images)], dtype=torch.int32, device=images.device
        )
        if images.is_meta:
            raise NotImplementedError
        return functional.grouped_mm(padded, self.weight, offs=ends)


# 2 * 16 * 4 for each row: 3 of the image, 8 with the padding
@pytest.mark.parametrize(("knows_meta", "rows"), [(True, 3), (False, 8)])
def test_a_grouped_product_counts_every_row_once_without_padding_where_that_can_be_told(
    knows_meta, rows
):
    assert count_flops(Grouped(knows_meta=knows_meta), (3, 4, 4), "grouped") == rows * 128


class Padded(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(48, 10)

    def forward(self, images):
        flat = images.flatten(1)
        missing = flat[:1].expand(-len(flat) % 8, -1)
        return self.linear(torch.cat([flat, missing]))[: len(flat)]


def test_padding_to_whole_groups_inside_a_model_costs_nothing():
    assert count_flops(Padded(), (3, 4, 4), "padded") == 960

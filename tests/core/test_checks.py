"""Checks as a run makes them: kept beside the records, made again when more images are wanted."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import harness as package
from harness.errors import HarnessError


class Digits(nn.Module):
    """One linear layer, right on most digits, and what is done to its input."""

    def __init__(self, change=lambda images: images):
        super().__init__()
        self.change = change
        self.linear = nn.Linear(64, 10)

    def forward(self, images):
        return self.linear(self.change(images).flatten(1))


@pytest.fixture(scope="module")
def state():
    """Weights of the linear layer, trained for a moment."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)
    torch.manual_seed(0)
    model = Digits()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(100):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()
    return model.state_dict()


@pytest.fixture
def evaluated(tiny, tmp_path, state):
    """Evaluates a model of digits in one run folder; its flags, and the file of its checks."""
    tiny.write_text(tiny.read_text().replace("steps = 3", "steps = 10"))

    def call(model=None, limit=None):
        model = model or Digits()
        model.load_state_dict(state)
        frame = package.evaluate(model, suite=str(tiny), limit=limit, out=tmp_path / "runs")
        [path] = tmp_path.glob("runs/*/checks.json")
        return frame.attrs["rows"][0]["flags"], path

    return call


def test_an_honest_model_raises_no_flag(evaluated):
    flags, path = evaluated()

    content = json.loads(path.read_text())
    assert flags == []
    assert content["looked"] == 20
    assert len(content["samples"]) > 15
    assert content["epsilon"] == "32/255"
    assert set(content["fooled"]) == {"noise", "one-step", "black-box"}


def test_a_small_trial_looks_at_sixteen_images_and_a_larger_run_checks_again(evaluated):
    looked = []
    for limit in (4, 18, None, 4):
        _, path = evaluated(limit=limit)
        looked.append(json.loads(path.read_text())["looked"])

    # 20 digits are all there are
    assert looked == [16, 18, 20, 20]


def test_what_was_checked_is_not_checked_again(evaluated):
    _, path = evaluated()
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "flags": ["one-expert"]}))

    flags, _ = evaluated()

    assert flags == ["one-expert"]


def test_another_headline_is_checked_again(evaluated, tiny):
    evaluated()
    tiny.write_text(tiny.read_text().replace('headline = "32/255"', 'headline = "8/255"'))

    _, path = evaluated()

    assert json.loads(path.read_text())["epsilon"] == "8/255"


def test_a_cell_from_before_the_checks_is_checked_when_it_is_run_again(evaluated):
    _, path = evaluated()
    before = path.read_text()
    path.unlink()

    _, path = evaluated()

    assert path.read_text() == before


def test_flags_that_an_old_manifest_raised_count_once(evaluated):
    _, path = evaluated(Digits(lambda images: (images * 15).round() / 15))
    manifest = path.with_name("manifest.json")
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "flags": ["zero-gradient"]}))

    flags, _ = evaluated(Digits(lambda images: (images * 15).round() / 15))

    assert flags.count("zero-gradient") == 1


def test_a_hidden_gradient_loses_against_the_black_box(evaluated):
    flags, _ = evaluated(Digits(lambda images: (images * 15).round() / 15))

    assert {"zero-gradient", "quantised-input", "weaker-than-black-box"} <= set(flags)


def test_steps_too_few_to_cross_the_ball_lose_against_one_step(evaluated, tiny):
    # from a random start, 3 steps of epsilon / 2 do not reach every corner of a linear model's ball
    tiny.write_text(tiny.read_text().replace("steps = 10", "steps = 3"))

    flags, _ = evaluated()

    assert flags == ["weaker-than-one-step"]


def test_controls_alone_need_no_black_box(evaluated, tiny):
    text = tiny.read_text()
    start, end = text.index('[[attacks]]\nname = "pgd"'), text.index("[[models]]")
    tiny.write_text(text[:start] + text[end:])

    _, path = evaluated()

    assert set(json.loads(path.read_text())["fooled"]) == {"noise", "one-step"}


def test_a_model_that_refuses_gradients_is_named(evaluated):
    def refuse(images):
        if images.requires_grad:
            raise ValueError("no gradients here")
        return images

    with pytest.raises(HarnessError, match="ValueError: no gradients here; see that the model"):
        evaluated(Digits(refuse))


def test_a_model_without_gradient_is_evaluated_and_flagged(evaluated):
    class Cut(Digits):
        def forward(self, images):
            return super().forward(images).detach()

    flags, _ = evaluated(Cut())

    assert "zero-gradient" in flags

"""The training loop: exact resume, no NaN, schedules, augmentation."""

from __future__ import annotations

import inspect
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim.optimizer import register_optimizer_step_pre_hook

from harness.augmentation import translated
from harness.errors import CheckpointError, TrainingError, UsageError
from harness.modes import PLAIN, TrainingMode
from harness.tensors import Noise, RoutedClassifier
from harness.testing import ToyMoE
from harness.threat import ThreatModel
from harness.training import (
    Batch,
    Phase,
    Progress,
    Training,
    TrainingContext,
    TrainingData,
    cosine,
    fit,
    new_fabric,
    warmed_up,
    wrapped_for_training,
)
from harness.views import View
from harness.weights import _attack_named

COUNT = 40


class Stopped(Exception):  # noqa: N818 - it stands for no error
    """Stands for a kill between two epochs."""


def data():
    labels = torch.arange(COUNT) % 4
    speckle = Noise(3, torch.arange(COUNT), (1, 8, 8)).uniform(0) * 60
    images = 64 * labels[:, None, None, None] + 30 + speckle.abs()
    return TrainingData(images.to(torch.uint8), labels)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Linear(16, 4)
    )


def train(  # noqa: PLR0913 - what the tests vary
    folder, registry, *, loss=None, told=lambda event: None, epochs=3, held_out=None, clip=None,
    watch=None, mode=PLAIN,
):  # fmt: skip
    """Train a small network; its state and the numbers of its epochs."""
    fabric = new_fabric(torch.device("cpu"))
    model = network()
    context = TrainingContext(
        wrapped_for_training(fabric, model, mode),
        COUNT,
        5,
        _attack_named(registry),
        lambda name: registry.find("objectives", name).load(),
    )
    optimizer = torch.optim.AdamW(context.model.parameters(), lr=0.01)
    default = partial(plain_loss, context.model)
    training = Training(
        phases=[Phase(optimizer, loss or default, clip)],
        epochs=epochs,
        batch_size=8,
        schedule=warmed_up(0.2),
        augment=translated(1),
        watch=watch,
    )
    progress = Progress(folder / "checkpoint.pt", "small", told)
    history = fit(fabric, training, context, data(), held_out, progress)
    return model.state_dict(), history


def plain_loss(model: nn.Module, batch: Batch):
    return functional.cross_entropy(model(batch.images), batch.labels)


def stop_after(epoch):
    def told(event):
        if event.epoch == epoch:
            raise Stopped

    return told


def test_the_loss_falls(tmp_path, registry):
    _, history = train(tmp_path, registry, epochs=15)

    assert history[-1]["loss"] < 0.8 * history[0]["loss"]


def test_the_same_seed_gives_the_same_bits(tmp_path, registry):
    first, _ = train(tmp_path / "a", registry)
    second, _ = train(tmp_path / "b", registry)

    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_stopped_training_goes_on_to_the_same_bits(tmp_path, registry, epoch):
    unbroken, numbers = train(tmp_path / "a", registry)

    with pytest.raises(Stopped):
        train(tmp_path / "b", registry, told=stop_after(epoch))
    resumed, resumed_numbers = train(tmp_path / "b", registry)

    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)
    assert resumed_numbers == numbers


SHORT = TrainingMode("bfloat16-mixed")


def test_a_stopped_training_in_mixed_precision_goes_on_to_the_same_bits(tmp_path, registry):
    unbroken, numbers = train(tmp_path / "a", registry, mode=SHORT)

    with pytest.raises(Stopped):
        train(tmp_path / "b", registry, told=stop_after(1), mode=SHORT)
    resumed, resumed_numbers = train(tmp_path / "b", registry, mode=SHORT)

    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)
    assert resumed_numbers == numbers


def test_mixed_precision_keeps_weights_in_float32_and_gives_others(tmp_path, registry):
    plain, _ = train(tmp_path / "a", registry)
    mixed, history = train(tmp_path / "b", registry, mode=SHORT, epochs=15)

    assert {value.dtype for value in mixed.values()} == {torch.float32, torch.int64}
    assert any(not torch.equal(plain[name], mixed[name]) for name in plain)
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]


def test_a_resumed_training_does_not_repeat_finished_epochs(tmp_path, registry):
    seen = []
    with pytest.raises(Stopped):
        train(tmp_path, registry, told=stop_after(2))

    train(tmp_path, registry, told=lambda event: seen.append(event.epoch))

    assert seen == [3]


def test_the_pace_is_told_and_is_no_part_of_the_numbers_that_are_kept(tmp_path, registry):
    seen = []

    _, history = train(tmp_path, registry, told=seen.append)

    # 40 images in batches of 8: none is left out
    assert [event.images for event in seen] == [COUNT] * 3
    assert all(0 < event.seconds < 60 for event in seen)
    assert [set(numbers) for numbers in history] == [{"loss"}] * 3


def test_the_global_random_state_is_left_as_it_was(tmp_path, registry):
    network()
    expected = torch.rand(1)

    train(tmp_path, registry)  # builds the network first, too

    assert torch.equal(torch.rand(1), expected)


def test_a_loss_that_is_nan_stops_the_training_and_keeps_the_last_checkpoint(tmp_path, registry):
    calls = []

    def explode(batch):
        calls.append(1)
        scale = float("nan") if len(calls) > 7 else 0.0
        return torch.zeros(1, requires_grad=True).sum() + scale

    # five batches an epoch: the eighth is in epoch 2, step 3
    with pytest.raises(TrainingError, match=r"epoch 2, step 3.*lower the learning rate"):
        train(tmp_path, registry, loss=explode)

    assert (tmp_path / "checkpoint.pt").exists()


def test_a_damaged_checkpoint_says_what_to_do(tmp_path, registry):
    (tmp_path / "checkpoint.pt").write_bytes(b"half a file")

    with pytest.raises(CheckpointError, match="remove it to train from the start"):
        train(tmp_path, registry)


def test_held_out_images_are_reported_and_change_nothing(tmp_path, registry):
    without, _ = train(tmp_path / "a", registry)
    with_them, history = train(tmp_path / "b", registry, held_out=data())

    assert 0 <= history[0]["validation_accuracy"] <= 1
    assert all(torch.equal(without[name], with_them[name]) for name in without)


def test_attacking_in_training_leaves_modes_statistics_and_gradients(tmp_path, registry):
    model = network().train()
    context = TrainingContext(
        model,
        COUNT,
        0,
        _attack_named(registry),
        lambda name: registry.find("objectives", name).load(),
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = data().pixels.float() / 255
    batch = Batch(images, data().labels, Noise(0, torch.arange(COUNT), (1, 8, 8)))
    threat = ThreatModel("linf", 0.1)

    attacked = context.attack("pgd", batch, threat, steps=2, stop="never")

    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert threat.contains(attacked, images).all()
    assert not torch.equal(attacked, images)


def test_the_cosine_goes_from_one_to_zero():
    # half way: 0.5 * (1 + cos(pi / 2)) = 0.5
    assert [cosine(0), cosine(0.5), cosine(1)] == pytest.approx([1, 0.5, 0])


def test_the_warm_up_rises_linearly_and_then_follows_the_cosine():
    schedule = warmed_up(0.2)

    # 0.1 is half of the rise; 0.6 is half of what is left
    assert [schedule(0.1), schedule(0.2), schedule(0.6)] == pytest.approx([0.5, 1, 0.5])


def test_a_gradient_is_clipped_to_the_norm_of_its_phase(tmp_path, registry):
    norms = []

    def note(optimizer, *_):
        gradients = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]
        norms.append(float(torch.cat(gradients).norm()))

    handle = register_optimizer_step_pre_hook(note)
    train(tmp_path, registry, clip=0.01)
    handle.remove()

    assert max(norms) == pytest.approx(0.01, rel=1e-3)


def test_what_a_recipe_watches_is_told_of_all_held_out_images(tmp_path, registry):
    seen = []

    def watch(batch):
        seen.append(batch)
        return {"first_pixel": float(batch.images[0, 0, 0, 0])}

    _, history = train(tmp_path, registry, held_out=data(), watch=watch)

    assert [len(batch.labels) for batch in seen] == [COUNT, COUNT, COUNT]
    assert history[0]["first_pixel"] == float(data().pixels[0, 0, 0, 0] / 255)
    assert torch.equal(seen[0].noise.uniform(0), seen[2].noise.uniform(0))


def test_a_batch_says_how_much_of_the_training_is_done(tmp_path, registry):
    seen = []

    def loss(batch):
        seen.append(batch.done)
        return torch.zeros(1, requires_grad=True).sum()

    train(tmp_path, registry, loss=loss, epochs=2)

    # five batches of each of two epochs
    assert seen == pytest.approx([step / 10 for step in range(10)])


@pytest.fixture
def routed_context(registry):
    torch.manual_seed(0)
    model = ToyMoE(4, (1, 8, 8), gradient="straight-through")
    wrapped = wrapped_for_training(new_fabric(torch.device("cpu")), model)
    losses = lambda name: registry.find("objectives", name).load()  # noqa: E731
    return TrainingContext(wrapped, COUNT, 5, _attack_named(registry), losses)


def held_out_batch():
    images, labels = data().rows(torch.arange(8), torch.device("cpu"))
    return Batch(images, labels, Noise(1, torch.arange(8), (1, 8, 8)))


def test_a_wrapped_model_shows_its_routes(routed_context):
    found = routed_context.looked_at(held_out_batch())

    assert found.logits.shape == (8, 4)
    assert len(found.clean_routes) == 1


def test_a_wrapped_model_is_routed_for_every_python(routed_context):
    found = inspect.getattr_static(routed_context.model, "routed", None)

    assert found is not None
    assert isinstance(routed_context.model, RoutedClassifier)
    assert "routed" not in "".join(routed_context.model.state_dict())


def test_routes_of_a_pass_in_mixed_precision_are_float32_and_lose_digits():
    torch.manual_seed(0)
    model = ToyMoE(4, (1, 8, 8), gradient="straight-through")
    images = held_out_batch().images
    plain = model.routed(images)

    wrapped = wrapped_for_training(new_fabric(torch.device("cpu")), model, SHORT)
    found = wrapped.routed(images)

    for here, there in ((found.logits, plain.logits), (wrapped(images), plain.logits)):
        assert here.dtype == torch.float32
        assert 1e-6 < (here - there).abs().max() < 0.1
    assert {routing.gate_logits.dtype for routing in found.routes} == {torch.float32}


def test_an_attack_takes_its_gradients_in_mixed_precision_too(registry):
    torch.manual_seed(0)
    model = wrapped_for_training(new_fabric(torch.device("cpu")), network(), SHORT)
    losses = lambda name: registry.find("objectives", name).load()  # noqa: E731
    context = TrainingContext(model, COUNT, 5, _attack_named(registry), losses)
    batch = held_out_batch()

    attacked = context.attack("pgd", batch, ThreatModel("linf", 0.1), steps=5, stop="never")

    before, after = (
        functional.cross_entropy(
            context.looked_at(batch._replace(images=images)).logits, batch.labels
        )
        for images in (batch.images, attacked)
    )
    assert after > before + 0.05


def test_passes_with_and_without_routes_are_compiled_and_names_stay(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function: compiled.append(function) or function)
    model = ToyMoE(4, (1, 8, 8))
    names = list(model.state_dict())

    wrapped = wrapped_for_training(
        new_fabric(torch.device("cpu")), model, TrainingMode(is_compiled=True)
    )

    assert [function.__name__ for function in compiled] == ["routed", "forward"]
    assert list(wrapped.state_dict()) == names
    assert wrapped(held_out_batch().images).shape == (8, 4)


def test_an_anchored_attack_sees_the_clean_logits_and_its_view(routed_context):
    batch, threat = held_out_batch(), ThreatModel("linf", 0.1)

    plain, forced = (
        routed_context.attack(
            "pgd", batch, threat, objective="trades-kl", view=view, is_anchored=True, steps=3
        )
        for view in (View("full"), View("forced", rank=1))
    )

    assert ((plain - batch.images).abs() > 0).any()
    assert not torch.equal(plain, forced)


def test_a_part_of_the_model_is_attacked_alone(routed_context):
    batch, threat = held_out_batch(), ThreatModel("linf", 0.1)
    part = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))

    found = routed_context.attack("pgd", batch, threat, model=part, steps=10, stop="never")
    other = routed_context.attack("pgd", batch, threat, steps=10, stop="never")

    losses = [functional.cross_entropy(part(images), batch.labels) for images in (found, other)]
    assert losses[0] > losses[1] + 0.05


def test_a_precision_that_is_none_of_a_trainings_is_refused():
    with pytest.raises(UsageError, match="did you mean 'bfloat16-mixed'"):
        TrainingMode("bfloat16")

"""MoE convolutional networks against numbers that AdvMoE's released code produced."""

from __future__ import annotations

import zlib
from copy import deepcopy
from functools import cache

import numpy as np
import pytest
import torch
from torch.nn import functional

from golden_files import golden_arrays
from harness.api import CheckpointError, ModelContext, Routing
from harness.numerics import frozen
from harness.recipes import trades_loss
from harness.tensors import Noise, Outcome
from harness.training import Batch, TrainingContext
from harness_moe_cnn.convert import convert, from_released, renamed
from harness_moe_cnn.densenet import densenet40
from harness_moe_cnn.losses import joint_divergence, router_loss
from harness_moe_cnn.network import moe_layers, with_routers
from harness_moe_cnn.resnet import resnet18
from harness_moe_cnn.router import hard_routing
from harness_moe_cnn.vgg import vgg16
from harness_moe_cnn.wide_resnet import MoEWideResNet

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
"""As the note beside the golden files asks."""

CONTEXT = ModelContext(10, (3, 32, 32), lambda name: name)
EPSILON, STEP, TRADES_STEP = 8 / 255, 2 / 255, 5 / 255


def wrn10_2():
    """The released WRN of depth 10 and widening 2 at half the width."""
    widths = [16, 32, 64]
    backbone = MoEWideResNet(CONTEXT, stem=8, widths=widths, blocks=1, num_experts=2)
    return with_routers(backbone, CONTEXT, router="global")


SIXTEENTH = {"ratio": 1 / 16, "num_experts": 2, "router": "global"}
NETWORKS = {
    "fwd_resnet18_r1_16_E2": lambda: resnet18(CONTEXT, **SIXTEENTH),
    "fwd_vgg16bn_r1_16_E2": lambda: vgg16(CONTEXT, **SIXTEENTH),
    "fwd_wrn10_2_r0.5_E2": wrn10_2,
    "fwd_densenet40_E2_PATCHED": lambda: densenet40(CONTEXT, **{**SIXTEENTH, "ratio": 1.0}),
}


UNREAD = {
    "fwd_wrn10_2_r0.5_E2": [
        f"block{stage}.layer.0.bn1.running_{part}"
        for stage in (1, 2, 3)
        for part in ("mean", "var")
    ]
}
"""Statistics that the released code gathers in BatchNorms whose output it throws away."""


@cache
def golden(name):
    return golden_arrays("advmoe", f"{name}.npz")


def tensor(name, key):
    return torch.from_numpy(golden(name)[key])


def recipe(name, shape):
    """The weights that a tensor of that name and shape is filled with."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    last = name.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return torch.tensor(0)
    if len(shape) in (2, 4):
        spread = (len(shape) // 2 / np.prod(shape[1:])) ** 0.5
        return torch.from_numpy((random.standard_normal(shape) * spread).astype(np.float32))
    low, high = (0.8, 1.2) if last in ("weight", "running_var") else (-0.1, 0.1)
    return torch.from_numpy(random.uniform(low, high, shape).astype(np.float32))


def ours(name):
    [own] = renamed({name: torch.zeros(())})
    return own


def released_state(model, names, given):
    """What is given, and the recipe for all other tensors of those names."""
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    return {
        name: torch.from_numpy(given[name]) if name in given else recipe(name, shapes[ours(name)])
        for name in names
    }


def router_names():
    return [str(name) for name in golden("train_advmoe_resnet18_r1_16_E2")["state_names_router"]]


def official(name):
    """The network of a file with the weights that the official one had."""
    model = NETWORKS[name]()
    arrays = golden(name)
    names = [*map(str, arrays["state_names"]), *router_names()]
    given = {"router.fc.bias": arrays["router.fc.bias"]}
    model.load_state_dict(from_released(released_state(model, names, given)), strict=True)
    return model.eval()


def under_attack():
    """The network of the attacks: the recipe, but for statistics and the router's bias."""
    model = NETWORKS["fwd_resnet18_r1_16_E2"]()
    arrays = golden("train_advmoe_resnet18_r1_16_E2")
    names = [*arrays["state_names_model"], *arrays["state_names_router"]]
    given = arrays.under("before/")
    state = released_state(model, [str(name) for name in names], given)
    model.load_state_dict(from_released(state), strict=True)
    return model.eval()


def assert_close(found, expected):
    torch.testing.assert_close(found.double(), torch.as_tensor(expected).double(), **CLOSE)


@pytest.mark.parametrize(
    ("file", "prefix", "names", "shifted"),
    [
        ("fwd_resnet18_r1_16_E2", "sd/", "", []),
        ("fwd_wrn10_2_r0.5_E2", "sd/", "", []),
        ("router_E2_state", "", "router.", ["fc.bias"]),
    ],
    ids=["resnet", "wide resnet", "router"],
)
def test_a_stored_state_is_what_the_recipe_gives(file, prefix, names, shifted):
    stored = golden(file).under(prefix)

    made = {key: recipe(names + key, array.shape).numpy() for key, array in stored.items()}

    differing = [key for key, array in stored.items() if not np.array_equal(made[key], array)]
    assert differing == shifted


@pytest.mark.parametrize("name", NETWORKS)
def test_a_filled_network_has_the_sums_of_the_official_one(name):
    state = official(name).state_dict()
    arrays = golden(name)

    sums = [state[ours(str(key))].double().sum() for key in arrays["state_names"]]

    torch.testing.assert_close(torch.stack(sums), tensor(name, "state_sum"), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_scores_choices_and_loss_are_the_official_ones(name):
    model = official(name)

    routed = model.routed(tensor(name, "images"))

    assert_close(routed.routes[0].gate_logits[:, 0], tensor(name, "eval_scores"))
    assert torch.equal(routed.routes[0].experts[:, 0, 0], tensor(name, "eval_chosen"))
    assert_close(routed.logits, tensor(name, "eval_logits"))
    loss = functional.cross_entropy(routed.logits, tensor(name, "labels"))
    assert_close(loss, tensor(name, "eval_loss"))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_gives_what_the_official_one_gives(name):
    model, found = official(name), {}
    names = {module: key for key, module in model.named_modules()}

    def keep(layer, read, given):
        found[f"{names[layer]}.weight"] = statistics(given)

    for layer in moe_layers(model.backbone):
        layer.register_forward_hook(keep)

    model(tensor(name, "images"))

    assert list(found) == [ours(f"{key}.weight") for key in golden(name)["moe_layer_names"]]
    assert_close(torch.stack(list(found.values())), tensor(name, "eval_layer_stats"))


def statistics(output):
    flat = output.detach().double()
    of_values = [flat.mean(), flat.std(), flat.abs().amax(), flat.flatten()[0], flat.flatten()[-1]]
    return torch.stack([*of_values, *map(torch.tensor, map(float, output.shape))])


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_the_image_and_of_the_scores_are_the_official_ones(name):
    model = official(name)
    images = tensor(name, "images").requires_grad_()

    routed = model.routed(images)
    loss = functional.cross_entropy(routed.logits, tensor(name, "labels"))
    image, score = torch.autograd.grad(loss, [images, routed.routes[0].gate_logits])

    assert_close(image, tensor(name, "eval_dCE_dinput"))
    assert_close(score[:, 0], tensor(name, "eval_dCE_dscores"))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_gradient_with_the_router_detached_is_the_official_one(name):
    images = tensor(name, "images").requires_grad_()

    routed = official(name).routed(images, detach_router=True)
    loss = functional.cross_entropy(routed.logits, tensor(name, "labels"))
    (image,) = torch.autograd.grad(loss, [images])

    assert_close(image, tensor(name, "eval_dCE_dinput_router_detached"))


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_all_parameters_have_the_official_size(name):
    model = official(name)

    logits = model(tensor(name, "images"))
    functional.cross_entropy(logits, tensor(name, "labels")).backward()

    own = dict(model.named_parameters())
    named = [own[ours(str(key))] for key in golden(name)["param_names"]]
    none = torch.tensor(float("nan")).double()  # the official code's dead BatchNorms have none
    sizes = [none if item.grad is None else item.grad.double().norm() for item in named]
    expected = tensor(name, "eval_param_grad_l2")
    torch.testing.assert_close(torch.stack(sizes), expected, equal_nan=True, **CLOSE)


@pytest.mark.parametrize("expert", [0, 1])
@pytest.mark.parametrize("name", NETWORKS)
def test_one_expert_for_all_images_gives_the_official_logits(name, expert):
    images = tensor(name, "images")
    experts = torch.full((len(images), 1, 1), expert)
    gates = torch.nn.functional.one_hot(experts[:, 0], 2).float()
    forced = Routing(gates, gates, experts, torch.ones_like(experts).bool())

    routed = official(name).routed(images, routes=(forced,))

    assert_close(routed.logits, tensor(name, "eval_logits_forced_expert")[expert])


@pytest.mark.parametrize("name", NETWORKS)
def test_training_mode_gives_the_official_logits_and_statistics(name):
    model = official(name).train()

    routed = model.routed(tensor(name, "images"))

    assert_close(routed.logits, tensor(name, "train_logits"))
    assert_close(routed.routes[0].gate_logits[:, 0], tensor(name, "train_scores"))
    names = [str(key) for key in golden(name)["bn_after_names"]]
    state, is_read = model.state_dict(), [key not in UNREAD.get(name, ()) for key in names]
    sums = torch.stack([state[ours(key)].double().sum() for key in names])
    assert_close(sums[is_read], tensor(name, "bn_after_sum")[is_read])


def end_to_end(model, images, labels):
    return functional.cross_entropy(model(images), labels)


def router_only(model, images, labels):
    scores = model.routed(images).routes[0].gate_logits[:, 0]
    return functional.cross_entropy(scores, labels % 2)


def joint(model, images, labels):
    return end_to_end(model, images, labels) + 6 * router_only(model, images, labels)


def trades(model, images, labels):
    return divergence(model, images, tensor("attacks_resnet18_r1_16_E2", "images"))


def divergence(model, images, clean):
    target = model(clean).softmax(1).detach()
    return functional.kl_div(model(images).log_softmax(1), target, reduction="sum")


ATTACKS = {
    "pgd_whitebox": (end_to_end, STEP),
    "adv_val_router": (router_only, STEP),
    "adv_val": (joint, STEP),
    "trades": (trades, TRADES_STEP),
}


def stepped(loss, model, images, step):
    """One released step of PGD, from images that need not be in [0, 1]."""
    clean = tensor("attacks_resnet18_r1_16_E2", "images")
    labels = tensor("attacks_resnet18_r1_16_E2", "labels")
    images = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(model, images, labels), [images])
    moved = images.detach() + step * gradient.sign()
    return moved.clamp(clean - EPSILON, clean + EPSILON).clamp(0, 1)


@pytest.mark.parametrize("name", ATTACKS)
def test_each_step_of_an_attack_is_the_official_one(name):
    loss, size = ATTACKS[name]
    stored = tensor("attacks_resnet18_r1_16_E2", f"{name}/iter")

    with frozen(under_attack()) as model:
        found = torch.stack([stepped(loss, model, images, size) for images in stored[:-1]])

    # steps are 2 or 5 of 255, so a pixel that differs does so by more than 1e-3
    different = ((found - stored[1:]).abs() > 1e-3).float().mean()
    assert different <= 0.005


@pytest.mark.parametrize("name", ["pgd10", "adv_val10"])
def test_the_attacked_images_get_the_official_logits(name):
    file = "attacks_resnet18_r1_16_E2"

    logits = under_attack()(tensor(file, f"{name}/final"))

    assert_close(logits, tensor(file, f"{name}/logits"))


def test_ten_steps_of_the_joint_attack_end_at_the_official_images():
    # of pgd10 only the end is kept, and there a start that is 1e-7 away ends elsewhere: one of
    # its four images does not come out, and the router's part here keeps all of them in place
    file = "attacks_resnet18_r1_16_E2"
    images = tensor(file, "images") + tensor(file, "adv_val10/noise")

    with frozen(under_attack()) as model:
        for _ in range(10):
            images = stepped(joint, model, images, STEP)

    different = ((images - tensor(file, "adv_val10/final")).abs() > 1e-3).float().mean()
    assert different <= 0.005


def test_the_shares_of_right_images_under_attack_are_the_official_ones():
    file = "attacks_resnet18_r1_16_E2"
    labels, model = tensor(file, "labels"), under_attack()
    ends = [tensor(file, "adv_val/iter")[-1], tensor(file, "adv_val10/final")]
    routed = model.routed(tensor(file, "adv_val_router/iter")[-1])

    shares = [100 * (model(images).argmax(1) == labels).float().mean() for images in ends]
    right = [
        routed.logits.argmax(1) == labels,
        routed.routes[0].experts[:, 0, 0] == labels % 2,
    ]
    of_router = [100 * mask.double().mean() for mask in right]

    assert shares == [tensor(file, "adv_val/acc"), tensor(file, "adv_val10/acc")]
    assert of_router == list(tensor(file, "adv_val_router/acc_model_router"))


def test_the_losses_of_trades_are_the_official_ones():
    file = "attacks_resnet18_r1_16_E2"
    model = under_attack().train()  # after the attack
    images, labels = tensor(file, "images"), tensor(file, "labels")
    attacked = tensor(file, "trades/iter")[-1]

    apart = divergence(model, attacked, images) / len(images)

    assert_close(model(images), tensor(file, "trades/logits_nat"))
    assert_close(model(attacked), tensor(file, "trades/logits_adv"))
    found = torch.stack([end_to_end(model, images, labels), apart])
    assert_close(found, tensor(file, "trades/loss"))


def test_copies_of_the_router_in_every_layer_are_taken_as_one():
    state = {f"router.{key}": torch.ones(2) for key in ("fc.weight", "fc.bias")}
    copies = {f"layer1.0.conv1.{key}": value.clone() for key, value in state.items()}

    found = renamed({**state, **copies})

    assert set(found) == {"routers.0.head.weight", "routers.0.head.bias"}


def test_copies_of_the_router_that_differ_are_refused():
    state = {"router.fc.bias": torch.ones(2), "layer1.0.conv1.router.fc.bias": torch.zeros(2)}

    with pytest.raises(CheckpointError, match="one model with one router"):
        renamed(state)


def as_released(name):
    """The whole state of a network under the released names."""
    shapes = {key: tuple(value.shape) for key, value in NETWORKS[name]().state_dict().items()}
    names = [*map(str, golden(name)["state_names"]), *router_names()]
    return {key: torch.zeros(shapes[ours(key)]) for key in names}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_whole_state_is_read_as_it_is_saved(name):
    plain = as_released(name)
    layer = next(key for key in plain if "conv1.weight" in key).removesuffix(".weight")
    copies = {f"{layer}.{key}": plain[key] for key in plain if key.startswith("router.")}
    parallel = {f"module.{key}": value for key, value in {**plain, **copies}.items()}

    found = from_released(parallel)

    assert set(found) == set(NETWORKS[name]().state_dict()) == set(from_released(plain))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_name_that_is_missing_or_foreign_is_told(name):
    state = as_released(name)
    without = {key: value for key, value in state.items() if not key.startswith("router.fc")}

    with pytest.raises(CheckpointError, match=r"missing.*routers\.0\.head\.bias, routers"):
        from_released(without)
    with pytest.raises(CheckpointError, match=r"foreign scores, spare\.weight; save"):
        from_released({**state, "spare.weight": torch.zeros(1), "scores": torch.zeros(1)})


@pytest.mark.parametrize("wrap", [dict, lambda state: {"epoch": 3, "state_dict": state}])
def test_the_registered_converter_reads_what_torch_saved(tmp_path, registry, wrap):
    state = as_released("fwd_resnet18_r1_16_E2")
    torch.save(wrap(state), tmp_path / "model.pt")

    found = registry.find("converters", "advmoe-released").load()(tmp_path / "model.pt")

    assert set(found) == set(from_released(state))


class Code:
    """Something that a pickle must not bring."""


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"state_dict": Code()}, "it was not executed"),
        ({"state_dict": [torch.ones(1)]}, "save model.state_dict"),
        ([torch.ones(1)], "save model.state_dict"),
    ],
    ids=["code", "list inside", "list"],
)
def test_a_file_without_a_state_dict_is_refused(tmp_path, content, told):
    torch.save(content, tmp_path / "model.pt")

    with pytest.raises(CheckpointError, match=told):
        convert(tmp_path / "model.pt")


def test_a_shortcut_of_the_first_block_is_whole_or_not_there():
    # at ratio 1 the first stage is as wide as the stem, and there is none
    name = "fwd_resnet18_r1_16_E2"
    state = as_released(name)
    none = {key: value for key, value in state.items() if "layer1.0.shortcut" not in key}
    half = {key: value for key, value in state.items() if "layer1.0.shortcut.0" not in key}

    assert len(from_released(none)) < len(from_released(state))
    with pytest.raises(CheckpointError, match=r"stages\.0\.0\.shortcut\.conv\.weight"):
        from_released(half)


def test_a_state_of_another_kind_of_network_says_what_is_looked_for():
    with pytest.raises(CheckpointError, match=r"called layer1\.0\.conv1\.weight"):
        from_released({"fc.weight": torch.zeros(2, 2)})


def kl(logits, target):
    return functional.kl_div(logits.log_softmax(1), target.softmax(1), reduction="sum")


def released_optimizers(model):
    """One of all that is no router, one of the router."""
    groups = model.parameter_groups()
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
    of_model = torch.optim.SGD([*groups["experts"], *groups["other"]], **settings)
    return of_model, torch.optim.SGD(groups["router"], **settings)


def expert_step(model, images, labels, attacked):
    """The released step of the experts, its attack's end given: its loss, and the scores."""
    model.train()
    scores = model.routers[0](images)
    model(images)  # for display; it moves the statistics
    loss = trades_loss(model(images), model(attacked), labels, beta=6.0)
    model.zero_grad()
    loss.backward()
    released_optimizers(model)[0].step()
    return loss.detach(), scores


def router_step(model, images, labels, attacked, scores):
    """The released step of the router, its attack's end given: its loss."""
    model(images)  # not used; it moves the statistics
    loss = router_loss(scores, model.routers[0](attacked), labels, alpha=6.0, beta=6.0)
    model.zero_grad()
    loss.backward()
    released_optimizers(model)[1].step()
    return loss.detach()


def state_after_a_step():
    file = "train_advmoe_resnet18_r1_16_E2"
    after = golden(file).under("after1/")
    return from_released({key: torch.from_numpy(array) for key, array in after.items()})


def test_a_training_step_leads_to_the_official_state():
    file = "train_advmoe_resnet18_r1_16_E2"
    model, images, labels = under_attack(), tensor(file, "images"), tensor(file, "batch_labels")[0]
    attacked = tensor(file, "s1/advA_iter")[-1], tensor(file, "s1/advB_iter")[-1]

    of_experts, scores = expert_step(model, images, labels, attacked[0])
    of_router = router_step(model, images, labels, attacked[1], scores)

    assert_close(of_experts, tensor(file, "s1/loss_expert")[2])
    assert_close(of_router, tensor(file, "s1/loss_router")[2])
    expected = state_after_a_step()
    assert len(expected) == 244
    found = {key: model.state_dict()[key] for key in expected}
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def climbed(model, images, scores, target):
    """The loss that attacks in training climb, summed, and its gradient."""
    images = images.clone().requires_grad_()
    with frozen(model):
        routed = model.routed(images)
    loss = joint_divergence(
        Outcome(
            routed.logits,
            torch.zeros(len(images), dtype=torch.int64),
            clean_logits=target,
            routes=routed.routes,
            clean_routes=(hard_routing(scores.detach()),),
        )
    ).sum()
    return loss.detach(), torch.autograd.grad(loss, [images])[0]


def in_evaluation(model, images):
    with frozen(model), torch.no_grad():
        return model(images)


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("phase", ["A", "B"], ids=["experts", "router"])
def test_what_the_attacks_of_both_phases_climb_is_the_official_loss(phase, step):
    file = "train_advmoe_resnet18_r1_16_E2"
    model, images = under_attack().train(), tensor(file, "images")
    labels, attacked = tensor(file, "batch_labels")[0], tensor(file, "s1/advA_iter")[-1]
    before = deepcopy(model)
    _, scores = expert_step(model, images, labels, attacked)
    before.routers[0](images)
    before(images)  # for display; it moves the statistics
    model = before if phase == "A" else model
    target = tensor(file, f"s1/logits_nat_eval{'AB'.index(phase) + 1}")

    assert_close(in_evaluation(model, images), target)
    loss, gradient = climbed(model, tensor(file, f"s1/adv{phase}_iter")[step], scores, target)

    assert_close(loss, tensor(file, "s1/attack_loss")[2 * "AB".index(phase) + step])
    expected = tensor(file, f"s1/adv{phase}_grad")[step]
    # where the attack of the router begins, it is all but 0: a difference of rounded numbers
    assert (gradient - expected).norm() <= 0.01 * expected.norm()


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_the_losses_of_every_training_step_are_the_official_ones(batch):
    # of the second and third, only what the losses are made of is kept
    file, step = "train_advmoe_resnet18_r1_16_E2", f"s{batch}"
    labels = tensor(file, "batch_labels")[batch - 1]
    logits = [tensor(file, f"{step}/{name}") for name in ("logits_nat", "logits_adv")]
    scores = [
        tensor(file, f"{step}/{name}") for name in ("scores_clean_train", "scores_adv_router")
    ]

    of_experts = trades_loss(*logits, labels, beta=6.0)
    of_router = router_loss(*scores, labels, alpha=6.0, beta=6.0)

    assert_close(of_experts, tensor(file, f"{step}/loss_expert")[2])
    assert_close(of_router, tensor(file, f"{step}/loss_router")[2])


def test_the_second_training_step_begins_as_the_official_one():
    file = "train_advmoe_resnet18_r1_16_E2"
    model, images = NETWORKS["fwd_resnet18_r1_16_E2"](), tensor(file, "images").flip(3)
    model.load_state_dict(state_after_a_step())
    model.train()

    scores = model.routers[0](images)
    displayed = model(images)
    target = in_evaluation(model, images)
    start = images + 0.001 * tensor(file, "s2/noise1")
    loss, _ = climbed(model, start, scores, target)

    assert_close(scores, tensor(file, "s2/scores_clean_train"))
    assert_close(displayed, tensor(file, "s2/logits_result"))
    assert_close(target, tensor(file, "s2/logits_nat_eval1"))
    assert_close(model(images), tensor(file, "s2/logits_nat"))
    assert_close(loss, tensor(file, "s2/attack_loss")[0])


def test_the_recipe_steps_to_the_official_weights(registry):
    file = "train_advmoe_resnet18_r1_16_E2"
    model, ends = (
        under_attack().train(),
        [tensor(file, f"s1/adv{phase}_iter")[-1] for phase in "AB"],
    )
    images, labels = tensor(file, "images"), tensor(file, "batch_labels")[0]
    batch = Batch(images, labels, Noise(0, torch.arange(4), (3, 32, 32)))

    def given(objective, images, labels, threat, *, noise, **parameters):
        return ends.pop(0)

    find = registry.find
    context = TrainingContext(
        model, 4, 0, lambda name, **_: (given, {}), lambda name: find("objectives", name).load()
    )
    entry = find("recipes", "advmoe-released-full")
    training = entry.load()(context, **entry.defaults)
    for phase in training.phases:
        loss = phase.loss(batch)
        phase.optimizer.zero_grad()
        loss.backward()
        phase.optimizer.step()

    # statistics differ: the released code passes the images twice more
    expected = state_after_a_step()
    found = {name: value.detach() for name, value in model.named_parameters()}
    torch.testing.assert_close(found, {name: expected[name] for name in found}, rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_the_routers_gradient_stays_finite_where_the_released_form_is_not(batch):
    # scores as they were, and as far apart as they are some batches later
    file = "train_advmoe_resnet18_r1_16_E2"
    names = ("scores_clean_train", "scores_adv_router")
    stored = [tensor(file, f"s{batch}/{name}") for name in names]
    scores = [(1000 * part).requires_grad_() for part in stored]
    labels = tensor(file, "batch_labels")[batch - 1]

    ours = torch.autograd.grad(router_loss(*scores, labels, alpha=6.0, beta=6.0), scores)
    theirs = torch.autograd.grad(kl(scores[1], scores[0]), scores)

    assert all(gradient.isfinite().all() for gradient in ours)
    assert not all(gradient.isfinite().all() for gradient in theirs)


def test_each_step_of_the_attack_in_training_is_the_official_one():
    file = "train_advmoe_resnet18_r1_16_E2"
    model, clean = under_attack().train(), tensor(file, "images")
    scores = model.routers[0](clean).detach()
    model(clean)  # for display; it moves the statistics
    stored = tensor(file, "s1/advA_iter")

    def loss(model, images, labels):
        target = model(clean).detach()
        return kl(model(images), target) + kl(model.routers[0](images), scores)

    with frozen(model):
        found = torch.stack([stepped(loss, model, images, TRADES_STEP) for images in stored[:-1]])

    assert_close(clean + 0.001 * tensor(file, "s1/noise1"), stored[0])
    different = ((found - stored[1:]).abs() > 1e-3).float().mean()
    assert different <= 0.005

"""V-MoE: vision transformers whose MLPs are sparse mixtures of experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.api import Card, MetricCard, ModelCard, ProbeCard, hookimpl

if TYPE_CHECKING:
    from harness.api import Register

VMOE = "Riquelme et al., 2021, https://arxiv.org/abs/2106.05974"
HAYES = "Hayes et al., 2024, https://arxiv.org/abs/2402.05526"
ROBUST = "Puigcerver et al., 2022, https://arxiv.org/abs/2210.10253"
SMALL = f"{VMOE}, on the sizes of https://arxiv.org/abs/2012.12877"
EVERY_SECOND = (1, 3, 5, 7, 9, 11)
SIZES = {
    # patch size, width, depth, heads, pre_logits, blocks with experts, heights of the card
    "b32": (32, 768, 12, 12, True, EVERY_SECOND, (224, 384)),
    "b16": (16, 768, 12, 12, False, EVERY_SECOND, (224, 384)),
    "s32": (32, 512, 8, 8, True, (5, 7), (224, 384)),
    "ti4": (4, 192, 12, 3, False, EVERY_SECOND, (32,)),
    "ti8": (8, 192, 12, 3, False, EVERY_SECOND, (64,)),
    "digits": (2, 48, 3, 4, False, (1,), (8,)),
}
DEFAULTS = {
    "image_size": 0,
    "num_selected": 2,
    "group_size": 1,
    "capacity_factor": 0.0,
    "batch_priority": False,
    "dispatch": "grouped",
}
VARIANTS = (
    # name, size, experts, source
    ("vmoe/digits", "digits", 4, SMALL),
    ("vmoe/ti4-e8", "ti4", 8, SMALL),
    ("vmoe/ti8-e8", "ti8", 8, SMALL),
    ("vmoe/s32-e8", "s32", 8, VMOE),
    ("vmoe/b16-e8", "b16", 8, VMOE),
    ("vmoe/b32-e2", "b32", 2, ROBUST),
    ("vmoe/b32-e4", "b32", 4, ROBUST),
    ("vmoe/b32-e8", "b32", 8, ROBUST),
    ("vmoe/b32-e16", "b32", 16, ROBUST),
    ("vmoe/b32-e32", "b32", 32, ROBUST),
)
SOFT = "Puigcerver et al., 2024, https://arxiv.org/abs/2308.00951"
SOFT_SIZES = {
    # patch size, width, depth, heads, blocks with experts, experts, slots of each, heights
    "soft_moe/ti-e8": (4, 192, 12, 3, (6, 7, 8, 9, 10, 11), 8, 8, (32,)),
    "soft_moe/digits": (2, 48, 3, 4, (1,), 4, 4, (8,)),
}
SWEEP = (1, 2, 4, 8, 16, 32)
"""Experts of the small models that are alike but for their number: one works for each token, so
that all do the same work, but for the router's."""
PUBLISHED = {"group_size": 4, "capacity_factor": 1.5}
"""Of the released configuration of the attack: four images share the experts' places."""

SMALL_SCALE = {
    "epochs": 40,
    "batch_size": 32,
    "warm_up": 0.1,
    "auxiliary": 1.0,
    "group_size": 8,
    "capacity_factor": 1.05,
    "crop": 0,
    "flip": False,
}
PRETRAIN = {
    **SMALL_SCALE,
    "objective": "sigmoid-ce",
    "learning_rate": 3e-3,
    "last_rate": 1e-5,
    "weight_decay": 0.1,
    "clip": 0.0,
}
FINETUNE = {
    **SMALL_SCALE,
    "epochs": 20,
    "objective": "ce",
    "learning_rate": 0.03,
    "last_rate": 1e-5,
    "clip": 10.0,
}
ADVERSARIAL = {
    **FINETUNE,
    "norm": "linf",
    "epsilon": "8/255",
    "attack": "pgd",
    "steps": 10,
    "relative_step_size": 0.1,
    "init": "clean",
    "attacked_objective": "ce",
}
PAPER_SCALE = {"batch_size": 4096, "flip": True, "crop": 28}
RECIPES = (
    # name, function, summary, parameters of the small scale, of the papers
    (
        "vmoe-pretrain",
        "pretrain",
        "Sigmoid cross-entropy and the auxiliary loss, Adam, a rate that falls linearly",
        PRETRAIN,
        # 10,000 of 517,859 steps warm up
        {"epochs": 7, "learning_rate": 8e-4, "warm_up": 10_000 / 517_859},
    ),
    (
        "vmoe-finetune",
        "finetune",
        "Cross-entropy and the auxiliary loss, SGD with momentum, half a cosine",
        FINETUNE,
        # 10,000 steps of 4096 of 1,281,167 images; 500 of them warm up
        {"epochs": 32, "warm_up": 500 / 10_000, "crop": 48},
    ),
    (
        "vmoe-adversarial-finetune",
        "adversarial_finetune",
        "The same on images that PGD attacks in ten steps, on nothing else",
        ADVERSARIAL,
        {"epochs": 32, "warm_up": 500 / 10_000, "crop": 48},
    ),
)
CUT = "images are cut out of themselves with mirrored edges, not by the inception crop"
INFERRED = (
    f"{CUT}; the model is attacked in evaluation mode, without noise and drops; epsilon is read in "
    "[0, 1] units and cross-entropy alone is attacked, which the paper does not say"
)


@hookimpl
def register_converters(register: Register) -> None:
    """Bring the reader of the official parameters."""
    register(
        "vmoe-released",
        "harness_vmoe.convert:convert",
        card=Card(
            "An npz file of a V-MoE's parameters by their official paths.",
            source="https://github.com/google-research/vmoe",
            note="the published checkpoints are msgpack shards: restore them with the official "
            "code first, and save the parameters alone",
        ),
    )


@hookimpl
def register_recipes(register: Register) -> None:
    """Bring the papers' three trainings, each at a small scale and at theirs."""
    for name, function, summary, small, paper in RECIPES:
        source = ROBUST if "adversarial" in name else f"{VMOE}; {ROBUST}"
        note = INFERRED if "adversarial" in name else CUT
        target = f"harness_vmoe.recipes:{function}"
        register(
            name, target, card=Card(f"{summary}: for few small images.", source, note),
            defaults=small,
        )  # fmt: skip
        register(
            f"{name}-paper", target, card=Card(f"{summary}, as published.", source, note),
            defaults={**small, **PAPER_SCALE, **paper},
        )  # fmt: skip


@hookimpl
def register_models(register: Register) -> None:
    """Bring the V-MoEs of the papers, small ones, and three with the published capacity."""
    for name, size, num_experts, source in VARIANTS:
        _register(register, name, size, num_experts, source)
    for count in SWEEP:
        _register(register, f"vmoe/digits-e{count}", "digits", count, SMALL, {"num_selected": 1})
    for name, size, num_experts, source in (
        ("b32-e32", "b32", 32, ROBUST),
        ("b16-e8", "b16", 8, ROBUST),
        ("digits", "digits", 4, SMALL),
    ):
        _register(register, f"vmoe/{name}-capacity", size, num_experts, source, PUBLISHED)
    for name in SOFT_SIZES:
        _register_soft(register, name)


def _register_soft(register: Register, name: str) -> None:
    patch_size, width, depth, heads, moe_blocks, num_experts, slots, sizes = SOFT_SIZES[name]
    register(
        name,
        "harness_vmoe.soft:soft_moe",
        card=ModelCard(
            summary=f"A vision transformer of {depth} blocks, {width} wide, on patches of "
            f"{patch_size} pixels, {len(moe_blocks)} of them with {num_experts} experts, "
            f"whose {slots} slots each are mixtures of all tokens; routes are told of slots.",
            source=SOFT,
            sizes=sizes,
            num_experts=num_experts,
            num_selected=num_experts,
            router_gradient="soft",
        ),
        defaults={
            "patch_size": patch_size,
            "width": width,
            "depth": depth,
            "heads": heads,
            "image_size": 0,
            "moe_blocks": moe_blocks,
            "num_experts": num_experts,
            "slots": slots,
        },
    )


def _register(
    register: Register,
    name: str,
    size: str,
    num_experts: int,
    source: str,
    changes: dict[str, int | float] | None = None,
) -> None:
    patch_size, width, depth, heads, pre_logits, moe_blocks, sizes = SIZES[size]
    parameters: dict[str, Any] = {**DEFAULTS, **(changes or {})}
    is_dropping = parameters["group_size"] > 1
    dropping = ", whose places four images share" if is_dropping else ""
    register(
        name,
        "harness_vmoe.model:vmoe",
        card=ModelCard(
            summary=f"A vision transformer of {depth} blocks, {width} wide, on patches of "
            f"{patch_size} pixels, {len(moe_blocks)} of them with {num_experts} experts{dropping}.",
            source=source,
            sizes=sizes,
            num_experts=num_experts,
            num_selected=parameters["num_selected"],
            router_gradient="soft",
            group=int(parameters["group_size"]),
        ),
        defaults={
            "patch_size": patch_size,
            "width": width,
            "depth": depth,
            "heads": heads,
            "pre_logits": pre_logits,
            "moe_blocks": moe_blocks,
            "num_experts": num_experts,
            **parameters,
        },
    )


@hookimpl
def register_probes(register: Register) -> None:
    """Bring what other images of a group can do to a victim."""
    register(
        "batch-mates",
        "harness_vmoe.batch_mates:batch_mates",
        card=ProbeCard(
            "Who is wrong, or taken for the runner-up class, beside mates that are picked to take "
            "its places, over capacity, order and place; the same beside drawn mates.",
            source=HAYES,
            note="mates are other images of the shard, ranked by the experts that they share with "
            "the victim; four sets are tried",
            on="clean",
        ),
    )


@hookimpl
def register_metrics(register: Register) -> None:
    """Bring the columns of batch mates."""
    beside = "of eight, last in the group, capacity 1, first come first served"
    for name, told in (
        ("denied", f"right beside drawn mates and wrong beside picked ones: {beside}"),
        ("redirected", f"right so, and taken for their runner-up class: {beside}"),
        ("denied-by-drawn", f"right so, and wrong beside other drawn mates: {beside}"),
    ):
        register(
            f"mates-{name}",
            f"harness_vmoe.batch_mates:{name.replace('-', '_')}",
            card=MetricCard(
                f"Share of all images that are {told}.", title=f"mates: {name}", source=HAYES
            ),
        )

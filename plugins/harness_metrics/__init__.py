"""Metrics: the columns of the table; and probes: numbers taken on attacked images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api import MetricCard, ProbeCard, hookimpl
from harness_metrics.curve_list import VMOE_CHANGES, curve_cards

if TYPE_CHECKING:
    from harness.api import Register


@hookimpl
def register_metrics(register: Register) -> None:
    """Bring accuracies, the area under the curve, and cost."""
    register(
        "clean-accuracy",
        "harness_metrics.accuracy:clean_accuracy",
        card=MetricCard("Share of images that the model has right.", title="clean", from_bits=True),
    )
    register(
        "robust-accuracy",
        "harness_metrics.accuracy:robust_accuracy",
        card=MetricCard(
            "Share of all images that the model has right on the clean image and under every "
            "attack.",
            title="robust",
            from_bits=True,
            by_epsilon=True,
        ),
    )
    register(
        "mean-accuracy",
        "harness_metrics.accuracy:mean_accuracy",
        card=MetricCard(
            "Mean over the attacks of the share of images that are right under each, whatever the "
            "model said of the clean image.",
            title="mean",
            by_epsilon=True,
            source="Hendrycks & Dietterich, 2019, https://arxiv.org/abs/1903.12261: 1 - the mean "
            "corruption error before it is divided by AlexNet's",
        ),
    )
    register(
        "autoattack-accuracy",
        "harness_metrics.accuracy:accuracy_under_autoattack",
        card=MetricCard(
            "Share of all images that are right on the clean image and under AutoAttack alone.",
            title="AutoAttack",
            by_epsilon=True,
            from_bits=True,
        ),
    )
    for view, told in (
        ("experts", "only the experts see the attacked image, under the clean image's routes"),
        ("router", "only the router sees the attacked image, and the experts the clean one"),
    ):
        register(
            f"ra-{view}",
            f"harness_metrics.accuracy:robust_accuracy_of_{view}",
            card=MetricCard(
                f"Share of all images that stay right where {told}: a diagnosis.",
                title=f"ra-{view}",
                from_bits=True,
                by_epsilon=True,
            ),
        )
    register(
        "routing-change",
        "harness_metrics.routing:routing_change",
        card=MetricCard(
            "Mean over images, layers and attacks of one minus the overlap of the expert sets "
            "before and after the attack.",
            unit="share",
            title="routing change",
            by_epsilon=True,
            source=VMOE_CHANGES,
        ),
    )
    register(
        "error-rate",
        "harness_metrics.accuracy:error_rate",
        card=MetricCard(
            "Share of all images that the model has wrong, clean or under any attack.",
            title="error",
            from_bits=True,
            by_epsilon=True,
            source="google-research/vmoe: 1 - num_correct / num_images",
        ),
    )
    register(
        "precision-at-1",
        "harness_metrics.accuracy:clean_accuracy",
        card=MetricCard(
            "Share of clean images whose first choice is one of their classes.",
            title="P@1",
            from_bits=True,
            source="arXiv 2210.10253, section 4",
        ),
    )
    register(
        "fdr-at-1",
        "harness_metrics.accuracy:error_rate",
        card=MetricCard(
            "False discovery rate: share of images whose first choice is none of their classes, "
            "clean or under any attack.",
            title="FDR@1",
            from_bits=True,
            by_epsilon=True,
            source="arXiv 2210.10253, section 4: 1 - precision@1",
        ),
    )
    register(
        "auc",
        "harness_metrics.accuracy:area_under_curve",
        card=MetricCard(
            "Area under robust accuracy over epsilon by the trapezoid rule, from clean accuracy "
            "at 0, divided by the largest epsilon.",
            title="AUC",
            from_bits=True,
        ),
    )
    for name, title, told in (
        ("best-expert-accuracy", "best expert", "the best single expert has"),
        ("oracle-accuracy", "oracle", "some expert, the best for each image, has"),
        ("every-expert-accuracy", "every expert", "all experts, each alone, have"),
    ):
        register(
            name,
            f"harness_metrics.experts:{name.replace('-', '_')}",
            card=MetricCard(
                f"Share of all images that {told} right under every attack made for the model.",
                title=title,
                by_epsilon=True,
            ),
        )
    register(
        "fooled-load",
        "harness_metrics.experts:fooled_load",
        card=MetricCard(
            "Share of the attacks that succeeded whose image the fullest expert among them took.",
            title="fooled load",
            by_epsilon=True,
        ),
    )
    register(
        "parameters",
        "harness_metrics.cost:parameters",
        card=MetricCard("Parameters in all.", unit="count", title="parameters"),
    )
    register(
        "active-parameters",
        "harness_metrics.cost:active_parameters",
        card=MetricCard("Parameters that work for one image.", unit="count", title="active"),
    )
    register(
        "gflops",
        "harness_metrics.cost:gflops",
        card=MetricCard(
            "Operations of one image's forward pass in units of 10^9, multiply and add counted "
            "apart.",
            unit="GFLOPs",
            title="GFLOPs",
        ),
    )
    for name, target, card in curve_cards():
        register(name, f"harness_metrics.{target}", card=card)


@hookimpl
def register_probes(register: Register) -> None:
    """Bring the probes of confidence and routing."""
    register(
        "confidence",
        "harness_metrics.probes:confidence",
        card=ProbeCard("Softmax probability of the label, on the clean and on the attacked image."),
    )
    register(
        "routing-change",
        "harness_metrics.routing_probes:routing_change",
        card=ProbeCard(
            "One minus the overlap of the expert sets of clean and attacked tokens, by layer: as "
            "executed and as intended before drops; first experts that changed; levels of chance.",
            source=VMOE_CHANGES,
        ),
    )
    register(
        "routing-noise",
        "harness_metrics.routing_probes:routing_noise",
        card=ProbeCard(
            "What the probes of routes say, under random noise as large as the perturbation.",
        ),
    )
    register(
        "router",
        "harness_metrics.routing_probes:router",
        card=ProbeCard(
            "By layer: divergence of the gates, gap between the last chosen gate logit and the "
            "next, share of choices that capacity dropped.",
        ),
    )
    register(
        "expert-load",
        "harness_metrics.routing_probes:expert_load",
        card=ProbeCard(
            "Choices that each expert took, by layer, of the clean and of the attacked image.",
            note="nothing where the layers have more than 64 experts together",
        ),
    )
    register(
        "mediation",
        "harness_metrics.probes:mediation",
        card=ProbeCard(
            "Whether content, routes, both or neither of an attack make the model wrong; the same "
            "for noise.",
        ),
    )
    register(
        "input-gradient",
        "harness_metrics.probes:input_gradient",
        card=ProbeCard("Size of the gradient of cross-entropy at the image, in the dual norm."),
    )
    register(
        "expert-accuracy",
        "harness_metrics.expert_probes:expert_accuracy",
        card=ProbeCard(
            "Whether each expert alone, any and all of them have the clean and the attacked image "
            "right, where whole images are routed; the expert that took it.",
            note="the attack was made for the model as it is, not for the expert",
        ),
    )

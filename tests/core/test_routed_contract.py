"""What the checks for authors ask of routed models."""

from __future__ import annotations

import pytest

from harness.plugins import load_plugins
from harness.testing import check_model

PLUGIN = """
from dataclasses import replace
from harness import ModelCard, hookimpl
from harness.testing import ToyMoE

class Faulty(ToyMoE):
    fault = ""

    def routed(self, images, *, routes=None, relaxed=False, detach_router=False):
        found = super().routed(images, routes=routes, relaxed=relaxed, detach_router=detach_router)
        routing = found.routes[0]
        if self.fault == "replay" and routes is not None:
            return super().routed(1 - images, routes=routes)
        if self.fault == "detached" and detach_router:
            return found._replace(logits=found.logits + 1)
        if self.fault == "relaxed" and relaxed:
            return found._replace(logits=found.logits / 0)
        if self.fault == "gates":
            return found._replace(routes=(replace(routing, gates=2 * routing.gates),))
        if self.fault == "kept":
            return found._replace(routes=(replace(routing, kept=routing.kept[:, :, 0]),))
        if self.fault == "tokens":
            return found._replace(routes=(replace(routing, gates=routing.gates[:, 0]),))
        if self.fault == "auxiliary":
            return found._replace(auxiliary_loss=found.auxiliary_loss[:7])
        return found

class Twofold(ToyMoE):
    def forward(self, images):
        return 2 * super().forward(images)

def build(fault):
    def faulty(context):
        model = Faulty(context.num_classes, context.image_shape)
        model.fault = fault
        return model
    return faulty

FAULTS = ("honest", "replay", "detached", "relaxed", "gates", "kept", "tokens", "auxiliary")

@hookimpl
def register_models(register):
    for fault in FAULTS:
        register(fault, build(fault), card=ModelCard(sizes=(8,)))
    register("twofold", lambda context: Twofold(context.num_classes, context.image_shape))
"""


@pytest.fixture
def routed(tmp_path):
    path = tmp_path / "routed.py"
    path.write_text(PLUGIN)
    return load_plugins([str(path)])


def test_an_honest_routed_model_passes(routed):
    check_model(routed, "honest", image_shape=(1, 8, 8))


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("replay", "routes=its own"),
        ("detached", "detach_router=True"),
        ("relaxed", "NaN or infinite logits"),
        ("gates", "must sum to 1"),
        ("kept", "experts and kept must be"),
        ("tokens", "gate_logits and gates must be"),
        ("auxiliary", "one number for each image, or for each group"),
        ("twofold", "gives other logits than the model called by itself"),
    ],
)
def test_a_routed_model_with_a_fault_is_told_what_to_change(routed, name, advice):
    with pytest.raises(AssertionError, match=advice):
        check_model(routed, name, image_shape=(1, 8, 8))

"""The evasion attacks of the Adversarial Robustness Toolbox 1.20 as data: which, and which not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Goal = Literal["label", "runner-up", "none"]
Kind = Literal["budget", "minimal"]
Knowledge = Literal["white_box", "black_box"]

BOTH = ("linf", "l2")
LINF = ("linf",)
L2 = ("l2",)


@dataclass(frozen=True)
class ArtAttack:
    """One attack class and how it is called.

    Attributes:
        name: After "art/"; the class's in kebab-case, without a last "-attack", and for those of
            Carlini & Wagner without "-method".
        cls: Class in `art.attacks.evasion`.
        summary: One sentence.
        source: Paper.
        kind: "budget" climbs inside the ball, and what it finds is projected into it; "minimal"
            seeks a small perturbation, which counts where it lies in the ball.
        knowledge: What it sees of the model.
        norms: Of the balls that it is made for; where it is made for neither, those in which
            its result is judged.
        defaults: Parameters that a suite may set, with ART's defaults.
        bound: Arguments of the class that are given by the threat model.
        fixed: Arguments that are always the same.
        goal: The class that it is told: the label to leave, the likeliest other class to reach,
            or none, where it goes by the prediction.
        takes_probabilities: It goes by probabilities, most others by logits.
        lowest: What it is told to be the darkest pixel: -1 where it clips the perturbation to the
            range that is meant for the image, so that it could not darken.
        needs_torch: It works with ART's own PyTorch classifier alone.
        needs: Package without which the class is not there.
        note: What else differs from the paper.
    """

    name: str
    cls: str
    summary: str
    source: str
    kind: Kind
    knowledge: Knowledge = "white_box"
    norms: tuple[str, ...] = BOTH
    defaults: Mapping[str, Any] = field(default_factory=dict)
    bound: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    goal: Goal = "label"
    takes_probabilities: bool = False
    lowest: float = 0.0
    needs_torch: bool = False
    needs: str = ""
    note: str = ""

    @property
    def registered(self) -> str:
        """Its name in suites."""
        return f"art/{self.name}"

    @property
    def target(self) -> str:
        """Where the function that runs it is found."""
        return f"harness_art.attack:{self.name}"


BALL = {"eps": "epsilon", "norm": "norm"}
STEPS = {**BALL, "eps_step": "step"}
A_THIRD = {"relative_step_size": 1 / 3}
"""ART's own step: 0.1 at its epsilon 0.3."""
RESTARTED = {"max_iter": 100, "nb_random_init": 5, **A_THIRD}
CROCE = "Croce & Hein, 2020, https://arxiv.org/abs/2003.01690"
CARLINI = "Carlini & Wagner, 2017, https://arxiv.org/abs/1608.04644"
VARGAS = "Kotyan & Vargas, 2019, https://arxiv.org/abs/1906.06026"
OWN_LOSS = "climbs a loss of its own, whatever the objective"

ATTACKS = (
    ArtAttack(
        "auto-attack",
        "AutoAttack",
        "AutoPGD on two losses, DeepFool and Square, in a row.",
        CROCE,
        "budget",
        defaults={**RESTARTED, "square_max_iter": 5000, "square_nb_restarts": 5},
        bound=STEPS,
        needs_torch=True,
        note=f"{OWN_LOSS}; DeepFool stands where the paper has FAB, as in ART",
    ),
    ArtAttack(
        "auto-conjugate-gradient",
        "AutoConjugateGradient",
        "Conjugate gradients in the ball, whose steps halve where the loss stalls.",
        "Yamamura et al., 2022, https://arxiv.org/abs/2206.09628",
        "budget",
        defaults=RESTARTED,
        bound=STEPS,
    ),
    ArtAttack(
        "auto-projected-gradient-descent",
        "AutoProjectedGradientDescent",
        "Projected gradient descent with momentum, whose steps halve where the loss stalls.",
        CROCE,
        "budget",
        defaults=RESTARTED,
        bound=STEPS,
    ),
    ArtAttack(
        "basic-iterative-method",
        "BasicIterativeMethod",
        "Steps along the gradient's sign from the clean image.",
        "Kurakin et al., 2016, https://arxiv.org/abs/1607.02533",
        "budget",
        norms=LINF,
        defaults={"max_iter": 100, **A_THIRD},
        bound={"eps": "epsilon", "eps_step": "step"},
    ),
    ArtAttack(
        "boundary",
        "BoundaryAttack",
        "A walk along the decision boundary towards the clean image, by predictions alone.",
        "Brendel et al., 2018, https://arxiv.org/abs/1712.04248",
        "minimal",
        "black_box",
        norms=L2,
        defaults={
            "delta": 0.01,
            "epsilon": 0.01,
            "step_adapt": 0.667,
            "max_iter": 5000,
            "num_trial": 25,
            "sample_size": 20,
            "init_size": 100,
            "min_epsilon": 0.0,
        },
        fixed={"targeted": False},
    ),
    ArtAttack(
        "brendel-bethge",
        "BrendelBethgeAttack",
        "A walk along the decision boundary by the gradient of the margin.",
        "Brendel et al., 2019, https://arxiv.org/abs/1907.01003",
        "minimal",
        defaults={
            "overshoot": 1.1,
            "steps": 1000,
            "lr": 1e-3,
            "lr_decay": 0.5,
            "lr_num_decay": 20,
            "momentum": 0.8,
            "binary_search_steps": 10,
            "init_size": 100,
        },
        bound={"norm": "norm"},
        needs_torch=True,
        needs="numba",
        note=OWN_LOSS,
    ),
    ArtAttack(
        "carlini-l0",
        "CarliniL0Method",
        "The L2 attack on fewer and fewer pixels.",
        CARLINI,
        "minimal",
        defaults={
            "confidence": 0.0,
            "learning_rate": 0.01,
            "binary_search_steps": 10,
            "max_iter": 10,
            "initial_const": 0.01,
            "warm_start": True,
            "max_halving": 5,
            "max_doubling": 5,
        },
        note=f"made for few pixels, judged in the suite's ball; {OWN_LOSS}",
    ),
    ArtAttack(
        "carlini-l2",
        "CarliniL2Method",
        "The smallest L2 perturbation with a negative margin, by a penalty that is searched.",
        CARLINI,
        "minimal",
        norms=L2,
        defaults={
            "confidence": 0.0,
            "learning_rate": 0.01,
            "binary_search_steps": 10,
            "max_iter": 10,
            "initial_const": 0.01,
            "max_halving": 5,
            "max_doubling": 5,
        },
        note=OWN_LOSS,
    ),
    ArtAttack(
        "carlini-linf",
        "CarliniLInfMethod",
        "The smallest Linf perturbation with a negative margin, by a bound that shrinks.",
        CARLINI,
        "minimal",
        norms=LINF,
        defaults={
            "confidence": 0.0,
            "learning_rate": 0.01,
            "max_iter": 10,
            "decrease_factor": 0.9,
            "initial_const": 1e-5,
            "largest_const": 20.0,
            "const_factor": 2.0,
        },
        note=OWN_LOSS,
    ),
    ArtAttack(
        "deepfool",
        "DeepFool",
        "Steps to the nearest boundary of the linearised model.",
        "Moosavi-Dezfooli et al., 2016, https://arxiv.org/abs/1511.04599",
        "minimal",
        norms=L2,
        defaults={"max_iter": 100, "epsilon": 1e-6, "nb_grads": 10},
        note="goes by the logits, whatever the objective",
    ),
    ArtAttack(
        "elastic-net",
        "ElasticNet",
        "The smallest perturbation in L1 and L2 with a negative margin.",
        "Chen et al., 2018, https://arxiv.org/abs/1709.04114",
        "minimal",
        norms=L2,
        defaults={
            "confidence": 0.0,
            "learning_rate": 0.01,
            "binary_search_steps": 9,
            "max_iter": 100,
            "beta": 0.001,
            "initial_const": 0.001,
            "decision_rule": "EN",
        },
        note=OWN_LOSS,
    ),
    ArtAttack(
        "fast-gradient-method",
        "FastGradientMethod",
        "One full step along the gradient.",
        "Goodfellow et al., 2015, https://arxiv.org/abs/1412.6572",
        "budget",
        defaults={"num_random_init": 0, "minimal": False, **A_THIRD},
        bound=STEPS,
    ),
    ArtAttack(
        "hop-skip-jump",
        "HopSkipJump",
        "Steps along the boundary's normal, estimated by predictions alone.",
        "Chen et al., 2020, https://arxiv.org/abs/1904.02144",
        "minimal",
        "black_box",
        defaults={"max_iter": 50, "max_eval": 10000, "init_eval": 100, "init_size": 100},
        bound={"norm": "norm"},
    ),
    ArtAttack(
        "momentum-iterative-method",
        "MomentumIterativeMethod",
        "Steps along the gradients of all earlier steps together.",
        "Dong et al., 2018, https://arxiv.org/abs/1710.06081",
        "budget",
        defaults={"max_iter": 100, "decay": 1.0, **A_THIRD},
        bound=STEPS,
    ),
    ArtAttack(
        "newtonfool",
        "NewtonFool",
        "Newton steps that lower the probability of the predicted class.",
        "Jang et al., 2017, https://doi.org/10.1145/3134600.3134635",
        "minimal",
        norms=L2,
        defaults={"max_iter": 100, "eta": 0.01},
        takes_probabilities=True,
        note="goes by the probabilities, whatever the objective",
    ),
    ArtAttack(
        "pixel",
        "PixelAttack",
        "A few pixels repainted by differential evolution.",
        f"Su et al., 2019, https://arxiv.org/abs/1710.08864; {VARGAS}",
        "minimal",
        "black_box",
        defaults={"th": 1, "es": 1, "max_iter": 100},
        note="made for few pixels (th), judged in the suite's ball",
    ),
    ArtAttack(
        "projected-gradient-descent",
        "ProjectedGradientDescent",
        "Projected gradient descent.",
        "Madry et al., 2018, https://arxiv.org/abs/1706.06083",
        "budget",
        defaults={"max_iter": 100, "num_random_init": 0, "random_eps": False, **A_THIRD},
        bound=STEPS,
    ),
    ArtAttack(
        "rescaling-auto-conjugate-gradient",
        "RescalingAutoConjugateGradient",
        "The same conjugate gradients, rescaled where their direction hardly changes.",
        "Yamamura et al., 2024, https://arxiv.org/abs/2408.03972",
        "budget",
        defaults=RESTARTED,
        bound=STEPS,
    ),
    ArtAttack(
        "saliency-map-method",
        "SaliencyMapMethod",
        "The pixels that matter most, pushed towards another class.",
        "Papernot et al., 2016, https://arxiv.org/abs/1511.07528",
        "minimal",
        defaults={"theta": 0.1, "gamma": 1.0},
        goal="runner-up",
        note="made for few pixels, judged in the suite's ball; goes to the likeliest other class",
    ),
    ArtAttack(
        "shadow",
        "ShadowAttack",
        "A smooth perturbation with little colour, under noise.",
        "Ghiasi et al., 2020, https://arxiv.org/abs/2003.08937",
        "minimal",
        defaults={
            "sigma": 0.5,
            "nb_steps": 300,
            "learning_rate": 0.1,
            "lambda_tv": 0.3,
            "lambda_c": 1.0,
            "lambda_s": 0.5,
            "batch_size": 400,
        },
        goal="none",
        needs_torch=True,
        note=f"made for no ball, judged in the suite's; {OWN_LOSS}",
    ),
    ArtAttack(
        "sign-opt",
        "SignOPTAttack",
        "The direction with the nearest boundary, by the sign of its distance alone.",
        "Cheng et al., 2020, https://arxiv.org/abs/1909.10773",
        "minimal",
        "black_box",
        norms=L2,
        defaults={
            "epsilon": 0.001,
            "num_trial": 100,
            "max_iter": 1000,
            "query_limit": 20000,
            "k": 200,
            "alpha": 0.2,
            "beta": 0.001,
        },
        fixed={"targeted": False},
    ),
    ArtAttack(
        "simba",
        "SimBA",
        "One pixel or one frequency after the other, kept where the probability falls.",
        "Guo et al., 2019, https://arxiv.org/abs/1905.07121",
        "minimal",
        "black_box",
        norms=L2,
        defaults={
            "attack": "dct",
            "max_iter": 3000,
            "order": "random",
            "epsilon": 0.1,
            "freq_dim": 4,
            "stride": 1,
        },
        takes_probabilities=True,
    ),
    ArtAttack(
        "spatial-transformation",
        "SpatialTransformation",
        "The rotation and the shift that fool, of a grid.",
        "Engstrom et al., 2019, https://arxiv.org/abs/1712.02779",
        "minimal",
        "black_box",
        defaults={
            "max_translation": 10.0,
            "num_translations": 3,
            "max_rotation": 30.0,
            "num_rotations": 3,
        },
        note="made for no ball, judged in the suite's, which it seldom meets; ART's own defaults "
        "change nothing",
    ),
    ArtAttack(
        "square",
        "SquareAttack",
        "Random search that repaints a square at a time.",
        "Andriushchenko et al., 2020, https://arxiv.org/abs/1912.00049",
        "budget",
        "black_box",
        defaults={"max_iter": 100, "p_init": 0.8, "nb_restarts": 1},
        bound=BALL,
        note=OWN_LOSS,
    ),
    ArtAttack(
        "targeted-universal-perturbation",
        "TargetedUniversalPerturbation",
        "Fast gradient steps towards the likeliest other class, added up.",
        "Hirano & Takemoto, 2020, https://arxiv.org/abs/1911.06502",
        "budget",
        defaults={"delta": 0.2, "max_iter": 20},
        bound={**BALL, "attacker_params": "targeted-fgsm"},
        goal="runner-up",
        note="each image has a perturbation of its own",
    ),
    ArtAttack(
        "threshold",
        "ThresholdAttack",
        "All pixels, moved within the ball by differential evolution.",
        VARGAS,
        "budget",
        "black_box",
        norms=LINF,
        defaults={"es": 1, "max_iter": 100},
        bound={"th": "levels"},
        note="pixels are rounded down to 255ths; evolves by differences (es = 1), where ART's "
        "default asks for the package cma (es = 0)",
    ),
    ArtAttack(
        "universal-perturbation",
        "UniversalPerturbation",
        "Steps of DeepFool, added up and projected.",
        "Moosavi-Dezfooli et al., 2017, https://arxiv.org/abs/1610.08401",
        "budget",
        defaults={"attacker": "deepfool", "delta": 0.2, "max_iter": 20},
        bound=BALL,
        note="each image has a perturbation of its own",
    ),
    ArtAttack(
        "virtual-adversarial-method",
        "VirtualAdversarialMethod",
        "The direction in which the predicted distribution changes most.",
        "Miyato et al., 2016, https://arxiv.org/abs/1507.00677",
        "budget",
        norms=L2,
        defaults={"max_iter": 10, "finite_diff": 0.01},
        bound={"eps": "epsilon"},
        goal="none",
        takes_probabilities=True,
        note="finite differences of 0.01, as ART's 1e-6 vanish in float32; one pass for each "
        "element of the image at each step",
    ),
    ArtAttack(
        "wasserstein",
        "Wasserstein",
        "Steps along the gradient in a Wasserstein ball, which grows until one fools.",
        "Wong et al., 2019, https://arxiv.org/abs/1902.07906",
        "minimal",
        defaults={
            "norm": "wasserstein",
            "ball": "wasserstein",
            "eps": 0.3,
            "eps_step": 0.1,
            "regularization": 3000.0,
            "p": 2,
            "kernel_size": 5,
            "eps_iter": 10,
            "eps_factor": 1.1,
            "max_iter": 400,
            "conjugate_sinkhorn_max_iter": 400,
            "projected_sinkhorn_max_iter": 400,
        },
        note="made for a ball of its own (eps), judged in the suite's",
    ),
    ArtAttack(
        "zoo",
        "ZooAttack",
        "The L2 attack of Carlini & Wagner with gradients from finite differences.",
        "Chen et al., 2017, https://arxiv.org/abs/1708.03999",
        "minimal",
        "black_box",
        norms=L2,
        defaults={
            "confidence": 0.0,
            "learning_rate": 0.01,
            "max_iter": 10,
            "binary_search_steps": 1,
            "initial_const": 0.001,
            "abort_early": True,
            "use_resize": True,
            "use_importance": True,
            "nb_parallel": 128,
            "variable_h": 0.0001,
        },
        lowest=-1.0,
        note=f"{OWN_LOSS}; may darken pixels, which ART's own bounds forbid",
    ),
)

PATCH = "paints a patch of any strength, which leaves every ball"
STICKER = "covers part of the image with stickers of any strength, which leaves every ball"
SPEECH = "attacks speech recognition"
DETECTOR = "attacks object detectors"
ACTIVATIONS = "asks for the activations of a layer and for an image to imitate"
COPY = "the algorithm of art/projected-gradient-descent, for another framework"

EXCLUDED: Mapping[str, str] = {
    "AdversarialPatch": PATCH,
    "AdversarialPatchNumpy": PATCH,
    "AdversarialPatchPyTorch": PATCH,
    "AdversarialPatchTensorFlowV2": f"{PATCH}; needs TensorFlow",
    "AdversarialTexturePyTorch": "attacks object trackers in videos",
    "CarliniWagnerASR": SPEECH,
    "CompositeAdversarialAttackPyTorch": "changes hue, rotation and brightness, which leaves every "
    "ball",
    "DPatch": DETECTOR,
    "DecisionTreeAttack": "attacks decision trees of scikit-learn",
    "FeatureAdversariesNumpy": ACTIVATIONS,
    "FeatureAdversariesPyTorch": ACTIVATIONS,
    "FeatureAdversariesTensorFlowV2": f"{ACTIVATIONS}; needs TensorFlow",
    "FrameSaliencyAttack": "attacks videos, frame by frame",
    "GRAPHITEBlackbox": STICKER,
    "GRAPHITEWhiteboxPyTorch": STICKER,
    "GeoDA": "broken in 1.20: calls numpy.mat, which NumPy 2 has not; writes files beside the run",
    "HighConfidenceLowUncertainty": "attacks Gaussian processes of GPy",
    "ImperceptibleASR": SPEECH,
    "ImperceptibleASRPyTorch": SPEECH,
    "LaserAttack": "draws a beam of light of any strength, which leaves every ball",
    "LowProFool": "attacks tables: asks how much each column matters",
    "MalwareGDTensorFlow": "attacks detectors of malware; needs TensorFlow",
    "OverTheAirFlickeringPyTorch": "attacks videos",
    "OverloadPyTorch": DETECTOR,
    "ProjectedGradientDescentNumpy": "what art/projected-gradient-descent runs",
    "ProjectedGradientDescentPyTorch": COPY,
    "ProjectedGradientDescentTensorFlowV2": f"{COPY}; needs TensorFlow",
    "RobustDPatch": DETECTOR,
    "SNAL": DETECTOR,
}
"""The other classes of `art.attacks.evasion`, each with the reason why it is not registered."""

"""Cut the full golden files to the subset of tests/golden.

python tests/golden/cut.py FOLDER

FOLDER holds the full files, a folder for each family. Kept are the arrays that match a pattern,
bit by bit; the names of all others go to the array `left_out`, so that a test that asks for one
of them can say so.
"""

from __future__ import annotations

import sys
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
FORWARD = ("images", "labels", "eval_[lsc]*", "moe_*", "param_names", "eval_param_*", "train_*")
NAMES = ("bn_after_*", "state_names", "state_sum", "router.fc.bias", "eval_dCE_dscores")
ROUTES = (
    "*/block?/router_logits", "*/block?/gates", "*/block?/expert_index", "*/block?/dropped",
    "*/block?/combine_weights", "*/block?/*_loss", "*/block?/dlogits_*",
)  # fmt: skip
KEPT = {
    "advmoe/fwd_resnet18_r1_16_E2": (*FORWARD, *NAMES, "eval_dCE_*"),
    "advmoe/fwd_vgg16bn_r1_16_E2": (*FORWARD, *NAMES),
    "advmoe/fwd_wrn10_2_r0.5_E2": (*FORWARD, *NAMES),
    "advmoe/fwd_densenet40_E2_PATCHED": (*FORWARD, *NAMES),
    "advmoe/attacks_resnet18_r1_16_E2": (
        "images", "labels", "adv_val/iter", "adv_val_router/iter", "pgd10/[fl]*",
        "adv_val10/[fln]*",
    ),
    "advmoe/train_advmoe_resnet18_r1_16_E2": (
        "batch_labels", "state_names_*", "before/*", "s?/loss_*", "s?/scores_*",
        "s?/logits_nat", "s?/logits_adv",
    ),
    "apgd/tinynet_weights": ("*",),
    "dual/moe_resnet_w4_forward": (
        "sd/*", "pixels_u8", "y", "gate_logits", "top?", "expert_logits", "moe_logits",
    ),
    "dual/dual_resnet_w4_forward": ("alphas", "*_logits", "*_top1"),
    "dual/moe_resnet_full_seed0": ("n_params", "param_names"),
    "dual/pgd10_RAE_frozen_route": (
        "eta", "logits", "ce_per_sample", "routes", "x_adv", "*logits_adv",
    ),
    "dual/rter_loss_terms_eval": ("*",),
    "dual/jtdmoe_loss_terms_eval": ("x", "y", "kl_*", "loss_*", "ce_*"),
    "vmoe/k2_tight_bpr_f32": (
        "params/*", "images", "labels", "*/logits", "eval/altbatch_*",
        "eval/rolled_logits", "*/auxiliary_loss_total", "*/dimage_softmax", "*/dimage_aux",
        "train/block?/noise", "eval/block1/capacity", *ROUTES,
    ),
    "vmoe/k2_tight_bpr_f64": (
        "*/logits", "eval/altbatch_*", "eval/rolled_logits", "*/auxiliary_loss_total",
        "eval/dimage_softmax", "train/dimage_aux", "train/block?/noise", *ROUTES,
    ),
    "vmoe/k2_ample_f32": (
        "params/*", "images", "labels", "eval/logits", "eval/rolled_logits", "eval/block1/capacity",
    ),
    "vmoe/k2_ample_f64": (
        "eval/logits", "eval/rolled_logits", "pgd_softmax/iterates", "pgd_softmax/losses",
        "pgd_softmax/combine_weights_after/*", "pgd_softmax/stats/sum_iou/*",
    ),
    "vmoe/theory_numpy": ("*",),
}  # fmt: skip
"""Patterns of the arrays that are kept of each file."""

FIRST_IMAGES = {"advmoe/attacks_resnet18_r1_16_E2": 2}
"""Of which files only that many images are kept; their attacks treat images one by one."""


def main() -> None:
    """Write the subset."""
    full = Path(sys.argv[1])
    for name, patterns in KEPT.items():
        with np.load(full / f"{name}.npz") as file:
            arrays = dict(file)
        kept = {key: array for key, array in arrays.items() if _matches(key, patterns)}
        if name in FIRST_IMAGES:
            kept = {key: _first(key, array, FIRST_IMAGES[name]) for key, array in kept.items()}
        if len(kept) < len(arrays):
            kept["left_out"] = np.array([key for key in arrays if key not in kept])
        path = HERE / f"{name}.npz"
        path.parent.mkdir(exist_ok=True)
        np.savez_compressed(path, **kept)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _first(name: str, array: np.ndarray, count: int) -> np.ndarray:
    """The first images; those of all iterates where there are iterates."""
    return array[:, :count] if name.endswith("/iter") else array[:count]


if __name__ == "__main__":
    main()

"""Dense vision transformers: V-MoE's, the standard ones, and every model of timm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api import Card, ModelCard, hookimpl

if TYPE_CHECKING:
    from harness.api import Register

STANDARD = "Dosovitskiy et al., 2021, https://arxiv.org/abs/2010.11929"
SMALL = "Touvron et al., 2021, https://arxiv.org/abs/2012.12877, table 1"
VMOE_SMALL = "Riquelme et al., 2021, https://arxiv.org/abs/2106.05974"
VMOE = "Puigcerver et al., 2022, https://arxiv.org/abs/2210.10253, its dense models"
TRANSFORMERS = (
    # name, patch size, width, depth, heads, pre_logits, heights of its card, source
    ("vit/s32-vmoe", 32, 512, 8, 8, True, (224, 384), VMOE_SMALL),
    ("vit/b32", 32, 768, 12, 12, True, (224, 384), VMOE),
    ("vit/b+32", 32, 832, 15, 13, True, (224, 384), VMOE),
    ("vit/b++32", 32, 896, 18, 14, True, (224, 384), VMOE),
    ("vit/b+++32", 32, 960, 21, 15, True, (224, 384), VMOE),
    ("vit/l32", 32, 1024, 24, 16, True, (224, 384), VMOE),
    ("vit/ti16", 16, 192, 12, 3, False, (96, 224, 384), SMALL),
    ("vit/s16", 16, 384, 12, 6, False, (96, 224, 384), SMALL),
    ("vit/b16", 16, 768, 12, 12, False, (96, 224, 384), STANDARD),
    ("vit/ti4", 4, 192, 12, 3, False, (32,), SMALL),
    ("vit/ti8", 8, 192, 12, 3, False, (64,), SMALL),
)


@hookimpl
def register_converters(register: Register) -> None:
    """Bring the reader of vit_jax's published files."""
    register(
        "vit-released",
        "harness_vit.convert:convert",
        card=Card(
            "An npz file of a dense vision transformer of vit_jax, or of one of vmoe.",
            source="https://github.com/google-research/vision_transformer",
        ),
    )


@hookimpl
def register_models(register: Register) -> None:
    """Bring the small ViT, the dense ViTs of the papers and the family `timm/<name>`."""
    register(
        "vit/digits",
        "harness_vit.models:vision_transformer",
        card=ModelCard(
            summary="A small vision transformer for 8x8 images: 16 patches of 2x2 pixels.",
            source="Dosovitskiy et al., 2021, https://arxiv.org/abs/2010.11929, in timm's form",
            sizes=(8,),
        ),
        defaults={"patch_size": 2, "width": 48, "depth": 3, "heads": 4},
    )
    register(
        "timm/<name>",
        "harness_vit.models:from_timm",
        card=ModelCard(
            summary="Any model of timm by its name; weights from a file, or by a recipe.",
            source="https://github.com/huggingface/pytorch-image-models",
        ),
        defaults={"pretrained": False},
    )
    for name, patch_size, width, depth, heads, pre_logits, sizes, source in TRANSFORMERS:
        register(
            name,
            "harness_vit.vit:dense_vit",
            card=ModelCard(
                summary=f"A vision transformer of {depth} blocks, {width} wide, "
                f"on patches of {patch_size} pixels.",
                source=source,
                sizes=sizes,
            ),
            defaults={
                "patch_size": patch_size,
                "width": width,
                "depth": depth,
                "heads": heads,
                "pre_logits": pre_logits,
                "image_size": 0,
            },
        )

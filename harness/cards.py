"""Facts about registered things, as data beside them: what `harness show` prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.views import ViewName

RouterGradient = Literal["none", "straight-through", "soft"]
Fidelity = Literal["exact", "inferred", "repaired", "own"]
Parameters = Mapping[str, Any]  # what a TOML table can hold


@dataclass(frozen=True)
class Card:
    """What a recipe, objective, suite, executor or converter is.

    Attributes:
        summary: One sentence.
        source: Paper, equation or file of the official code.
        note: What differs from the source.
    """

    summary: str
    source: str = ""
    note: str = ""


@dataclass(frozen=True)
class ProbeCard:
    """What a probe measures.

    Attributes:
        summary: One sentence.
        source: Paper, equation or file of the official code.
        note: What differs from the source.
        on: "attacked" images, once for each attack and epsilon; or the "clean" ones, once.
    """

    summary: str
    source: str = ""
    note: str = ""
    on: Literal["attacked", "clean"] = "attacked"


@dataclass(frozen=True)
class ModelCard:
    """What a model is, before it is built.

    Attributes:
        summary: One sentence.
        source: Paper, equation or file of the official code.
        licence: Licence of the weights, where there are some.
        weights: URL or path of weights; empty where a recipe trains them.
        sha256: Hash of that file, always checked.
        sizes: Heights in pixels that the model takes; empty where it takes any.
        num_experts: Experts of each MoE layer; None for a dense model.
        num_selected: Experts that work for one token (K).
        router_gradient: What gradient reaches the input through the router.
        group: Consecutive images on each other of which their logits depend, such as those that
            share the experts' places; 1 where each image stands alone.
        draws: Passes whose mean is the prediction, of a model that draws random numbers itself.
        trained_as: Registered model that recipes train in its place: one that has the same
            weights, and differs in what they do not depend on. Empty where it is trained itself.
    """

    summary: str = ""
    source: str = ""
    licence: str = ""
    weights: str = ""
    sha256: str = ""
    sizes: tuple[int, ...] = ()
    num_experts: int | None = None
    num_selected: int | None = None
    router_gradient: RouterGradient | None = None
    group: int = 1
    draws: int = 1
    trained_as: str = ""


@dataclass(frozen=True)
class AttackCard:
    """What an attack is and how far it follows its source.

    Attributes:
        summary: One sentence.
        source: Paper, equation or file of the official code.
        fidelity: "exact" as published, "inferred" where the source is silent, "repaired" where
            it is wrong, "own" where there is none.
        note: What differs from the source.
        objective: What it climbs unless the suite says otherwise.
        control: True for a yardstick that is no attack, such as random noise.
        passes: Forward passes of one image that nothing fools, from the parameters.
        needs_routes: True where it has no meaning for a dense model.
        members: Name of the parameter that lists other attacks, each as `name` or
            `name:objective`; the attack is given them ready to be called. Empty for none.
        returns_last: True where, with `stop="never"`, it returns its last iterate for every image,
            whether that fools the model or not, so that what it moved can be measured.
    """

    summary: str = ""
    source: str = ""
    fidelity: Fidelity = "own"
    note: str = ""
    objective: str = "ce"
    control: bool = False
    passes: Callable[[Parameters], int] | None = None
    needs_routes: bool = False
    members: str = ""
    returns_last: bool = False


@dataclass(frozen=True)
class ObjectiveCard:
    """What a loss measures.

    Attributes:
        summary: One sentence.
        source: Paper, equation or file of the official code.
        note: What differs from the source.
        one_label: True where it has no meaning for images with several correct classes.
        view: How it looks at a routed model, unless the suite says otherwise.
        needs_routes: True where it has no meaning for a dense model.
    """

    summary: str = ""
    source: str = ""
    note: str = ""
    one_label: bool = False
    view: ViewName = "full"
    needs_routes: bool = False


@dataclass(frozen=True)
class MetricCard:
    """What a number in the table means.

    Attributes:
        summary: One sentence with the formula.
        unit: "share" for numbers in [0, 1], else the unit itself.
        title: Head of the column.
        by_epsilon: True where there is one value for each epsilon.
        source: Where the definition comes from.
        from_bits: True where it follows from which images are right, clean and under each attack,
            so that an entry proves it.
        is_curve: True where it has many values, by epsilon, layer or attack: no column, but a
            figure (`harness report`); listed among a suite's `curves`.
    """

    summary: str = ""
    unit: str = "share"
    title: str = ""
    by_epsilon: bool = False
    source: str = ""
    from_bits: bool = False
    is_curve: bool = False


@dataclass(frozen=True)
class DatasetCard:
    """What a data set is, so that plans and lists need not load it.

    Attributes:
        summary: One sentence.
        source: Where the images come from.
        licence: Licence of the images.
        num_classes: Number of labels.
        image_shape: (channel, height, width) of the images; height and width are 0 where they
            differ from image to image and each suite says its canvas.
        splits: Number of images of each split.
        fingerprints: Fingerprint of each split, of the copy that the card describes.
        label_names: Names of the classes, in the order of the labels.
        image_column: Column that holds the images.
        label_column: Column that holds the labels.
        hub_id: Name on the Hugging Face hub; empty where it is not there.
        files: Files of each split in the hub's repository, as a pattern.
        access: What somebody must do before the hub gives the files; empty where nothing.
        id_pattern: Regular expression on an image's file name whose first group is its number,
            from 1; the sample id is one less. Empty where it is the place in the split.
        describe: Of a family: the card of a member, from what follows the family's name.
    """

    summary: str
    num_classes: int
    image_shape: tuple[int, int, int]
    splits: Mapping[str, int]
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    label_names: tuple[str, ...] = ()
    image_column: str = "image"
    label_column: str = "label"
    source: str = ""
    licence: str = ""
    hub_id: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    access: str = ""
    id_pattern: str = ""
    describe: Callable[[str], DatasetCard] | None = None


AnyCard = Card | ProbeCard | ModelCard | AttackCard | ObjectiveCard | MetricCard | DatasetCard

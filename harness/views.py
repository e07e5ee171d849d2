"""Views of a routed model: what an attack looks at, and what decides whether it fooled it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from harness.errors import UsageError
from harness.hints import did_you_mean

ViewName = Literal["full", "experts", "router", "detached", "relaxed", "forced"]


@dataclass(frozen=True)
class View:
    """How an objective looks at a Mixture-of-Experts model.

    Attributes:
        name: "full", the model as it is; "experts", the routes of the clean image replayed while
            the content is attacked; "router", the routes of the attacked image with the content
            of the clean one; "detached", no gradient through the router; "relaxed", all experts
            mixed by the dense gates; "forced", the routes of the clean image, but for an expert
            that takes the place of the likeliest.
        rank: Of the forced expert among those of each token of the clean image, the likeliest
            being 0; beyond the last, the last.
        is_mixed: The gates of the router's view mix all experts, as a surrogate for a router
            through which no gradient comes.
    """

    name: ViewName = "full"
    rank: int = 0
    is_mixed: bool = False

    def __post_init__(self) -> None:
        known = get_args(ViewName)
        if self.name not in known:
            raise UsageError(f"view {self.name!r} is not known{did_you_mean(self.name, known)}")
        if self.rank < 0:
            raise UsageError(f"the rank of a forced expert must be 0 or more, got {self.rank}")

    @property
    def judge(self) -> View:
        """The view in which it is decided whether an image is fooled."""
        return View(self.name) if self.name in DIAGNOSTIC else FULL

    @property
    def is_surrogate(self) -> bool:
        """Its logits are not those of its judge, who must be asked again."""
        return self.is_mixed or self.name in ("relaxed", "forced")

    @property
    def passes(self) -> int:
        """Passes through the model for one look: the router's view asks for routes first."""
        return 2 if self.name == "router" else 1

    @property
    def most_passes(self) -> int:
        """The same with those of the judge, where he may have to be asked again."""
        is_judged = self.is_surrogate or self.name == "router"  # mixed, where the router is hard
        return 2 * self.passes if is_judged else self.passes


DIAGNOSTIC = ("experts", "router")
"""Views with a verdict of their own, which says where a model is weak and never ranks it."""

FULL = View()

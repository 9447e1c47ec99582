"""Certificates by branch and bound: complete in the limit, for small ReLU networks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustsuite.bounds.bab import Limits, searched_margins
from robustsuite.bounds.graph import Graph
from robustsuite.bounds.ibp import smallest_margin
from robustsuite.bounds.margins import crown_margins
from robustsuite.certification.crown import Refined
from robustsuite.errors import UsageError
from robustsuite.registry import register_certifier
from robustsuite.threat import Norm

_FINAL_STEPS = 20  # of ascent on the slopes of the margins, before anything is split


@register_certifier(
    "bab", norms=("Linf", "L2", "L1"), kind="deterministic", paper="Wang et al. 2021, beta-CROWN, arXiv:2103.06624"
)
@dataclass(frozen=True)
class BaB(Refined):
    """Branch and bound over the signs of unstable ReLUs, for images that alpha-CROWN leaves open.

    ``domains`` are bounded at the most for each margin, each with ``steps`` steps of ascent, ``domain_batch`` at once,
    and over boxes of its own that shrink in ``rounds`` (`robustsuite.bounds.invprop`). ``inner_steps`` of ascent
    tighten the bounds of every unstable unit before that. ``seconds`` ends the search for a margin early; 0 means
    never, and any other limit makes the outcome depend on the machine. Put attacks ahead of it: an image that can be
    broken takes all the domains there are.
    """

    domains: int = 2000
    steps: int = 5
    rounds: int = 3
    inner_steps: int = 0
    domain_batch: int = 8
    seconds: float = 0.0

    cost = (4, 10_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        counts, more = (self.domains, self.steps, self.domain_batch), (self.rounds, self.inner_steps, self.seconds)
        if min(counts) < 1 or not all(value >= 0 for value in more):
            raise UsageError(
                "bab needs domains, steps and domain_batch >= 1, rounds, inner_steps and seconds >= 0, got "
                f"{', '.join(map(str, counts))}; {', '.join(map(str, more))}."
            )

    def bounded(self, graph: Graph, x: Tensor, radius: Tensor, y: Tensor, norm: Norm) -> Tensor:
        """CROWN's bounds with better slopes, then a search for every image that needs it."""
        crown = self.crown(graph, x, radius, norm, refine=True)
        margins = crown_margins(crown, y, _FINAL_STEPS)
        limits = Limits(self.domains, self.seconds, self.steps, self.domain_batch, self.rounds)
        for i in (~(smallest_margin(margins, y) > 0)).nonzero().flatten().tolist():
            one = torch.tensor([i], device=x.device)
            alone = crown.of(one)
            if self.inner_steps:
                alone = self.crown(graph, x[one], radius[one], norm, refine=True, steps=self.inner_steps)
                margins[one] = margins[one].maximum(crown_margins(alone, y[one], _FINAL_STEPS))
            margins[i] = searched_margins(alone, margins[i], y[one], limits)
        return margins

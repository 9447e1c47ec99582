"""Bridged adversarial training: the divergence in several small jumps."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from robustsuite.defenses.base import InnerSpec, Step, StepMethod, Term
from robustsuite.defenses.losses import ce, kl
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense


@register_defense(
    "bat",
    kind="step",
    paper="Kim et al. 2023, arXiv:2108.11135",
    cost="steps + pieces + 1 passes",
    fidelity="authors' code",
    defaults={"mnist": {"steps": 40, "alpha": 1 / 15}},
)
@dataclass(frozen=True)
class BAT(StepMethod):
    """``CE(f(x), y) + beta sum_k KL(p(x_{k-1}) || p(x_k))`` along ``x_k = x + (k/m) (x' - x)``, k = 1..m.

    Kim, Lee, Lee, Lee, "Bridged Adversarial Training" (Neural Networks 167, 2023): one jump from clean to adversarial
    penalises the margin, m small ones bound the same change with less of that; made for large eps. The gradient goes
    through both sides of every divergence. `pieces` is m; 1 with the ``kl`` attack is TRADES. `attack`: what x'
    maximises, ``ce`` from a uniform start or the divergence ``kl``. The form is that of the first author's code;
    m = 2 and `beta` 6 are provisional, not read in the paper. MNIST at 0.3: 40 steps of 0.02.
    """

    beta: float = 6.0
    pieces: int = 2
    attack: Literal["ce", "kl"] = "ce"
    steps: int = 10
    alpha: float = 0.25

    def __post_init__(self) -> None:
        if self.beta < 0 or self.pieces < 1 or self.attack not in ("ce", "kl"):
            raise UsageError(f"bat needs beta >= 0, pieces >= 1 and attack ce or kl, got {self}.")

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``adv``, and ``bridge1`` to ``bridge{m-1}`` on the way there; none when beta is 0."""
        if self.beta == 0:
            return {}
        init = "uniform" if self.attack == "ce" else "gauss"
        adversarial = step.maximise(InnerSpec(self.attack, self.steps, self.alpha, init=init))
        delta = adversarial - step.x
        way = {f"bridge{k}": (step.x + k / self.pieces * delta).clamp(0, 1) for k in range(1, self.pieces)}
        return way | {"adv": adversarial}

    def terms(self, step: Step) -> Mapping[str, Term]:
        """Cross-entropy of the clean view, and the sum of the divergences times beta."""
        clean = step.logits("clean")
        terms = {"ce": Term(ce(clean, step.q))}
        if self.beta:
            way = [clean, *(step.logits(f"bridge{k}") for k in range(1, self.pieces)), step.logits("adv")]
            jumps = torch.stack([kl(here, there) for here, there in pairwise(way)])
            terms["kl"] = Term(jumps.sum(0), self.beta)
        return terms

"""Consistency of a network's answers under noise: what its smoothed classifier certifies by."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from robustsuite.defenses.base import Step, StepMethod, Term
from robustsuite.defenses.gaussian import (
    by_sigma,
    check_noise,
    draw_noise,
    mean_ce,
    noisy_logits,
    noisy_views,
    together,
)
from robustsuite.defenses.soft_smoothed import mean_log_softmax
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense
from robustsuite.threat import Norm


@register_defense(
    "consistency",
    kind="step",
    paper="Jeong, Shin 2020, arXiv:2006.04062",
    cost="m passes",
    defaults=by_sigma("cifar10", {0.25: {"lam": 20.0}, 0.5: {"lam": 10.0}, 1.0: {"lam": 10.0}})
    | by_sigma("mnist", {0.25: {"lam": 10.0}, 0.5: {"lam": 5.0}, 1.0: {"lam": 5.0}}),
)
@dataclass(frozen=True)
class Consistency(StepMethod):
    """``mean_i CE(f(x + n_i), y) + lam mean_i KL(P || p_i) + eta H(P)``, P the mean of the m distributions p_i.

    Jeong, Shin, "Consistency Regularization for Certified Robustness of Smoothed Classifiers" (NeurIPS 2020). `m`
    draws of ``N(0, sigma^2)``, 2 in the paper, in one batch; `eta` 0.5; `lam` 20 at sigma 0.25 and 10 above on
    CIFAR-10, 10 and 5 on MNIST, where the experiments listed beside the code have 20. The gradient flows through P too.
    """

    sigma: float = 0.25
    m: int = 2
    lam: float = 20.0
    eta: float = 0.5
    select: ClassVar[Literal["robust", "clean", "last"]] = "last"
    norms: ClassVar[tuple[Norm, ...]] = ("L2",)

    def __post_init__(self) -> None:
        check_noise("consistency", self.sigma, self.m)
        if min(self.lam, self.eta) < 0:
            raise UsageError(f"consistency needs lam and eta >= 0, got {self.lam} and {self.eta}.")
        together(self, self.m)

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``noisy``, ``noisy1``, ...: the draws of the noise."""
        return noisy_views(step.x, draw_noise(step, self.sigma, self.m))

    def terms(self, step: Step) -> Mapping[str, Term]:
        """Cross-entropy, divergence of the draws from their mean, and the mean's entropy."""
        terms = {"ce_noisy": Term(mean_ce(step, self.m))}
        logits = noisy_logits(step, self.m)
        logs = mean_log_softmax(logits)
        mean = logs.exp()
        if self.lam:
            apart = [(mean * (logs - draw.log_softmax(1))).sum(1) for draw in logits]
            terms["consistency"] = Term(torch.stack(apart).mean(0), self.lam)
        if self.eta:
            terms["entropy"] = Term(-(mean * logs).sum(1), self.eta)
        return terms

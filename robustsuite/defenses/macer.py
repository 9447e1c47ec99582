"""MACER: the certified radius itself as a loss."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from robustsuite.defenses.base import Step, StepMethod, Term
from robustsuite.defenses.gaussian import by_sigma, check_noise, draw_noise, noisy_logits, noisy_views, together
from robustsuite.defenses.soft_smoothed import mean_log_softmax
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense
from robustsuite.threat import Norm


@register_defense(
    "macer",
    kind="step",
    paper="Zhai et al. 2020, arXiv:2001.02378, alg. 1",
    cost="m passes",
    defaults=by_sigma("cifar10", {0.25: {"lam": 12.0}, 0.5: {"lam": 4.0}, 1.0: {"lam": 12.0, "defer": 200 / 440}})
    | by_sigma(
        "mnist", {sigma: {"lam": lam, "defer": 1 / 3} for sigma, lam in ((0.25, 16.0), (0.5, 16.0), (1.0, 6.0))}
    ),
)
@dataclass(frozen=True)
class MACER(StepMethod):
    """``-log P_y + lam sigma/2 (gamma - xi)`` where the vote is right and ``|xi| <= gamma``.

    Zhai, Dan, He, Zhang, Gong, Ravikumar, Hsieh, Wang, "MACER: Attack-free and Scalable Robust Training via Maximizing
    Certified Radius" (ICLR 2020), algorithm 1. P is the mean softmax over `m` draws of ``N(0, sigma^2)`` (k in the
    paper), and ``xi = z(Q_1) - z(Q_2)`` with z the normal quantile and Q_1, Q_2 the two largest entries of the mean
    softmax of `beta` times the logits: ``sigma/2 xi`` is the radius. m 16, beta 16, `gamma` 8; `lam` 12 on CIFAR-10 at
    sigma 0.25 and 4 at 0.5, 16, 16 and 6 on MNIST at 0.25, 0.5 and 1. An example has no second term when Q_1 rounds to
    1. `defer`: share of the training in which lam is 0, for large sigma: the paper's until the learning rate first
    falls (200 of 440 epochs on CIFAR-10); those who compare with it on MNIST: 30 of 90 epochs.
    """

    sigma: float = 0.25
    m: int = 16
    beta: float = 16.0
    gamma: float = 8.0
    lam: float = 12.0
    defer: float = 0.0
    select: ClassVar[Literal["robust", "clean", "last"]] = "last"
    norms: ClassVar[tuple[Norm, ...]] = ("L2",)

    def __post_init__(self) -> None:
        check_noise("macer", self.sigma, self.m)
        if self.lam < 0 or min(self.beta, self.gamma) <= 0 or not 0 <= self.defer <= 1:
            raise UsageError(
                f"macer needs lam >= 0, beta and gamma > 0 and defer in [0,1], got lam={self.lam}, beta={self.beta}, "
                f"gamma={self.gamma} and defer={self.defer}."
            )
        together(self, self.m)

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``noisy``, ``noisy1``, ...: the draws of the noise."""
        return noisy_views(step.x, draw_noise(step, self.sigma, self.m))

    def terms(self, step: Step) -> Mapping[str, Term]:
        """Cross-entropy of the mean distribution, and the hinge on the radius times lam."""
        logits = noisy_logits(step, self.m)
        terms = {"ce_noisy": Term(-(step.q * mean_log_softmax(logits)).sum(1))}
        if self.lam and step.progress >= self.defer:
            sharp = mean_log_softmax([self.beta * draw for draw in logits]).exp()
            terms["radius"] = Term(self.sigma / 2 * hinge(sharp, step.y, self.gamma), self.lam)
        return terms


def hinge(probabilities: Tensor, y: Tensor, gamma: float) -> Tensor:
    """``gamma - xi`` ``[B]`` where the largest of ``probabilities`` ``[B,K]`` is y's and ``|xi| <= gamma``, else 0."""
    top, classes = probabilities.topk(2, dim=1)
    with torch.no_grad():
        xi = torch.special.ndtri(top[:, 0]) - torch.special.ndtri(top[:, 1])
        counts = (classes[:, 0] == y) & xi.isfinite() & (xi.abs() <= gamma)
    # The quantiles of 0 and 1 are infinite, and so are their gradients, even times 0.
    safe = top.where(counts.unsqueeze(1), 0.5)
    xi = torch.special.ndtri(safe[:, 0]) - torch.special.ndtri(safe[:, 1])
    return (gamma - xi).where(counts, 0.0)

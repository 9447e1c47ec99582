"""SmoothMix: mixtures of an example and its far adversary, which the smoothed classifier shall be unsure of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from robustsuite.defenses.base import InnerSpec, Step, StepMethod, Term
from robustsuite.defenses.context import Context
from robustsuite.defenses.gaussian import (
    by_sigma,
    check_noise,
    draw_noise,
    mean_ce,
    noisy_logits,
    noisy_views,
    together,
    view_names,
)
from robustsuite.defenses.smoothadv import ramp
from robustsuite.defenses.soft_smoothed import SoftSmoothed, mean_log_softmax
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense
from robustsuite.threat import Eps, Norm, ThreatModel


@register_defense(
    "smoothmix",
    kind="step",
    paper="Jeong et al. 2021, arXiv:2111.09277, alg. 1",
    cost="m (steps + 2) passes",
    defaults=by_sigma("cifar10", {0.25: {"length": 0.5}, 0.5: {"length": 1.0}, 1.0: {"length": 2.0}})
    | by_sigma(
        "mnist",
        {
            sigma: {"m": 4, "steps": steps, "length": 1.0, "warmup": 10 / 90}
            for sigma, steps in ((0.25, 2), (0.5, 4), (1.0, 8))
        },
    ),
)
@dataclass(frozen=True)
class SmoothMix(StepMethod):
    """``mean_i CE(f(x + n_i), y) + eta mean_i KL(T || p(x_mix + n_i))`` where the vote is right.

    Jeong, Park, Kim, Lee, Kim, Shin, "SmoothMix: Training Confidence-calibrated Smoothed Classifiers for Certified
    Robustness" (NeurIPS 2021), algorithm 1. x' climbs the loss of the mean softmax over `m` draws of ``N(0, sigma^2)``
    for `steps` of an L2 `length`, in pixel units, in no ball but in the box; ``x_mix = (1 - l) x + l x'`` and
    ``T = (1 - l) P + l / K``, P the mean softmax at x and l uniform in [0, 1/2]. The gradient flows through P too.
    CIFAR-10: m 2, 4 steps of 0.5, 1 and 2 at sigma 0.25, 0.5 and 1; MNIST: m 4, and 2, 4 and 8 steps of 1. `eta`: 5,
    grown linearly over a share `warmup` of the training (10 of 150 epochs; by the step, in the code by the epoch).
    `first`: how many steps x itself is moved before it is learnt and mixed, within a ball of as many lengths that grows
    likewise; 0 or 1 in the authors' runs.
    """

    sigma: float = 0.25
    m: int = 2
    steps: int = 4
    length: float = 0.5
    eta: float = 5.0
    warmup: float = 10 / 150
    first: int = 0
    select: ClassVar[Literal["robust", "clean", "last"]] = "last"
    norms: ClassVar[tuple[Norm, ...]] = ("L2",)

    def __post_init__(self) -> None:
        check_noise("smoothmix", self.sigma, self.m)
        if not 0 <= self.first <= self.steps or min(self.length, self.eta) < 0 or not 0 <= self.warmup <= 1:
            raise UsageError(
                f"smoothmix needs 0 <= first <= steps, length and eta >= 0 and warmup in [0,1], got "
                f"first={self.first}, steps={self.steps}, length={self.length}, eta={self.eta}, warmup={self.warmup}."
            )
        together(self, self.m)

    def setup(self, context: Context) -> None:
        """Refuse a threat model without a radius, which steps of the inner maximisation are measured in."""
        if context.threat.radius == 0:
            raise UsageError(f"smoothmix needs a threat model with eps > 0, got {context.threat}; L2:0.5 is usual.")

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``noisy``, ``noisy1``, ... of what is learnt, and ``mixed``, ``mixed1``, ... of the mixtures."""
        noise, grown = draw_noise(step, self.sigma, self.m), ramp(step.progress, self.warmup)
        if grown == 0 or (self.eta == 0 and self.first == 0):
            return noisy_views(step.x, noise)
        target = SoftSmoothed(step.module, noise, step.passes)
        early = self._climb(step, target, step.x, self.first)
        ball = ThreatModel("L2", Eps.parse(grown * self.length * self.first))
        near = (step.x + ball.project(step.x, early - step.x)).clamp(0, 1) if self.first else step.x
        if self.eta == 0:
            return noisy_views(near, noise)
        far = self._climb(step, target, early, self.steps - self.first)
        share = step.noise.child("smoothmix").uniform((1,) * (step.x.ndim - 1)) / 2
        step.trace["share"] = share.view(-1, 1)
        return noisy_views(near, noise) | noisy_views((1 - share) * near + share * far, noise, "mixed")

    def terms(self, step: Step) -> Mapping[str, Term]:
        """Cross-entropy of the noisy examples, and the divergence of the mixtures from their targets."""
        terms = {"ce_noisy": Term(mean_ce(step, self.m))}
        if self.eta and "mixed" in step.views:
            weight = self.eta * ramp(step.progress, self.warmup)
            terms["mixup"] = Term(self._mixup(step), weight)
        return terms

    def _climb(self, step: Step, target: SoftSmoothed, x: Tensor, steps: int) -> Tensor:
        """``x`` after so many steps, which only the box bounds."""
        if steps == 0:
            return x
        alpha = self.length / step.threat.radius
        return step.maximise(InnerSpec("ce", steps, alpha, init="zero", project=False, target=target), x)

    def _mixup(self, step: Step) -> Tensor:
        vote, share = mean_log_softmax(noisy_logits(step, self.m)), step.trace["share"]
        # (1 - l) P + l / K by its logarithm, which stays finite
        target = torch.logaddexp((1 - share).log() + vote, (share / step.num_classes).log())
        mixed = step.forward(torch.cat([step.views[name] for name in view_names(self.m, "mixed")])).chunk(self.m)
        apart = [(target.exp() * (target - logits.log_softmax(1))).sum(1) for logits in mixed]
        return torch.stack(apart).mean(0) * (vote.argmax(1) == step.y)

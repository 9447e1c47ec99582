"""SmoothAdv with DDN: what is trained on lies just beyond the smoothed classifier's boundary."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustsuite.defenses.base import InnerSpec, Step
from robustsuite.defenses.losses import ce
from robustsuite.defenses.smoothadv import SmoothAdv, ramp
from robustsuite.defenses.soft_smoothed import SoftSmoothed
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense


@register_defense(
    "smoothadv_ddn",
    kind="step",
    paper="Salman et al. 2019, arXiv:1906.04584; Rony et al. 2019, arXiv:1811.09600, alg. 1",
    cost="m (steps + 1) passes",
)
@dataclass(frozen=True)
class SmoothAdvDDN(SmoothAdv):
    """SmoothAdv whose x' is the nearest misclassified image that DDN meets, drawn back into the ball; else x itself.

    Salman et al. (NeurIPS 2019), SmoothAdv with DDN: Rony, Hafemann, Oliveira, Ben Ayed, Sabourin, Granger, "Decoupling
    Direction and Norm for Efficient Gradient-Based L2 Adversarial Attacks and Defenses" (CVPR 2019), on the mean
    softmax over `m` draws of the noise of `sigma`. `steps` along the gradient, of a length that falls from 1 to 0.01 by
    a cosine; x' is then scaled to a norm that starts at eps and shrinks by the factor 1 - `gamma` where the vote is
    wrong, or grows by 1 + gamma where it is right (0.05 in the code). `warmup`, `fresh` and `losses` as in smoothadv.
    The code clips to the box after the scaling, here before it too; it counts the draws' votes, here the mean softmax
    decides; and it rounds x' to 256 levels, here it stays.
    """

    gamma: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.gamma < 1:
            raise UsageError(f"smoothadv_ddn needs gamma in (0,1), got {self.gamma}.")

    def attacked(self, step: Step, noise: list[Tensor]) -> Tensor:
        """The nearest misclassified images, within eps."""
        grown = ramp(step.progress, self.warmup)
        if self.steps == 0 or grown == 0 or step.threat.radius == 0:
            return step.x
        x, target, q = step.x, SoftSmoothed(step.module, noise, step.passes), step.q
        answers: list[Tensor] = []

        def objective(logits: Tensor) -> Tensor:
            answers.append(logits.detach().argmax(1))
            return ce(logits, q)

        farthest = norms(torch.maximum(x, 1 - x))
        norm = torch.full_like(farthest, grown * step.threat.radius)
        nearest, best, here = farthest.clone(), torch.zeros_like(x), x
        for i in range(self.steps):
            length = 0.01 + 0.99 * (1 + math.cos(math.pi * i / self.steps)) / 2
            spec = InnerSpec(objective, 1, length / step.threat.radius, init="zero", project=False, target=target)
            moved = step.maximise(spec, here)
            delta, wrong = here - x, answers[-1] != step.y
            nearer = wrong & (norms(delta) < nearest)
            nearest, best = norms(delta).where(nearer, nearest), delta.where(like(nearer, x), best)
            norm = torch.minimum(norm * (1 - self.gamma * (2 * wrong.to(norm.dtype) - 1)), farthest)
            delta = moved - x
            here = (x + delta * like(norm / norms(delta).clamp(min=1e-12), x)).clamp(0, 1)
        return (x + step.threat.scaled(grown).project(x, best)).clamp(0, 1)


def norms(delta: Tensor) -> Tensor:
    """L2 norms ``[B]``."""
    return delta.flatten(1).norm(dim=1)


def like(values: Tensor, x: Tensor) -> Tensor:
    """``values`` ``[B]`` with the dimensions of ``x``."""
    return values.view(-1, *[1] * (x.ndim - 1))

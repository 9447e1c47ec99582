"""SmoothAdv: adversarial training of the smoothed classifier."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from robustsuite.defenses.base import InnerSpec, Step, StepMethod, Term
from robustsuite.defenses.gaussian import by_sigma, check_noise, draw_noise, mean_ce, noisy_views, together
from robustsuite.defenses.soft_smoothed import SoftSmoothed
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense
from robustsuite.threat import Norm

CIFAR10 = {"m": 2, "steps": 10, "warmup": 10 / 150}
MNIST = {"m": 4, "steps": 10, "warmup": 10 / 90}


@register_defense(
    "smoothadv",
    kind="step",
    paper="Salman et al. 2019, arXiv:1906.04584, pseudocode 1",
    cost="m (steps + 1) passes",
    defaults=by_sigma("cifar10", {0.25: CIFAR10, 0.12: CIFAR10, 0.5: CIFAR10, 1.0: CIFAR10})
    | by_sigma("mnist", {0.25: MNIST, 0.5: MNIST, 1.0: MNIST}),
)
@dataclass(frozen=True)
class SmoothAdv(StepMethod):
    """``mean_i CE(f(x' + n_i), y)``, x' maximising ``-log mean_i softmax_y(f(x' + n_i))`` in the L2 ball.

    Salman, Yang, Li, Zhang, Zhang, Razenshteyn, Bubeck, "Provably Robust Deep Learning via Adversarially Trained
    Smoothed Classifiers" (NeurIPS 2019), SmoothAdv with PGD. `m` draws of ``N(0, sigma^2)``; `steps` of 2 eps / steps
    from x; eps is the threat model's: the paper tries 64, 127, 255 and 512 of 255 on CIFAR-10 with 2 to 10 steps and m
    1 to 8, the comparisons on MNIST have eps 1, 10 steps and m 4. eps grows linearly over a share `warmup` of the
    training (10 of 150 epochs; the code does it by the epoch, here it is by the step).

    The loss has the noise of the attack, as in paper and code; with `fresh` it has draws of its own. `losses`:
    ``all`` draws, or only the ``first``, which is what the code does unless told --train-multi-noise. Two differences:
    the code clips to the box and then to the ball, here it is one projection; and where the gradient is zero it moves
    at random, here not at all.
    """

    sigma: float = 0.25
    m: int = 2
    steps: int = 10
    warmup: float = 10 / 150
    fresh: bool = False
    losses: Literal["all", "first"] = "all"
    select: ClassVar[Literal["robust", "clean", "last"]] = "last"
    norms: ClassVar[tuple[Norm, ...]] = ("L2",)

    def __post_init__(self) -> None:
        check_noise("smoothadv", self.sigma, self.m)
        if self.steps < 0 or not 0 <= self.warmup <= 1 or self.losses not in ("all", "first"):
            raise UsageError(
                f"smoothadv needs steps >= 0, warmup in [0,1] and losses all or first, got steps={self.steps}, "
                f"warmup={self.warmup} and losses={self.losses}."
            )
        together(self, self.trained)

    @property
    def trained(self) -> int:
        """How many of the draws the loss has."""
        return self.m if self.losses == "all" else 1

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``adv`` without noise, and ``noisy``, ``noisy1``, ... what the loss sees of it."""
        noise = draw_noise(step, self.sigma, self.m)
        adversarial = self.attacked(step, noise)
        if self.fresh:
            noise = draw_noise(step, self.sigma, self.m, first=self.m)
        return {"adv": adversarial, **noisy_views(adversarial, noise[: self.trained])}

    def terms(self, step: Step) -> Mapping[str, Term]:
        """``CE(f(x' + noise), y)``, the mean over the draws."""
        return {"ce_noisy": Term(mean_ce(step, self.trained))}

    def attacked(self, step: Step, noise: list[Tensor]) -> Tensor:
        """The batch, attacked as the smoothed classifier over these draws; as it is before the ball has grown."""
        grown = ramp(step.progress, self.warmup)
        if self.steps == 0 or grown == 0:
            return step.x
        target = SoftSmoothed(step.module, noise, step.passes)
        return step.maximise(InnerSpec("ce", self.steps, 2 / self.steps * grown, grown, init="zero", target=target))


def ramp(progress: float, share: float) -> float:
    """Rises linearly from 0 to 1 over a share of the training; 1 throughout when the share is 0."""
    return min(progress / share, 1.0) if share else 1.0

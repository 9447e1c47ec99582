"""A radius that grows while training goes on."""

from dataclasses import dataclass, replace

from robustsuite.defenses.base import InnerSpec, Step, StepMethod
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense


@register_defense(
    "eps_ramp", kind="modifier", paper="Gowal et al. 2018, arXiv:1810.12715 (the schedule)", cost="0 passes"
)
@dataclass(frozen=True)
class EpsRamp(StepMethod):
    """The radius of every inner maximisation grows linearly to the full one over a share of the training.

    As in Gowal et al., "On the Effectiveness of Interval Bound Propagation" (2018) for bounds, and in many recipes of
    adversarial training (IKL, Cui et al. 2024: over the whole of it; SVHN, Andriushchenko, Flammarion 2020: over the
    first 5 epochs). `share`: of the training, after which it is full; `start`: the factor on eps at its begin.
    `scale_steps`: whether the step size shrinks with the radius (one-step methods need it: without a projection they
    would leave the smaller ball). What asks for no inner maximisation (standard, gaussian, ibp) stays as it is, and
    validation is at the full radius.
    """

    share: float = 1.0
    start: float = 0.0
    scale_steps: bool = True

    def __post_init__(self) -> None:
        if not (0 <= self.share <= 1 and 0 <= self.start <= 1):
            raise UsageError(f"eps_ramp needs share and start in [0,1], got {self.share} and {self.start}.")

    def factor(self, progress: float) -> float:
        """Of eps, when so much of the training is done."""
        done = min(progress / self.share, 1.0) if self.share else 1.0
        return self.start + (1 - self.start) * done

    def inner(self, step: Step, spec: InnerSpec) -> InnerSpec:
        """The same, smaller."""
        factor = self.factor(step.progress)
        return replace(spec, eps=spec.eps * factor, alpha=spec.alpha * (factor if self.scale_steps else 1.0))

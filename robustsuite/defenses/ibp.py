"""Certified training with interval bounds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from robustsuite.defenses.base import Step, StepMethod, Term
from robustsuite.defenses.losses import ce
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense


@register_defense("ibp", kind="step", paper="Gowal et al. 2018, arXiv:1810.12715", cost="3 passes")
@dataclass(frozen=True)
class IBP(StepMethod):
    """``kappa CE(f(x), y) + (1 - kappa) CE(worst logits in the box)``, worst by interval bound propagation.

    Gowal et al., "On the Effectiveness of Interval Bound Propagation for Training Verifiably Robust Models" (2018),
    eq. 12. The worst logits are 0 at the label and minus the lower bound of the margin elsewhere (the last layer is
    folded into the margins). The radius grows linearly from 0 to `eps` times the threat model's eps between the shares
    `warmup` and `ramp` of the training, and kappa falls with it from `kappa_start` to `kappa_end`. The box is that of
    the Linf ball, clipped to [0,1]; it contains the L2 and L1 balls of the same eps, loosely.
    """

    kappa_start: float = 1.0
    kappa_end: float = 0.5
    warmup: float = 0.05
    ramp: float = 0.6
    eps: float = 1.0
    # An early epoch knows only small boxes: what PGD says of it does not rank it. The literature takes the last.
    select: ClassVar = "last"

    def __post_init__(self) -> None:
        if not 0 <= self.warmup <= self.ramp <= 1:
            raise UsageError(f"ibp needs 0 <= warmup <= ramp <= 1, got {self.warmup} and {self.ramp}.")
        if not (0 <= self.kappa_start <= 1 and 0 <= self.kappa_end <= 1):
            raise UsageError(f"ibp's kappa must lie in [0,1], got {self.kappa_start} to {self.kappa_end}.")

    def grown(self, progress: float) -> float:
        """Share of the radius reached at ``progress``, from 0 to 1."""
        if progress >= self.ramp:
            return 1.0
        return max(0.0, progress - self.warmup) / (self.ramp - self.warmup)

    def terms(self, step: Step) -> Mapping[str, Term]:
        """Clean cross-entropy times kappa, worst-case cross-entropy times 1 - kappa."""
        share = self.grown(step.progress)
        kappa = self.kappa_start + (self.kappa_end - self.kappa_start) * share
        terms = {"ce": Term(ce(step.logits("clean"), step.q), kappa)}
        if kappa < 1:
            radius = share * self.eps * step.threat.radius
            lower, upper = (step.x - radius).clamp(min=0), (step.x + radius).clamp(max=1)
            terms["ce_worst"] = Term(ce(-step.margins(lower, upper), step.q), 1 - kappa)
        return terms

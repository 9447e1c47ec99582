"""What the expressive losses share: an adversarial example, interval bounds, and a coefficient between them."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from robustsuite.defenses.base import Step, Term
from robustsuite.defenses.bound_training import MNIST, BoundTraining, Schedule, worst
from robustsuite.defenses.losses import ce
from robustsuite.defenses.small_box import adversarial
from robustsuite.errors import UsageError

PAPER = "De Palma et al. 2024, arXiv:2305.13991"
ATTACKED_MNIST = MNIST | {"steps": 1, "alpha": 10.0}
SMALL = {"warmup": 1 / 160, "ramp": 81 / 160, "steps": 8, "alpha": 0.25, "attack_eps": 2.1}
LARGE = {"warmup": 1 / 260, "ramp": 81 / 260, "steps": 1, "alpha": 10.0}


@dataclass(frozen=True)
class Expressive(BoundTraining):
    """A loss between the adversarial one (`coefficient` 0) and that of IBP (1); subclasses say which.

    De Palma, Bunel, Dvijotham, Kumar, Stanforth, Lomuscio, "Expressive Losses for Verified Robustness via Convex
    Combinations" (ICLR 2024); `coefficient` is their alpha. The example is found in `steps` of `alpha` times the radius
    of the attack, which is `attack_eps` times that of the bounds. With batch normalisation the bounds take the
    statistics of the adversarial pass, as in the authors' code, so that no clean pass is needed.
    """

    coefficient: float = 0.5
    steps: int = 8
    alpha: float = 0.25
    attack_eps: float = 1.0
    schedule: Schedule = "smoothed"
    penalty: float = 0.5
    interval_init: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.coefficient <= 1 or self.attack_eps < 0:
            raise UsageError(
                f"{type(self).__name__} needs coefficient in [0,1] and attack_eps >= 0, got {self.coefficient} and "
                f"{self.attack_eps}."
            )

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``adv``: maximises the cross-entropy; not made while the radius is 0, nor where IBP is all there is."""
        share = self.grown(step.progress)
        if share == 0 or self.kappa(share) == 1 or self.coefficient == 1:
            return {}
        return {"adv": adversarial(step, self.steps, self.alpha, share * self.eps * self.attack_eps)}

    def robust(self, step: Step, share: float) -> Mapping[str, Term]:
        """The loss of adversarial training, that of IBP, or what is between."""
        if self.coefficient == 0:
            return {"ce_adv": Term(ce(step.logits("adv"), step.q))}
        box = self.box(step, share)
        if self.coefficient == 1:
            return {"ce_worst": Term(worst(step, step.margins(*box)))}
        logits = step.logits("adv")
        return self.between(step, logits, step.margins(*box, view="adv"))

    @abstractmethod
    def between(self, step: Step, logits: Tensor, margins: Tensor) -> Mapping[str, Term]:
        """The terms for adversarial ``logits`` and lower bounds ``margins``, each ``[B,K]``."""

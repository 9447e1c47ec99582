"""PGD adversarial training."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from robustsuite.defenses.base import InnerSpec, Step, StepMethod, Term
from robustsuite.defenses.losses import ce
from robustsuite.registry import register_defense


@register_defense(
    "pgd_at",
    kind="step",
    paper="Madry et al. 2018, arXiv:1706.06083, eq. 2.1",
    cost="steps + 1 passes",
    defaults={"cifar10": {"steps": 10, "alpha": 0.25}, "mnist": {"steps": 40, "alpha": 1 / 30}},
)
@dataclass(frozen=True)
class PGDAT(StepMethod):
    """Cross-entropy on the worst example that PGD finds in the ball.

    Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards Deep Learning Models Resistant to Adversarial Attacks" (ICLR
    2018), eq. 2.1; perturbations are made in eval mode and the epoch is selected on held-out examples (Rice, Wong,
    Kolter, ICML 2020). `steps` of size `alpha` times eps from a uniform start; the papers use 10 steps of 2/255 at
    8/255 (CIFAR-10) and 40 steps of 0.01 at 0.3 (MNIST).
    """

    steps: int = 10
    alpha: float = 0.25

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``adv``: maximises the cross-entropy."""
        return {"adv": step.maximise(InnerSpec("ce", self.steps, self.alpha))}

    def terms(self, step: Step) -> Mapping[str, Term]:
        """``CE(f(x'), y)``."""
        return {"ce_adv": Term(ce(step.logits("adv"), step.q))}

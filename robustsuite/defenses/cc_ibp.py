"""The loss of a convex combination of adversarial and worst-case margins."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from robustsuite.defenses.base import Step, Term
from robustsuite.defenses.bound_training import worst
from robustsuite.defenses.expressive import ATTACKED_MNIST, LARGE, PAPER, SMALL, Expressive
from robustsuite.registry import register_defense


@register_defense(
    "cc_ibp",
    kind="step",
    paper=f"{PAPER}, eq. 7",
    cost="steps + 3 passes",
    defaults={
        "mnist": ATTACKED_MNIST | {"coefficient": 0.3, "l1": 3e-6, "eps": 4 / 3},
        "mnist-0.1": ATTACKED_MNIST | {"coefficient": 0.1, "l1": 2e-6, "eps": 2.0},
        "mnist-0.3": ATTACKED_MNIST | {"coefficient": 0.3, "l1": 3e-6, "eps": 4 / 3},
        "cifar10": LARGE | {"coefficient": 0.5},
        "cifar10-2/255": SMALL | {"coefficient": 1e-2, "l1": 3e-6},
        "cifar10-8/255": LARGE | {"coefficient": 0.5},
    },
)
@dataclass(frozen=True)
class CCIBP(Expressive):
    """``CE(-(c margins + (1 - c) adversarial margins))``.

    De Palma et al., "Expressive Losses for Verified Robustness via Convex Combinations" (ICLR 2024), eq. 7: the
    differences ``f_y - f_k`` of the logits are combined; `coefficient` is c, their alpha: 0 is adversarial training, 1
    is IBP. The example is found in `steps` of `alpha` times the attack's radius, `attack_eps` times that of the bounds;
    see `Expressive`. Radius (`warmup`, `ramp`, `eps`, `schedule`), `kappa_start` and `kappa_end` (0 in the paper),
    `l1`, `penalty` and `interval_init`: as `ibp`'s.
    """

    def between(self, step: Step, logits: Tensor, margins: Tensor) -> Mapping[str, Term]:
        """One term."""
        differences = logits.gather(1, step.y.view(-1, 1)) - logits
        combined = self.coefficient * margins + (1 - self.coefficient) * differences
        return {"ce_cc": Term(worst(step, combined))}

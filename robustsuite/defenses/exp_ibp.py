"""A geometric mean of the losses of adversarial and interval training."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from robustsuite.defenses.base import Step, Term
from robustsuite.defenses.bound_training import worst
from robustsuite.defenses.expressive import LARGE, PAPER, SMALL, Expressive
from robustsuite.defenses.losses import ce
from robustsuite.registry import register_defense


@register_defense(
    "exp_ibp",
    kind="step",
    paper=f"{PAPER}, eq. 9",
    cost="steps + 3 passes",
    defaults={
        "cifar10": LARGE | {"coefficient": 0.5},
        "cifar10-2/255": SMALL | {"coefficient": 9.5e-2, "l1": 4e-6},
        "cifar10-8/255": LARGE | {"coefficient": 0.5},
    },
)
@dataclass(frozen=True)
class ExpIBP(Expressive):
    """``CE(-margins)^c CE(f(x'), y)^(1-c)``, at most the loss of MTL-IBP.

    De Palma et al., "Expressive Losses for Verified Robustness via Convex Combinations" (ICLR 2024), eq. 9;
    `coefficient` is c, their alpha: 0 is adversarial training, 1 is IBP. The example x' is found in `steps` of `alpha`
    times the attack's radius, `attack_eps` times that of the bounds; see `Expressive`. Radius (`warmup`, `ramp`, `eps`,
    `schedule`), `kappa_start` and `kappa_end` (0 in the paper), `l1`, `penalty` and `interval_init`: as `ibp`'s.
    """

    def between(self, step: Step, logits: Tensor, margins: Tensor) -> Mapping[str, Term]:
        """One term; a loss that is 0 in float32 gives no infinite gradient."""
        tiny = torch.finfo(logits.dtype).tiny
        logs = [loss.clamp(min=tiny).log() for loss in (worst(step, margins), ce(logits, step.q))]
        return {"ce_exp": Term((self.coefficient * logs[0] + (1 - self.coefficient) * logs[1]).exp())}

"""Gaussian noise augmentation: the base classifier of randomized smoothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustsuite.defenses.base import Step, StepMethod, Term
from robustsuite.defenses.losses import ce
from robustsuite.registry import register_defense


@register_defense("gaussian", kind="step", paper="Cohen et al. 2019, arXiv:1902.02918", cost="1 pass")
@dataclass(frozen=True)
class Gaussian(StepMethod):
    """Cross-entropy on ``x + N(0, sigma^2)``, so that the network knows the noise it will be smoothed with.

    Cohen, Rosenfeld, Kolter, "Certified Adversarial Robustness via Randomized Smoothing" (ICML 2019), section 4. The
    noisy image is not clipped to [0,1]: the smoothed classifier does not clip either. `sigma` is in pixel units; the
    paper uses 0.12, 0.25, 0.5 and 1.
    """

    sigma: float = 0.25
    # Accuracy on clean images does not rank networks that are made for noise, so the last epoch is taken.
    select: ClassVar = "last"

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``noisy``: one draw of the noise for every example and step."""
        noise = step.noise.child("gaussian").normal(step.x.shape[1:])
        return {"noisy": step.x + self.sigma * noise}

    def terms(self, step: Step) -> Mapping[str, Term]:
        """``CE(f(x + noise), y)``."""
        return {"ce_noisy": Term(ce(step.logits("noisy"), step.q))}

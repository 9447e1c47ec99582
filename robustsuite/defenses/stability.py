"""Stability training: what the network says of an image shall not change under noise."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from robustsuite.defenses.base import Step, StepMethod, Term
from robustsuite.defenses.gaussian import by_sigma, check_noise, draw_noise, noisy_views
from robustsuite.defenses.losses import ce, kl
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense
from robustsuite.threat import Norm

LAM = {"lam": 2.0}


@register_defense(
    "stability",
    kind="step",
    paper="Li et al. 2019, arXiv:1809.03113, after Zheng et al. 2016, arXiv:1604.04326",
    cost="2 passes",
    defaults=by_sigma("cifar10", {0.25: LAM, 0.5: LAM, 1.0: LAM}) | by_sigma("mnist", {0.25: LAM, 0.5: LAM, 1.0: LAM}),
)
@dataclass(frozen=True)
class Stability(StepMethod):
    """``CE(f(x), y) + lam D(p(x), p(x + noise))``, the noise from ``N(0, sigma^2)``.

    Li, Chen, Wang, Carin, "Certified Adversarial Robustness with Additive Noise" (NeurIPS 2019). `lam`: 2 where it is
    compared with later methods (Jeong, Shin, NeurIPS 2020). `divergence` D: ``ce`` is the cross-entropy of the noisy
    image's distribution to that of the clean one, as there, ``kl`` leaves the clean one's entropy out of it; the
    gradient flows through both sides. `labelled`: the image that the label is learnt on, ``clean`` as in their code, or
    ``noisy``, which with lam = 0 is Gaussian augmentation.
    """

    sigma: float = 0.25
    lam: float = 2.0
    divergence: Literal["ce", "kl"] = "ce"
    labelled: Literal["clean", "noisy"] = "clean"
    select: ClassVar[Literal["robust", "clean", "last"]] = "last"
    norms: ClassVar[tuple[Norm, ...]] = ("L2",)

    def __post_init__(self) -> None:
        check_noise("stability", self.sigma, 1)
        if self.lam < 0 or self.divergence not in ("ce", "kl") or self.labelled not in ("clean", "noisy"):
            raise UsageError(
                f"stability needs lam >= 0, divergence ce or kl and labelled clean or noisy, got lam={self.lam}, "
                f"divergence={self.divergence} and labelled={self.labelled}."
            )

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``noisy``; not made when nothing uses it."""
        if self.lam == 0 and self.labelled == "clean":
            return {}
        return noisy_views(step.x, draw_noise(step, self.sigma, 1))

    def terms(self, step: Step) -> Mapping[str, Term]:
        """Cross-entropy of the labelled image, and the divergence times lam."""
        if self.labelled == "clean":
            terms = {"ce": Term(ce(step.logits("clean"), step.q))}
        else:
            terms = {"ce_noisy": Term(ce(step.logits("noisy"), step.q))}
        if self.lam:
            clean, noisy = step.logits("clean"), step.logits("noisy")
            apart = kl(clean, noisy) if self.divergence == "kl" else ce(noisy, clean.softmax(1))
            terms["stability"] = Term(apart, self.lam)
        return terms

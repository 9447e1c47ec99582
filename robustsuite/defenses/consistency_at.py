"""Adversarial training with consistency between two augmentations."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from robustsuite.defenses.base import InnerSpec, Step, StepMethod, Term
from robustsuite.defenses.context import Context
from robustsuite.defenses.crop_flip import CropFlip
from robustsuite.defenses.cutout import Cutout
from robustsuite.defenses.losses import ce
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense

TWIN = 1 << 40  # added to an id: the example's second view


@register_defense(
    "consistency_at", kind="step", paper="Tack et al. 2022, arXiv:2103.04623", cost="2 (steps + 1) passes"
)
@dataclass(frozen=True)
class ConsistencyAT(StepMethod):
    """Two augmented views of each example, both attacked; what the network says of the two attacks should agree.

    Tack, Yu, Jeong, Kim, Hwang, Shin, "Consistency Regularization for Adversarial Robustness" (AAAI 2022): the
    mean adversarial cross-entropy of both views plus `agree` times the Jensen-Shannon divergence of their adversarial
    distributions at `temperature`. agree 1 and temperature 0.5 on CIFAR-10. The paper augments by AutoAugment and
    cutout after crop and flip; here it is crop, flip and cutout: `pad` and `cut` in units of the image's height (4 and
    16 pixels of 32), `flip` or not.
    """

    agree: float = 1.0
    temperature: float = 0.5
    pad: float = 0.125
    flip: bool = True
    cut: float = 0.5
    steps: int = 10
    alpha: float = 0.25

    def __post_init__(self) -> None:
        if min(self.agree, self.pad, self.cut) < 0 or self.temperature <= 0:
            raise UsageError(f"consistency_at needs agree, pad, cut >= 0 and temperature > 0, got {self}.")

    def setup(self, context: Context) -> None:
        """What cutout fills with."""
        self._cutout(context.input_shape).setup(context)

    def data(self, step: Step) -> None:
        """First views, then second views of the same examples: a batch of twice the size."""
        ids = torch.cat([step.noise.ids, step.noise.ids + TWIN])
        step.rebatch(x=step.x.repeat(2, 1, 1, 1), y=step.y.repeat(2), q=step.q.repeat(2, 1), ids=ids)
        shape = tuple(step.x.shape[1:])
        CropFlip(round(self.pad * shape[1]), self.flip).data(step)
        self._cutout(shape).data(step)

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``adv``: maximises the cross-entropy."""
        return {"adv": step.maximise(InnerSpec("ce", self.steps, self.alpha))}

    def terms(self, step: Step) -> Mapping[str, Term]:
        """Adversarial cross-entropy of all views, and each pair's divergence, at both its places."""
        logits = step.logits("adv")
        terms = {"ce_adv": Term(ce(logits, step.q))}
        if self.agree:
            first, second = (logits / self.temperature).chunk(2)
            terms["js"] = Term(jensen_shannon(first, second).repeat(2), self.agree)
        return terms

    def _cutout(self, shape: tuple[int, ...]) -> Cutout:
        return Cutout(round(self.cut * shape[1]))


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """``(KL(p || m) + KL(q || m)) / 2`` of the distributions with these logits, m their mean, ``[B]``."""
    p, q = first.log_softmax(1), second.log_softmax(1)
    m = torch.logaddexp(p, q) - math.log(2)
    return ((p.exp() * (p - m)).sum(1) + (q.exp() * (q - m)).sum(1)) / 2

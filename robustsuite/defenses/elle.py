"""ELLE: the loss is held linear on random segments of the ball."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustsuite.defenses.base import InnerSpec, Step, StepMethod, Term
from robustsuite.defenses.losses import ce
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense

ENDS = (2, 3)  # draws of their own: 0 is the base's start, 1 gradalign's
VIEWS = ("elle_start", "elle_end", "elle_between")


class LinearOnSegments(StepMethod):
    """What ELLE and ELLE-A share: the squared error of linear interpolation of the loss, `coefficient` times."""

    base: ClassVar[str] = "fgsm_at"
    joint: ClassVar[tuple[str, ...]] = VIEWS

    def coefficient(self, step: Step) -> float:
        """What the error is multiplied by in this step."""
        raise NotImplementedError

    @property
    def idle(self) -> bool:
        """Whether the coefficient can be nothing but 0."""
        raise NotImplementedError

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """Two uniform draws from ball and box, and a uniform point between them."""
        if self.idle:
            return {}
        start, end = (step.maximise(InnerSpec(steps=0, draw=draw)) for draw in ENDS)
        share = step.noise.child("elle").uniform(()).to(step.x.dtype)
        step.trace["elle_share"] = share
        between = torch.lerp(start, end, share.view(-1, *[1] * (start.ndim - 1)))
        return dict(zip(VIEWS, (start, end, between), strict=True))

    def terms(self, step: Step) -> Mapping[str, Term]:
        """``(l(between) - (1 - a) l(start) - a l(end))^2``."""
        if self.idle:
            return {}
        start, end, between = (ce(step.logits(view), step.q) for view in VIEWS)
        values = (between - torch.lerp(start, end, step.trace["elle_share"])).square()
        step.trace["elle"] = values.detach().mean()
        return {"elle": Term(values, self.coefficient(step))}


@register_defense(
    "elle",
    kind="modifier",
    paper="Abad Rocamora et al. 2024, arXiv:2401.11618, section 4",
    cost="3 passes",
    defaults={"cifar10": {"lam": 1000.0}},
    fidelity="paper",
)
@dataclass(frozen=True)
class ELLE(LinearOnSegments):
    """``lam (l(x_c) - (1 - a) l(x_a) - a l(x_b))^2`` added, x_a, x_b random in the ball, ``x_c = (1-a) x_a + a x_b``.

    Abad Rocamora, Liu, Chrysos, Olmos, Cevher, "Efficient Local Linearity Regularization to Overcome Catastrophic
    Overfitting" (ICLR 2024): one further forward pass of three inputs each, and no gradient is differentiated twice.
    `lam`: 1000 up to 8/255 on CIFAR-10, 5000 from 10 to 20/255, 10000 from 22/255 on. The random points are clipped to
    the box; in their code they, and FGSM's, are not. It works beside any base (n_fgsm in the paper too).
    """

    lam: float = 1000.0

    def __post_init__(self) -> None:
        if self.lam < 0:
            raise UsageError(f"elle needs lam >= 0, got {self.lam}.")

    @property
    def idle(self) -> bool:
        """Whether lam is 0."""
        return self.lam == 0

    def coefficient(self, step: Step) -> float:
        """`lam`."""
        del step
        return self.lam

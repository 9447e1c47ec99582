"""Robust self-supervised learning (RSS): distributionally robust learning with unlabelled data from elsewhere."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustsuite.defenses.base import Step, StepMethod, Term
from robustsuite.defenses.clean_logits import clean_logits
from robustsuite.defenses.context import Context
from robustsuite.defenses.losses import ce
from robustsuite.defenses.unlabelled import complete, mean_over, prepare, unlabelled
from robustsuite.errors import UsageError
from robustsuite.models.modes import mode
from robustsuite.registry import register_defense


@register_defense(
    "rss",
    kind="step",
    paper="Saberi et al. 2024, arXiv:2310.00027",
    cost="(steps + 2) / (1 - share) passes",
    fidelity="reconstructed",
)
@dataclass(frozen=True)
class RSS(StepMethod):
    """``sup_z CE(f(z), y) - gamma/2 |z - x|^2`` on labels, plus `weight` times that on the network's own answers.

    Saberi, Najafi, Heidari, Movasaghinia, Motahari, Khalaj, "Out-Of-Domain Unlabeled Data Improves Generalization"
    (ICLR 2024); the inner problem is that of Sinha, Namkoong, Duchi, "Certifying Some Distributional Robustness with
    Principled Adversarial Training" (ICLR 2018). Certain is the objective; the constants are provisional, and the
    cross-entropy stands in place of the ramp loss of their theorems. The threat model plays no part in the training.

    `gamma` is the price of moving a labelled image, `gamma_unlabelled` of another one, in units of the loss over
    squared pixels; inf moves none (then this is self-training). z takes `steps` ascents, `rate` of the way to
    ``x + grad/gamma`` each, within the box; on a loss that is linear a whole one (1) is the supremum. `share` of each
    batch is unlabelled, from `unlabelled`, the data as the command line names it, and its `split`; without it `share`
    of the training data goes on without its labels. They count from the share `warmup` of the training on (0.3): the
    answers of a network that knows nothing yet would be confirmed for good.
    """

    gamma: float = 2.0
    gamma_unlabelled: float = 2.0
    weight: float = 1.0
    warmup: float = 0.3
    share: float = 0.5
    unlabelled: str = ""
    split: str = ""
    steps: int = 5
    rate: float = 0.5

    def __post_init__(self) -> None:
        good = (
            self.weight >= 0
            and 0 <= self.share < 1
            and 0 <= self.warmup <= 1
            and self.steps >= 0
            and 0 < self.rate <= 1
        )
        if not (good and min(self.gamma, self.gamma_unlabelled) > 0):
            raise UsageError(
                f"rss needs gammas > 0, weight and steps >= 0, share in [0,1), warmup in [0,1] and rate in (0,1], got "
                f"{self}."
            )

    def setup(self, context: Context) -> None:
        """The unlabelled part."""
        if self.share:
            prepare(context, self.unlabelled, self.split, self.share)

    def data(self, step: Step) -> None:
        """Unlabelled examples beside the batch, or in it."""
        if self.share:
            complete(step, self.share)

    def labels(self, step: Step) -> Tensor:
        """The network's own answer where there is no label."""
        without = unlabelled(step)
        if self.share == 0 or not bool(without.any()):
            return step.q
        own = nn.functional.one_hot(clean_logits(step).argmax(1), step.num_classes).to(step.q.dtype)
        return own.where(without.unsqueeze(1), step.q)

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``worst``: maximises the cross-entropy less its price; not made where nothing may move."""
        if self.steps == 0 or math.isinf(min(self.gamma, self.gamma_unlabelled)):
            return {}
        worst = step.x
        with mode(step.module, "eval"):
            for _ in range(self.steps):
                leaf = worst.detach().requires_grad_(True)
                with torch.enable_grad():
                    (grad,) = torch.autograd.grad(ce(step.forward(leaf), step.q).sum(), leaf)
                step.passes.backward += len(leaf)
                goal = step.x + grad / self._price(step).view(-1, *[1] * (step.x.ndim - 1))
                worst = (worst + self.rate * (goal - worst)).clamp(0, 1)
        return {"worst": worst}

    def terms(self, step: Step) -> Mapping[str, Term]:
        """The robust loss on labelled and on unlabelled images, each a mean over its own part."""
        without = unlabelled(step) if self.share else torch.zeros_like(step.y, dtype=torch.bool)
        if "worst" in step.views:
            moved = (step.views["worst"] - step.x).flatten(1).square().sum(1)
            paid = 0.5 * moved * self._price(step).where(moved > 0, 0)
            loss = ce(step.logits("worst"), step.q) - paid
        else:
            loss = ce(step.logits("clean"), step.q)
        terms = {"ce": Term(mean_over(loss, ~without))}
        if self.share and step.progress >= self.warmup:
            terms["ce_unlabelled"] = Term(mean_over(loss, without), self.weight)
        return terms

    def _price(self, step: Step) -> Tensor:
        """Gamma of each example, ``[B]``."""
        labelled = torch.full_like(step.y, self.gamma, dtype=step.x.dtype)
        return labelled.masked_fill(unlabelled(step), self.gamma_unlabelled) if self.share else labelled

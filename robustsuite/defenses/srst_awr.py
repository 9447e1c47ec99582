"""Semi-supervised robust training with adaptively weighted regularization (SRST-AWR)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from robustsuite.defenses.base import InnerSpec, Step, StepMethod, Term
from robustsuite.defenses.context import Context
from robustsuite.defenses.losses import ce, kl
from robustsuite.defenses.teacher import taught
from robustsuite.defenses.unlabelled import complete, mean_over, prepare, unlabelled
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense


@register_defense(
    "srst_awr",
    kind="step",
    paper="Yang, Kong, Kim 2023, arXiv:2308.04061",
    cost="steps + 3 passes, and a standard training",
    fidelity="authors' code",
    defaults={"cifar10": {}, "cifar100": {"temperature": 1.0, "attack": "ce"}, "stl10": {"beta": 8.0}},
)
@dataclass(frozen=True)
class SRSTAWR(StepMethod):
    """A few labels: their cross-entropy, a teacher's answers, and a divergence that weighs what the teacher knows.

    Yang, Kong, Kim, "Enhancing Adversarial Robustness in Low-Label Regime via Adaptively Weighted Regularization and
    Knowledge Distillation" (ICCV 2023), as in their code: on labelled images the cross-entropy, labels smoothed by
    `smoothing` (0.2); on unlabelled ones, with a teacher t, ``distil KL(t(x)/T || f(x)/T) + beta KL(p || p') w``, where
    ``w = balance <t, p> + (1 - balance)(1 - <t, p'>)`` is differentiated too and x' maximises, by `attack`, the
    divergence (``kl``: CIFAR-10) or the cross-entropy to the teacher's class (``ce``: CIFAR-100). `distil` (their
    gamma) is 4, `beta` (lambda) 20 (STL-10: 8), `balance` (beta) 0.5, `temperature` T 1.2 (CIFAR-100: 1).

    `share` of each batch is unlabelled (2/3), from `unlabelled`, the data as the command line names it, and its
    `split`; without it `share` of the training data goes on without its labels. `teacher`: a checkpoint (theirs is
    trained by FixMatch on both parts); without one, a standard network is trained on the labelled part first.
    """

    beta: float = 20.0
    distil: float = 4.0
    balance: float = 0.5
    temperature: float = 1.2
    smoothing: float = 0.2
    attack: Literal["kl", "ce"] = "kl"
    share: float = 2 / 3
    unlabelled: str = ""
    split: str = ""
    teacher: str = ""
    steps: int = 10
    alpha: float = 0.25

    def __post_init__(self) -> None:
        shares = 0 <= self.balance <= 1 and 0 <= self.smoothing < 1 and 0 <= self.share < 1
        if min(self.beta, self.distil) < 0 or not shares or self.temperature <= 0 or self.attack not in ("kl", "ce"):
            raise UsageError(
                f"srst_awr needs beta and distil >= 0, balance in [0,1], smoothing and share in [0,1), temperature > 0 "
                f"and attack kl or ce, got {self}."
            )

    def setup(self, context: Context) -> None:
        """The unlabelled part, and the teacher."""
        if self.share == 0:
            return
        labelled = prepare(context, self.unlabelled, self.split, self.share)
        if self.teacher:
            context.add("teacher", context.load(self.teacher))
        elif context.resuming:  # its weights come from the checkpoint of the run
            context.add("teacher", context.build("teacher"))
        else:
            context.add("teacher", context.train_other("standard", {}, labelled))

    def data(self, step: Step) -> None:
        """Unlabelled examples beside the batch, or in it."""
        if self.share:
            complete(step, self.share)

    def labels(self, step: Step) -> Tensor:
        """The teacher's classes where there is no label."""
        if self.share == 0:
            return step.q
        guesses = nn.functional.one_hot(taught(step).argmax(1), step.num_classes).to(step.q.dtype)
        return guesses.where(unlabelled(step).unsqueeze(1), step.q)

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``adv``: of all images; only that of unlabelled ones is learnt from."""
        return {"adv": step.maximise(InnerSpec(self.attack, self.steps, self.alpha))} if self.share else {}

    def terms(self, step: Step) -> Mapping[str, Term]:
        """Smoothed cross-entropy, distillation, and the weighted divergence, each a mean over its own part."""
        clean = step.logits("clean")
        smooth = (1 - self.smoothing) * step.q + self.smoothing / step.num_classes
        if self.share == 0:
            return {"ce": Term(ce(clean, smooth))}
        adversarial, known, without = step.logits("adv"), taught(step), unlabelled(step)
        heat = self.temperature
        divergence = kl(clean, adversarial) * trust(known, clean, adversarial, self.balance)
        return {
            "ce": Term(mean_over(ce(clean, smooth), ~without)),
            "kl_taught": Term(mean_over(kl(known / heat, clean / heat), without), self.distil),
            "kl": Term(mean_over(divergence, without), self.beta),
        }


def trust(known: Tensor, clean: Tensor, adversarial: Tensor, balance: float) -> Tensor:
    """``balance <t, p> + (1 - balance)(1 - <t, p'>)`` of logits ``[B,K]``, ``[B]``."""
    t, p, attacked = known.softmax(1), clean.softmax(1), adversarial.softmax(1)
    return balance * (t * p).sum(1) + (1 - balance) * (1 - (t * attacked).sum(1))

"""Conserve-update-revise (CURE): only prominent gradients update, and a stable model revises."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from robustsuite.defenses.averaging import follow
from robustsuite.defenses.base import InnerSpec, Step, StepMethod, Term
from robustsuite.defenses.context import Context
from robustsuite.defenses.losses import ce, kl
from robustsuite.errors import UsageError
from robustsuite.models.hooks import weighted_layers
from robustsuite.registry import register_defense

Mask = Literal["hard_abs_all", "soft_signed_conv1"]


@register_defense(
    "cure",
    kind="step",
    paper="Gowda, Zonooz, Arani 2024, arXiv:2401.14948",
    cost="steps + 2 passes and 2 forward passes",
    defaults={"cifar10": {"natural": 0.1, "robust": 0.9, "p": 0.3}, "cifar100": {"natural": 0.1, "robust": 0.9}},
    fidelity="paper",
)
@dataclass(frozen=True)
class CURE(StepMethod):
    """``natural CE(f(x), y) + robust KL(p(x) || p(x')) + gamma (KL(s(x) || p(x)) + KL(s(x') || p(x')))``, masked.

    Gowda, Zonooz, Arani, "Conserve-Update-Revise to Cure Generalization and Robustness Trade-off in Adversarial
    Training" (ICLR 2024). `natural` 0.1, `robust` 0.9, `gamma` 1. s is the stable model: with probability `r` (0.2) a
    step moves it towards the weights, with decay ``min(1 - 1/(t+1), decay)``, t the number of steps, `decay` 0.999. Of
    the loss's gradient those entries are conserved (set to 0) that are not prominent, by the quantile `p` (0.3) of
    each tensor. Two masks are in their code: `rgp` ``hard_abs_all`` drops the smallest absolute values, in all layers
    but the last; ``soft_signed_conv1`` the smallest signed ones, in layers whose name contains conv1, the
    network's first tensor left out. The first is the paper's text. `adv_loss`: ``kl``, or ``ce`` for CE(f(x'), y).

    Here the stable model answers in eval mode, and its batch-norm statistics are averaged; theirs answers in train
    mode. Their runs may start from a naturally trained network, these do not: in a short training from scratch the
    stable model lags behind and holds the network back, so take a smaller `gamma` there (0 to 0.1).
    """

    natural: float = 0.1
    robust: float = 0.9
    gamma: float = 1.0
    p: float = 0.3
    rgp: Mask = "hard_abs_all"
    r: float = 0.2
    decay: float = 0.999
    adv_loss: Literal["kl", "ce"] = "kl"
    steps: int = 10
    alpha: float = 0.25

    def __post_init__(self) -> None:
        if min(self.natural, self.robust, self.gamma) < 0 or not all(0 <= v <= 1 for v in (self.p, self.r, self.decay)):
            raise UsageError(f"cure needs natural, robust and gamma >= 0 and p, r and decay in [0,1], got {self}.")
        if self.rgp not in get_args(Mask) or self.adv_loss not in ("kl", "ce"):
            raise UsageError(
                f"cure needs rgp {' or '.join(get_args(Mask))} and adv_loss kl or ce, got '{self.rgp}' and "
                f"'{self.adv_loss}'."
            )

    def setup(self, context: Context) -> None:
        """The stable model starts as the network."""
        if self.p and self.rgp == "soft_signed_conv1" and not masked(context.module, self.rgp):
            raise UsageError(
                "rgp soft_signed_conv1 masks layers called conv1, and this network has none after its first tensor; "
                "choose hard_abs_all."
            )
        if self.gamma:
            context.add("cure", copy.deepcopy(context.module))

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``adv``: maximises the divergence from the clean distribution."""
        found = step.maximise(InnerSpec("kl", self.steps, self.alpha, init="gauss"))
        if self.gamma:
            step.trace["cure"] = [step.infer(x, step.aux["cure"]) for x in (step.x, found)]
        return {"adv": found}

    def terms(self, step: Step) -> Mapping[str, Term]:
        """Natural, robust, and the divergences from the stable model."""
        clean, adversarial = step.logits("clean"), step.logits("adv")
        terms = {"ce": Term(ce(clean, step.q), self.natural)}
        if self.adv_loss == "kl":
            terms["kl"] = Term(kl(clean, adversarial), self.robust)
        else:
            terms["ce_adv"] = Term(ce(adversarial, step.q), self.robust)
        if self.gamma:
            first, second = step.trace["cure"]
            terms["stable"] = Term(kl(first, clean) + kl(second, adversarial), self.gamma)
        return terms

    def gradient(self, step: Step, scalars: Mapping[str, Tensor]) -> None:
        """That of the sum, which is all that the masks look at, with its least prominent entries 0."""
        super().gradient(step, scalars)
        if self.p == 0:
            return
        # a quantile of the whole batch's gradient, not of this process's share
        parameters = [p for p in masked(step.module, self.rgp) if p.grad is not None]
        for parameter, grad in zip(parameters, step.reduce([_grad(p) for p in parameters]), strict=True):
            parameter.grad = grad * prominent(grad, self.p, self.rgp)

    def post_step(self, step: Step) -> None:
        """Perhaps, move the stable model."""
        if self.gamma == 0:
            return
        done = step.memory["steps"] = step.memory.get("steps", 0) + 1
        coin = step.noise.noise.child("cure").at(torch.zeros(1, dtype=torch.int64)).uniform(())
        if float(coin) >= self.r:
            return
        follow(step.aux["cure"], step.module, min(1 - 1 / (done + 1), self.decay), "average")


def _grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def masked(module: nn.Module, rgp: Mask) -> list[nn.Parameter]:
    """The parameters whose gradient is masked."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if rgp == "soft_signed_conv1":
        return [p for name, p in named[1:] if "conv1" in name]
    last = weighted_layers(module)[-1:]
    return [p for name, p in named if name.rpartition(".")[0] not in last]


def prominent(grad: Tensor, p: float, rgp: Mask) -> Tensor:
    """Which entries of a gradient are kept: those at or above its ``p``-quantile, by absolute value or signed."""
    values = grad if rgp == "soft_signed_conv1" else grad.abs()
    return values >= torch.quantile(values.flatten(), p)

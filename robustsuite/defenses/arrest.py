"""ARREST: adversarial finetuning of a standard network that keeps what it sees in clean images."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robustsuite.defenses.base import InnerSpec, Step, StepMethod, Term
from robustsuite.defenses.context import Context
from robustsuite.defenses.directions import direction
from robustsuite.defenses.losses import ce
from robustsuite.defenses.penultimate import with_features
from robustsuite.errors import InputError, UsageError
from robustsuite.models.modes import mode
from robustsuite.registry import register_defense


@register_defense(
    "arrest",
    kind="step",
    paper="Suzuki et al. 2023, arXiv:2308.16454",
    cost="steps + 4 passes, and a standard training",
    fidelity="reconstructed",
)
@dataclass(frozen=True)
class ARREST(StepMethod):
    """``CE(f(x'), y) + weight angle(h(x), h_std(x))``, from the weights of a standard network with features h_std.

    Suzuki, Yamaguchi, Takeda, Kanai, Makishima, Ando, Masumura, "Adversarial Finetuning with Latent Representation
    Constraint to Mitigate Accuracy-Robustness Tradeoff" (ICCV 2023). Certain are the three parts: finetuning on
    adversarial examples, the distance of features to those of the standard network (RGKD), and noise instead of an
    attack for what has changed too much (NR). Reconstructed are the constants, and where features are compared: take
    both as provisional. h is what the last layer sees; an angle is in units of pi.

    `weight` of the distance (about 50 in the paper); `compare`: at the ``clean`` image, or at the ``input`` that the
    cross-entropy is of. An example whose clean angle is above `threshold` gets uniform noise from the ball in place of
    x' (1: never; 0: whenever anything has moved). `standard`: a checkpoint of the standard network; without one it is
    trained before the first step, with the same architecture and recipe. The paper finetunes with a learning rate of
    0.01.
    """

    weight: float = 50.0
    threshold: float = 0.1
    compare: Literal["clean", "input"] = "clean"
    standard: str = ""
    steps: int = 10
    alpha: float = 0.25

    def __post_init__(self) -> None:
        if self.weight < 0 or not 0 <= self.threshold <= 1 or self.compare not in ("clean", "input"):
            raise UsageError(
                f"arrest needs weight >= 0, threshold in [0,1] and compare clean or input, got {self.weight}, "
                f"{self.threshold} and '{self.compare}'."
            )

    def setup(self, context: Context) -> None:
        """The standard network, and its weights to begin with; raises `InputError` for another architecture."""
        context.add_trained("standard", self.standard, "standard")
        try:
            context.module.load_state_dict(context.aux["standard"].state_dict())
        except RuntimeError as error:
            raise InputError(
                f"the standard network {self.standard} has another architecture than the one to be finetuned, whose "
                "weights it shall give; train that architecture, or leave 'standard' out."
            ) from error

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``adv``: maximises the cross-entropy, or is noise where the clean features have changed too much."""
        adversarial = step.maximise(InnerSpec("ce", self.steps, self.alpha))
        if self.threshold == 1:
            return {"adv": adversarial}
        with mode(step.module, "eval"), torch.no_grad():
            change = angle(with_features(step, step.x)[1], self._standard(step))
        noisy = step.maximise(InnerSpec(steps=0, draw=1))
        changed = (change > self.threshold).view(-1, *[1] * (step.x.ndim - 1))
        return {"adv": noisy.where(changed, adversarial)}

    def terms(self, step: Step) -> Mapping[str, Term]:
        """Cross-entropy of the input, and the angle between the features."""
        if self.weight == 0:
            return {"ce_adv": Term(ce(step.logits("adv"), step.q))}
        logits, features = with_features(step, step.views["adv"])
        if self.compare == "clean":
            features = with_features(step, step.x)[1]
        return {
            "ce_adv": Term(ce(logits, step.q)),
            "rgkd": Term(angle(features, self._standard(step)), self.weight),
        }

    def _standard(self, step: Step) -> Tensor:
        """Features of the standard network at the clean images; asked once a step."""
        if "standard" not in step.trace:
            with torch.no_grad():
                step.trace["standard"] = with_features(step, step.x, step.aux["standard"])[1]
        return step.trace["standard"]


def angle(a: Tensor, b: Tensor) -> Tensor:
    """``arccos(cos(a, b)) / pi`` of each row of ``[B,d]``, ``[B]``; its gradient is finite where they are parallel."""
    a, b = direction(a), direction(b)
    return 2 / math.pi * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1))

"""Distraction over-memorisation (DOM): what the network is sure of is left out, or changed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from robustsuite.defenses.augmix import augmix, randaugment
from robustsuite.defenses.base import Step, StepMethod, Term
from robustsuite.defenses.losses import ce
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense

Mode = Literal["removal", "augmentation"]
AUGMENTATIONS = {"augmix": augmix, "randaugment": randaugment}


@register_defense(
    "dom",
    kind="modifier",
    paper="Lin, Yu, Han, Liu 2024, arXiv:2310.08847, section 4",
    cost="1 forward pass; augmentation: up to rounds more",
    defaults={"cifar10": {"threshold": 1.5, "rounds": 2, "share": 0.5}},
    fidelity="authors' code",
)
@dataclass(frozen=True)
class DOM(StepMethod):
    """Examples whose clean cross-entropy is below `threshold` are not memorised any further.

    Lin, Yu, Han, Liu, "On the Over-Memorization During Natural, Robust and Catastrophic Overfitting" (ICLR 2024), from
    the share `start` of the training on (half). `mode` ``removal``: such an example's loss counts 0, and the mean is
    still over the whole batch. ``augmentation``: it is augmented up to `rounds` times, by `augment` (``augmix`` or
    ``randaugment``); the first augmented image whose loss reaches the threshold is taken, until then `share` of each is
    blended in, and after the last round the augmented image is taken in any case. `threshold`, `rounds`, `share`: 1.5,
    2, 0.5 (randaugment: share 0) with pgd_at; 2, 5, 0.5 (3, 0.1) with fgsm_rs; 0.2, 3, 0.5 (0.1) with standard, all on
    CIFAR-10, where adversarial training leaves clean losses high. A threshold above every loss removes the whole batch:
    it must lie below log K, and on easy data far below.

    The losses are those of the network in train mode, so that these passes move its batch-norm statistics, as in their
    code. A removed example counts in no term of the loss at all.
    """

    mode: Mode = "removal"
    threshold: float = 0.2
    start: float = 0.5
    rounds: int = 2
    share: float = 0.5
    augment: Literal["augmix", "randaugment"] = "augmix"

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode) or self.augment not in AUGMENTATIONS:
            raise UsageError(
                f"dom needs mode removal or augmentation and augment augmix or randaugment, got '{self.mode}' and "
                f"'{self.augment}'."
            )
        if min(self.threshold, self.rounds) < 0 or not (0 <= self.start <= 1 and 0 <= self.share <= 1):
            raise UsageError(f"dom needs threshold and rounds >= 0, start and share in [0,1], got {self}.")

    def data(self, step: Step) -> None:
        """Augmented images in place of those that the network is sure of."""
        if self.mode != "augmentation" or step.progress < self.start or self.rounds == 0:
            return
        if step.x.ndim != 4:
            raise UsageError(f"dom augments images [B,C,H,W], got a batch {list(step.x.shape)}; use mode removal.")
        x, noise = step.x, step.noise.child("dom")
        sure = losses(step, x) <= self.threshold
        for round in range(self.rounds):
            if not bool(sure.any()):
                break
            new = AUGMENTATIONS[self.augment](x, noise, round)
            reached = losses(step, new) >= self.threshold
            taken = (reached | (round == self.rounds - 1)).view(-1, 1, 1, 1)
            x = new.where(taken, torch.lerp(x, new, self.share)).where(sure.view(-1, 1, 1, 1), x)
            sure &= ~reached
        step.rebatch(x=x)

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """None; it notes which examples are kept."""
        if self.mode == "removal" and step.progress >= self.start:
            step.trace["dom"] = losses(step, step.x) >= self.threshold
        return {}

    def weights(self, step: Step, terms: Mapping[str, Term]) -> Mapping[str, Tensor]:
        """1 for examples that are kept, 0 for the others, in every term."""
        if "dom" not in step.trace:
            return {}
        kept: Tensor = step.trace["dom"].to(step.q.dtype)
        return dict.fromkeys(terms, kept)


def losses(step: Step, x: Tensor) -> Tensor:
    """Cross-entropies ``[B]`` of images to the step's labels, in train mode."""
    with torch.no_grad():
        return ce(step.forward(x), step.q)

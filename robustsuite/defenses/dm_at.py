"""Adversarial training with data from a diffusion model (DM-AT)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustsuite.defenses.base import InnerSpec, Step, StepMethod, Term
from robustsuite.defenses.context import Context
from robustsuite.defenses.extra_data import Extra, append, load_extra
from robustsuite.defenses.losses import ce, kl
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense


@register_defense(
    "dm_at",
    kind="step",
    paper="Wang et al. 2023, arXiv:2302.04638",
    cost="(steps + 2) / (1 - share) passes",
    defaults={"cifar10": {"beta": 5.0, "smoothing": 0.1, "share": 0.7}},
)
@dataclass(frozen=True)
class DMAT(StepMethod):
    """TRADES with smoothed labels, on generated images as well; the two views share one batch's statistics.

    Wang, Pang, Du, Lin, Liu, Yan, "Better Diffusion Models Further Improve Adversarial Training" (ICML 2023). As in
    their code: `beta` 5, `smoothing` 0.1 of the labels in the clean cross-entropy alone, PGD on the divergence from a
    uniform start, made in train mode with running statistics frozen. Their results are those of the modifier `ema`
    (0.995 from 2.5% of the training on), with weight decay on weights alone.

    `generated`: labelled images, as the command line names data, and their `split`; they are added to each batch until
    they are `share` of it (0.7), so the recipe's batch size and epoch count the original ones. None without it.
    """

    beta: float = 5.0
    smoothing: float = 0.1
    generated: str = ""
    split: str = ""
    share: float = 0.7
    steps: int = 10
    alpha: float = 0.25
    joint: ClassVar[tuple[str, ...]] = ("clean", "adv")

    def __post_init__(self) -> None:
        if self.beta < 0 or not 0 <= self.smoothing < 1 or not 0 <= self.share < 1:
            raise UsageError(f"dm_at needs beta >= 0, smoothing and share in [0,1), got {self}.")

    def setup(self, context: Context) -> None:
        """The generated images."""
        if self.generated:
            data = load_extra(context, self.generated, self.split, labelled=True)
            context.add("extra", Extra(data.x, data.y))

    def data(self, step: Step) -> None:
        """Generated images beside the batch."""
        if self.generated:
            extra = step.aux["extra"]
            assert isinstance(extra, Extra)
            append(step, extra, self.share)

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``adv``: maximises the divergence from the clean distribution; not made when beta is 0."""
        if self.beta == 0:
            return {}
        return {"adv": step.maximise(InnerSpec("kl", self.steps, self.alpha, bn_mode="train_frozen"))}

    def terms(self, step: Step) -> Mapping[str, Term]:
        """Clean cross-entropy to the smoothed labels, and the divergence times beta."""
        clean = step.logits("clean")
        smooth = (1 - self.smoothing) * step.q + self.smoothing / step.num_classes
        terms = {"ce": Term(ce(clean, smooth))}
        if self.beta:
            terms["kl"] = Term(kl(clean, step.logits("adv")), self.beta)
        return terms

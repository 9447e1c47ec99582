"""Integrated gradients held parallel between an image and its adversarial view (IGR)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustsuite.defenses.base import Step, StepMethod, Term
from robustsuite.defenses.directions import misalignment
from robustsuite.defenses.eval_mode import in_eval
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense


@register_defense(
    "igr",
    kind="modifier",
    paper="Wang, Kong 2022, NeurIPS",
    cost="2 points passes, differentiated again",
    fidelity="reconstructed",
)
@dataclass(frozen=True)
class IGR(StepMethod):
    """Plus ``weight (1 - cos(IG(x), IG(x')))``, IG the integrated gradients of the label's logit from a black image.

    Wang, Kong, "Exploiting the Relationship Between Kendall's Rank Correlation and Cosine Similarity for Attribution
    Protection" (NeurIPS 2022): an attack that keeps the answer may still turn its explanation. Reconstructed: the form
    of the term is certain, `weight` (1) and `points` (5), at which the path is sampled, are provisional. The base's
    adversarial view x' is taken (PGD training, TRADES, MART). Attributions are those of the network in eval mode.
    """

    weight: float = 1.0
    points: int = 5
    needs: ClassVar[tuple[str, ...]] = ("adv",)
    second_order: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.weight < 0 or self.points < 1:
            raise UsageError(f"igr needs weight >= 0 and points >= 1, got {self.weight} and {self.points}.")

    def terms(self, step: Step) -> Mapping[str, Term]:
        """What the two attributions lack to be parallel."""
        if self.weight == 0:
            return {}
        with in_eval(step.module):
            clean, adversarial = (
                integrated_gradients(step, step.views[view], self.points) for view in ("clean", "adv")
            )
        return {"igr": Term(misalignment(clean, adversarial), self.weight)}


def integrated_gradients(step: Step, x: Tensor, points: int) -> Tensor:
    """``x * mean_s grad z_y(x s/S)`` over s = 1..S, shaped like ``x``, differentiable in the parameters.

    Sundararajan, Taly, Yan, "Axiomatic Attribution for Deep Networks" (ICML 2017), eq. 3 with a black baseline.
    """
    shares = torch.arange(1, points + 1, device=x.device).to(x.dtype) / points
    path = (shares.view(-1, *[1] * x.ndim) * x).flatten(0, 1).detach().requires_grad_(True)
    logits = step.forward(path)
    chosen = logits.gather(1, step.y.repeat(points).unsqueeze(1)).sum()
    (grad,) = torch.autograd.grad(chosen, path, create_graph=True)
    step.passes.backward += len(path)
    return x * grad.view(points, *x.shape).mean(0)

"""DHAT: adversarial training against the hold that an image's background has on its class."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from robustsuite.defenses.base import InnerSpec, Step, StepMethod, Term
from robustsuite.defenses.clean_logits import clean_logits
from robustsuite.defenses.context import Context
from robustsuite.defenses.grad_cam import grad_cam, last_map
from robustsuite.defenses.losses import ce, kl
from robustsuite.errors import UsageError
from robustsuite.models.hooks import check_layers
from robustsuite.models.modes import mode
from robustsuite.registry import register_defense


@register_defense(
    "dhat",
    kind="step",
    paper="Zhang et al. 2025, arXiv:2408.06079",
    cost="steps + inverse_steps + 6 passes, and a standard training",
    fidelity="authors' code",
    defaults={"cifar10": {"kl_weight": 1.0, "floe_weight": 1.0}},
)
@dataclass(frozen=True)
class DHAT(StepMethod):
    """``CE(f(x'), y) + kl_weight KL(p(x') || softmax(z - z_B)) + floe_weight FLOE(z, z_B)``.

    Zhang, Weng, Li, Luo, "Towards Adversarial Robustness via Debiased High-Confidence Logit Alignment" (ICCV 2025). z
    are the logits of an *inverse* example: `inverse_steps` of `alpha` in a ball of `inverse_eps`, both in units of eps
    (4/255 and 2/255 at 8/255), descend its cross-entropy, and its divergence from the clean answer less that from the
    attacked one. z_B are those of the background alone: what Grad-CAM on a standard network, for the label, heats to
    more than `heat` (0.1) is black. Theirs perturbs in train mode, this in eval mode.

    `floe`, foreground logit orthogonal enhancement, is about the part of z that is orthogonal to z_B. Their text wants
    it large: ``paper`` subtracts its norm, which has no bound, so that logits run away at their weight (0.01 trains).
    Their released code adds the norm of a residual that a B x B matrix of inner products makes, and so mixes the
    examples of a batch: ``code``, the default. ``off``: none.

    `helper`: a checkpoint of the standard network (theirs: ResNet-18); without one it is trained first, with the same
    architecture and recipe. `layer`: the one whose map is looked at, as ``named_modules`` calls it; empty: the last map
    of more than one pixel, or the image itself.
    """

    kl_weight: float = 1.0
    floe_weight: float = 1.0
    floe: Literal["paper", "code", "off"] = "code"
    heat: float = 0.1
    inverse_steps: int = 10
    inverse_eps: float = 0.5
    helper: str = ""
    layer: str = ""
    steps: int = 10
    alpha: float = 0.25
    batch_coupled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        numbers = (self.kl_weight, self.floe_weight, self.heat, self.inverse_steps, self.inverse_eps)
        if min(numbers) < 0 or self.floe not in ("paper", "code", "off"):
            raise UsageError(f"dhat needs numbers >= 0 and floe paper, code or off, got {self}.")

    @property
    def _plain(self) -> bool:
        return self.kl_weight == 0 and not self._enhances

    @property
    def _enhances(self) -> bool:
        return self.floe != "off" and self.floe_weight > 0

    def setup(self, context: Context) -> None:
        """The standard network, and the layer whose map is looked at; raises `UsageError` if it has none such."""
        if self._plain:
            return
        context.add_trained("helper", self.helper, "standard")
        check_layers(context.aux["helper"], [self.layer] if self.layer else [])
        context.memory["layer"] = self.layer or last_map(context, context.aux["helper"])

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``adv``; ``inverse``: the easier example; ``background``: what is left of it without the foreground."""
        adversarial = step.maximise(InnerSpec("ce", self.steps, self.alpha))
        if self._plain:
            return {"adv": adversarial}
        clean, q = clean_logits(step), step.q
        with mode(step.module, "eval"):
            attacked = step.infer(adversarial, step.module)

        def hard(logits: Tensor) -> Tensor:
            return ce(logits, q) + kl(clean, logits) - kl(attacked, logits)

        easier = InnerSpec(hard, self.inverse_steps, self.alpha, eps=self.inverse_eps, descend=True, draw=1)
        inverse = step.maximise(easier)
        heat = grad_cam(step, step.aux["helper"], step.memory["layer"], step.x, step.y)
        return {"adv": adversarial, "inverse": inverse, "background": inverse * (heat <= self.heat)}

    def terms(self, step: Step) -> Mapping[str, Term]:
        """Adversarial cross-entropy, the divergence from the refined logits, and their orthogonal enhancement."""
        adversarial = step.logits("adv")
        terms = {"ce_adv": Term(ce(adversarial, step.q))}
        if self._plain:
            return terms
        easy, background = step.logits("inverse"), step.logits("background")
        if self.kl_weight:
            terms["kl"] = Term(kl(adversarial, easy - background), self.kl_weight)
        if self._enhances:
            values = -residual(easy, background) if self.floe == "paper" else batch_residual(easy, background)
            terms["floe"] = Term(values, self.floe_weight)
        return terms


def residual(z: Tensor, background: Tensor) -> Tensor:
    """Norm ``[B]`` of the part of each z ``[B,K]`` that is orthogonal to its background's."""
    length = background.square().sum(1, keepdim=True).clamp(min=1e-12)
    return (z - (z * background).sum(1, keepdim=True) / length * background).norm(dim=1)


def batch_residual(z: Tensor, background: Tensor) -> Tensor:
    """The released code's ``|z - P z_B|_F / B``, ``P = z z_B^T / |z_B z_B^T|_F``: the same for each of B examples."""
    projection = z @ background.T / (background @ background.T).norm().clamp(min=1e-12)
    return ((z - projection @ background).norm() / len(z)).expand(len(z))

"""GradDiv: the input gradients of a randomised network are spread, so that no direction is bad for all draws."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from robustsuite.defenses.base import InnerSpec, Step, StepMethod, Term
from robustsuite.defenses.context import Context
from robustsuite.defenses.directions import direction
from robustsuite.defenses.losses import ce
from robustsuite.errors import UsageError
from robustsuite.models.hooks import check_layers, weighted_layers
from robustsuite.models.keyed import Draws
from robustsuite.models.noisy_features import NoisyFeatures
from robustsuite.noise import ExampleNoise
from robustsuite.registry import register_defense

PENALTIES = ("cosine", "vmf", "volume")
GUARD = 1e-6  # of 1 - R^2, which is 0 for gradients that are all the same
RIDGE = 1e-3  # on the diagonal of the Gram matrix, which has no inverse then


@register_defense(
    "graddiv",
    kind="step",
    paper="Lee, Kim, Lee 2022, arXiv:2107.02425",
    cost="steps + 1 passes, and draws passes differentiated again",
    fidelity="reconstructed",
)
@dataclass(frozen=True)
class GradDiv(StepMethod):
    """PGD training of a network with random features, plus `weight` times how much its draws' gradients agree.

    Lee, Kim, Lee, "GradDiv: Adversarial Robustness of Randomized Neural Networks via Gradient Diversity
    Regularization" (TPAMI 2022). Reconstructed from the abstract: the three measures of concentration are certain in
    kind, the constants are provisional. Of `draws` (3) normalised input gradients of the loss at x, `penalty` takes
    ``cosine``, their mean pairwise one; ``vmf``, the log of the concentration of a von Mises-Fisher distribution that
    is fitted to them; or ``volume``, minus the log-determinant of their Gram matrix.

    The network is random by ``sigma N(0,1)`` on the outputs of `layers` (as ``named_modules`` calls them; empty: all
    convolutions and linear layers but the last), in units of the standard deviation of a row's own outputs there
    (`relative`), new in each pass. What is saved is the network without the noise: evaluate it in the wrap
    ``rand_feature`` with the same sigma, layers and relative.
    """

    weight: float = 0.5
    penalty: Literal["cosine", "vmf", "volume"] = "cosine"
    draws: int = 3
    sigma: float = 0.2
    relative: bool = True
    layers: tuple[str, ...] = ()
    steps: int = 10
    alpha: float = 0.25
    second_order: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.layers, str):
            raise UsageError(f"layers must be a list of names, got '{self.layers}'.")
        object.__setattr__(self, "layers", tuple(self.layers))
        if min(self.weight, self.sigma) < 0 or self.draws < 2 or self.penalty not in PENALTIES:
            raise UsageError(
                f"graddiv needs weight and sigma >= 0, draws >= 2 and a penalty of {', '.join(PENALTIES)}, got {self}."
            )

    def setup(self, context: Context) -> None:
        """Check the layers' names."""
        check_layers(context.module, self.layers)

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``adv``: maximises the cross-entropy, over new noise in every step of the attack."""
        return {"adv": step.maximise(InnerSpec("ce", self.steps, self.alpha, target=self._noisy(step, "attack")))}

    def terms(self, step: Step) -> Mapping[str, Term]:
        """Cross-entropy of one draw, and the concentration of the gradients of ``draws``."""
        terms = {"ce_adv": Term(ce(step.forward(step.views["adv"], self._noisy(step, "loss")), step.q))}
        if self.weight:
            noisy = self._noisy(step, "gradients")
            gradients = torch.stack([self._gradient(step, noisy) for _ in range(self.draws)], 1)
            terms["graddiv"] = Term(concentration(gradients, self.penalty), self.weight)
        return terms

    def _gradient(self, step: Step, noisy: NoisyFeatures) -> Tensor:
        """The direction ``[B,d]`` of the input gradient in one draw."""
        leaf = step.x.detach().requires_grad_(True)
        (grad,) = torch.autograd.grad(ce(step.forward(leaf, noisy), step.q).sum(), leaf, create_graph=True)
        step.passes.backward += len(leaf)
        return direction(grad)

    def _noisy(self, step: Step, purpose: str) -> NoisyFeatures:
        names = weighted_layers(step.module)
        source = Passing(step.noise.child(f"graddiv/{purpose}"))
        noisy = NoisyFeatures(step.module, self.layers or names[:-1] or names, self.sigma, self.relative, source)
        noisy.training = step.module.training
        return noisy


@dataclass
class Passing(Draws):
    """Noise of a step's examples, new in each pass."""

    examples: ExampleNoise
    made: int = field(default=0)

    def rows(self, x: Tensor) -> ExampleNoise:
        """That of the next pass."""
        del x
        self.made += 1
        return self.examples.child(f"pass/{self.made}")


def concentration(gradients: Tensor, penalty: str) -> Tensor:
    """How much n unit vectors ``[B,n,d]`` agree, ``[B]``, largest where they are one; see `GradDiv`."""
    n, d = gradients.shape[1:]
    gram = gradients @ gradients.transpose(1, 2)
    if penalty == "cosine":
        off = gram.sum((1, 2)) - gram.diagonal(dim1=1, dim2=2).sum(1)
        return off / (n * (n - 1))
    if penalty == "volume":
        own = torch.eye(n, dtype=gram.dtype, device=gram.device)  # 1 for a gradient that is 0 as well
        return -torch.logdet(gram * (1 - own) + (1 + RIDGE) * own)
    # Banerjee et al. 2005: kappa = R (d - R^2) / (1 - R^2), R the length of the mean
    square = gram.sum((1, 2)).clamp(min=GUARD) / n**2
    return 0.5 * square.log() + (d - square).log() - (1 - square).clamp(min=GUARD).log()

"""The contract of a defense: step methods fill slots of the training loop, fit methods own it, wrap methods change
inference. A defense imports no attack and no loop: what it needs is handed to it in a `Step`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from robustsuite.errors import ContractError, UsageError
from robustsuite.models.classifier import Classifier, Passes
from robustsuite.noise import ExampleNoise
from robustsuite.threat import ThreatModel


@dataclass(frozen=True)
class InnerSpec:
    """An inner maximisation, apart from the loss that is trained on what it finds.

    `loss`: ``ce`` to the step's labels, or ``kl`` from the detached clean distribution. `alpha` (the step size) is in
    units of the threat model's eps, and `eps` scales that eps, so that one default serves every threat model. `init`:
    ``uniform`` in the ball, ``gauss`` (0.001 N(0,1)) or ``zero``; the gradient of ``kl`` is zero at ``zero``. While the
    perturbation is made, batch norm and dropout are in `bn_mode`: ``eval``, ``train``, or ``train_frozen`` (batch
    statistics are used, running statistics stay). `draw` tells the random starts of one step apart.
    """

    loss: Literal["ce", "kl"] = "ce"
    steps: int = 10
    alpha: float = 0.25
    eps: float = 1.0
    init: Literal["uniform", "gauss", "zero"] = "uniform"
    bn_mode: Literal["eval", "train_frozen", "train"] = "eval"
    draw: int = 0

    def __post_init__(self) -> None:
        if self.loss == "kl" and self.init == "zero":
            raise UsageError("an inner maximisation of 'kl' from init 'zero' never moves: choose 'gauss' or 'uniform'.")
        if self.steps < 0 or self.alpha < 0 or self.eps < 0:
            raise UsageError(f"steps, alpha and eps of an inner maximisation must not be negative, got {self}.")


@dataclass(frozen=True)
class Term:
    """One named part of the loss: `values` per example ``[B]``, not reduced, and the coefficient `weight`."""

    values: Tensor
    weight: float = 1.0


@dataclass
class Step:
    """What a step method sees of one training step. The loop makes it, fills `q` and `views`, and hands it around.

    `x` float32 ``[B,C,H,W]``, `y` int64 ``[B]``, `q` float32 ``[B,K]`` the labels as distributions. `progress` runs
    from 0 to 1 over the whole training. `noise` is bound to the batch's examples and to this step. `views` are detached
    inputs by name; ``clean`` is `x`.
    """

    module: nn.Module
    x: Tensor
    y: Tensor
    q: Tensor
    threat: ThreatModel
    progress: float
    num_classes: int
    noise: ExampleNoise
    inner: Callable[[Step, InnerSpec], Tensor]
    bounds: Callable[[Tensor, Tensor, Tensor], Tensor]
    views: dict[str, Tensor] = field(default_factory=dict)
    passes: Passes = field(default_factory=Passes)
    _cache: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.views.setdefault("clean", self.x)

    def logits(self, view: str) -> Tensor:
        """Logits ``[B,K]`` of a view, with a graph to the parameters; one forward pass however often it is asked."""
        if view not in self.views:
            raise UsageError(f"no view '{view}' in this step; the views slot gave: {', '.join(self.views)}.")
        if view not in self._cache:
            self._cache[view] = self.forward(self.views[view])
        return self._cache[view]

    def forward(self, x: Tensor) -> Tensor:
        """Logits of any input, not cached."""
        self.passes.forward += x.shape[0]
        return self.module(x)

    def maximise(self, spec: InnerSpec) -> Tensor:
        """The worst view of `x` that ``spec`` finds within the threat model, detached."""
        return self.inner(self, spec).detach()

    def margins(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Lower bounds of ``logit_y - logit_k`` over the boxes ``[lower, upper]``, ``[B,K]`` (0 in column y).

        Differentiable, in float32: for training, not for a certificate.
        """
        self.passes.forward += 2 * lower.shape[0]
        return self.bounds(lower, upper, self.y)

    def forget_logits(self) -> None:
        """Drop cached forwards: the weights have moved, or the loss is evaluated again on the same views."""
        self._cache.clear()


class StepMethod:
    """A training-time defense as a frozen dataclass of hyper-parameters; a slot that it leaves alone is the identity.

    The loop calls, once a step and in this order, `labels` and `views`; then `terms` and `weights`, which may be
    evaluated again on the same views (weight perturbation) and so must draw no randomness but `Step.noise`; and after
    the optimiser's step `post_step`.
    """

    select: ClassVar[Literal["robust", "clean", "last"]] = "robust"
    """What the epoch is selected by, on examples held out of the training data."""
    batch_coupled: ClassVar[bool] = False
    """Whether an example's loss depends on the rest of the batch (then duplicating a batch may change the loss)."""

    def labels(self, step: Step) -> Tensor:
        """Labels as distributions ``[B,K]``, seen by inner maximisation and loss."""
        return step.q

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """Named inputs besides ``clean``: what the inner maximisation finds, noisy copies, ..."""
        del step
        return {}

    def terms(self, step: Step) -> Mapping[str, Term]:
        """The loss as named per-example terms; the loop sums ``weight * mean(values)``."""
        del step
        return {}

    def weights(self, step: Step, terms: Mapping[str, Term]) -> Mapping[str, Tensor]:
        """Per-example weights ``[B]`` by the name of the term that they multiply; detach them unless meant."""
        del step, terms
        return {}

    def post_step(self, step: Step) -> None:
        """After the optimiser's step: averages, controllers, statistics."""


class FitMethod(ABC):
    """A training-time defense that owns its whole loop."""

    @abstractmethod
    def fit(self, services: Any) -> nn.Module:
        """The trained module; ``services`` are those of the training loop (data, inner maximisation, validation)."""


class WrapMethod(ABC):
    """An inference-time defense as a frozen dataclass of hyper-parameters."""

    @abstractmethod
    def wrap(self, model: Classifier) -> Classifier:
        """The defended classifier; it declares what it is in its facts (randomised, differentiable)."""


def reduce_terms(terms: Mapping[str, Term], weights: Mapping[str, Tensor], batch: int) -> dict[str, Tensor]:
    """Each term as the scalar ``weight * mean(w * values)``; their sum is the loss.

    Raises `ContractError` when there is no term, a term is not a vector ``[batch]``, or a weight has no term.
    """
    if not terms:
        raise ContractError("the method gives no loss term; return at least one from its terms slot.")
    stray = set(weights) - set(terms)
    if stray:
        raise ContractError(f"weights for unknown terms {sorted(stray)}; the terms are {sorted(terms)}.")
    scalars = {}
    for name, term in terms.items():
        for what, vector in (("term", term.values), ("weights of term", weights.get(name))):
            if vector is not None and tuple(vector.shape) != (batch,):
                raise ContractError(
                    f"{what} '{name}' must hold one value an example, shape [{batch}], got {list(vector.shape)}; "
                    "do not reduce over the batch."
                )
        values = term.values * weights[name] if name in weights else term.values
        scalars[name] = values.mean() * term.weight
    return scalars

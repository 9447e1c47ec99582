"""The contract of a defense: step methods fill slots of the training loop, fit methods own it, wrap methods change
inference. A defense imports no attack and no loop: what it needs is handed to it in a `Step` or a `Context`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from robustsuite.defenses.context import Context
from robustsuite.defenses.services import Result, Services
from robustsuite.defenses.step import InnerSpec, Step, Term
from robustsuite.models.classifier import Classifier
from robustsuite.threat import Norm


class StepMethod:
    """A training-time defense as a frozen dataclass of hyper-parameters; a slot that it leaves alone is the identity.

    A base gives the loss; modifiers (registered with ``kind="modifier"``) fill slots around it. The loop calls `setup`
    once; in every step, in this order, `data`, `labels` and `views` (through `inner`, when it asks for an inner
    maximisation); then `terms` and `weights`, which may be evaluated again on the same views (weight perturbation) and
    so must draw no randomness but `Step.noise`; `perturb` around them, `gradient`, and after the optimiser's step
    `post_step`; `epoch_end` after the last of an epoch. What a method remembers lies in `Step.memory`, never in itself.
    """

    select: ClassVar[Literal["robust", "clean", "last"]] = "robust"
    """What the epoch is selected by, on examples held out of the training data."""
    monitors: ClassVar[tuple[str, ...]] = ()
    """What is measured after every epoch besides accuracies: ``ibp_tightness``."""
    batch_coupled: ClassVar[bool] = False
    """Whether an example's loss depends on the rest of the batch (then duplicating a batch may change the loss)."""
    second_order: ClassVar[bool] = False
    """Whether gradients are differentiated again, which half precision does not survive."""
    restore: ClassVar[Literal["before_update", "after_update"]] = "before_update"
    """When the offset of `perturb` is taken back: SAM steps from the old weights, AWP from the moved ones."""
    norms: ClassVar[tuple[Norm, ...]] = ("Linf", "L2", "L1")
    """The threat models' norms that the method is made for."""
    joint: ClassVar[tuple[str, ...]] = ()
    """Views that go through the network in one batch, and so share batch-norm statistics."""
    scope: Literal["both", "loss", "attack"] = "both"
    """Who sees what `labels` returns."""
    needs: ClassVar[tuple[str, ...]] = ()
    """For a modifier: the views of the base that it works on."""
    weighs: ClassVar[tuple[str, ...]] = ()
    """For a modifier with weights: the terms that it can weigh, of which the base must have one."""
    base: ClassVar[str] = "pgd_at"
    """For a modifier: the base that its paper builds on, taken when it is trained alone."""
    replays: int = 1
    """How many steps are taken on each batch."""

    def setup(self, context: Context) -> None:
        """Once, before the first step: auxiliary models, tables, initial weights."""

    def data(self, step: Step) -> None:
        """Change the batch through `Step.rebatch`: augmentation, mixing, further examples."""

    def labels(self, step: Step) -> Tensor:
        """Labels as distributions ``[B,K]``, seen by inner maximisation and loss (see `scope`)."""
        return step.q

    def inner(self, step: Step, spec: InnerSpec) -> InnerSpec:
        """The inner maximisation that is run when ``spec`` is asked for: another radius, an early stop, ..."""
        del step
        return spec

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

    def perturb(self, step: Step, closure: Callable[[], Tensor]) -> Sequence[Tensor] | None:
        """Offsets of the parameters (those that require gradients, in order) under which the loss is differentiated.

        ``closure()`` is the loss on the step's views at the current weights, batch-norm statistics untouched.
        """
        del step, closure
        return None

    def gradient(self, step: Step, scalars: Mapping[str, Tensor]) -> None:
        """Leave in ``.grad`` what the optimiser shall step along; by default that of the sum of the terms."""
        step.passes.backward += step.graphed
        torch.stack(list(scalars.values())).sum().backward()

    def post_step(self, step: Step) -> None:
        """After the optimiser's step: averages, controllers, statistics."""

    def epoch_end(self, context: Context) -> None:
        """After an epoch's last step, before it is validated."""

    def keep(self, context: Context) -> nn.Module | None:
        """The module that is validated, selected and saved, if not the trained one."""
        del context
        return None


class FitMethod(ABC):
    """A training-time defense that owns its whole loop, as a frozen dataclass of hyper-parameters."""

    select: ClassVar[Literal["robust", "clean", "last"]] = "robust"
    """What the epoch is selected by, on examples held out of the training data."""
    norms: ClassVar[tuple[Norm, ...]] = ("Linf", "L2", "L1")
    """The threat models' norms that the method is made for."""
    classes: ClassVar[int | None] = None
    """How many classes it is made for; None: any number."""

    @abstractmethod
    def fit(self, services: Services) -> Result:
        """The trained module, or a `Fitted`; it counts as one more epoch if it is not what was reported last."""


class WrapMethod(ABC):
    """An inference-time defense as a frozen dataclass of hyper-parameters."""

    @abstractmethod
    def wrap(self, model: Classifier) -> Classifier:
        """The defended classifier; it declares what it is in its facts (randomised, differentiable)."""

"""Randomised features: noise on internal layers, against attacks that query."""

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from robustsuite.defenses.base import WrapMethod
from robustsuite.errors import UsageError
from robustsuite.models.averaged import plain_network
from robustsuite.models.classifier import Classifier
from robustsuite.models.hooks import weighted_layers
from robustsuite.models.noisy_features import NoisyFeatureClassifier, largest_sigma
from robustsuite.registry import register_defense


@register_defense("rand_feature", kind="wrap", paper="Nguyen et al. 2024, arXiv:2310.00567", cost="1 pass")
@dataclass(frozen=True)
class RandFeature(WrapMethod):
    """Add Gaussian noise to the outputs of internal layers in every pass.

    Nguyen, Lao, Pham, Wong, Doan, "Understanding the Robustness of Randomized Feature Defense Against Query-Based
    Adversarial Attacks" (ICLR 2024). A defense against black-box queries alone: an attack that sees the network takes
    the expectation and is hardly held up, so a row with white-box attacks says nothing about its purpose.

    ``sigma`` is the noise in units of the standard deviation of a row's outputs at that layer, or, without
    ``relative``, in the layer's own; `calibrated` finds it. ``layers`` names them as ``named_modules`` does (empty: all
    convolutions and linear layers but the last). ``eot`` draws make an evaluation by an attack, ``draws`` a verdict.
    """

    sigma: float = 0.05
    layers: tuple[str, ...] = ()
    relative: bool = True
    eot: int = 20
    draws: int = 100

    def __post_init__(self) -> None:
        if not 0 <= self.sigma < float("inf"):
            raise UsageError(f"rand_feature needs sigma >= 0, got {self.sigma}.")
        if isinstance(self.layers, str):
            raise UsageError(f"layers must be a list of names, got '{self.layers}'.")
        object.__setattr__(self, "layers", tuple(self.layers))

    def wrap(self, model: Classifier) -> Classifier:
        """A randomised classifier; raises `UsageError` for a layer that the network does not have."""
        plain_network(model)
        return NoisyFeatureClassifier(
            model, self._chosen(model), self.sigma, relative=self.relative, eot=self.eot, draws=self.draws
        )

    def calibrated(self, model: Classifier, x: Tensor, y: Tensor, *, drop: float = 0.01, seed: int = 0) -> Self:
        """The same with the largest sigma that costs at most ``drop`` of the accuracy on ``x``, ``y``."""
        plain_network(model)
        layers = self._chosen(model)
        found = largest_sigma(model, layers, x, y, relative=self.relative, drop=drop, draws=self.draws, seed=seed)
        return replace(self, sigma=found)

    def _chosen(self, model: Classifier) -> tuple[str, ...]:
        if self.layers:
            return self.layers
        found = weighted_layers(model.module)
        if not found:
            raise UsageError("rand_feature found neither a convolution nor a linear layer; name layers.")
        return tuple(found[:-1] or found)

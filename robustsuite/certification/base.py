"""The contract of a certifier."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from robustsuite.errors import UsageError
from robustsuite.models.classifier import Classifier
from robustsuite.noise import ExampleNoise
from robustsuite.threat import ThreatModel


@dataclass(frozen=True)
class Votes:
    """The counts behind probabilistic certificates, int64 ``[N]`` each: what a later question can be answered from.

    `chosen`: the class that was voted on, also where nothing was proved. `samples`: drawn for it. `votes`: won by it.
    """

    chosen: NDArray[np.int64]
    samples: NDArray[np.int64]
    votes: NDArray[np.int64]


@dataclass(frozen=True)
class Certificates:
    """Proved radii of a batch.

    `radius` float64 ``[N]`` in the threat model's norm: the prediction is constant within it (0: nothing proved).
    `predicted` int64 ``[N]``: the class that is proved (-1 abstains). `guarantee`: ``deterministic``, or
    ``confidence 0.999`` for a statement that holds with that probability for each example, or with ``for all 100
    examples together`` behind it. `forward` int64 ``[N]``: forward passes that each example took, where they differ;
    `Certifier.cost` is then the most. `votes`: the counts, of certifiers that have `Certifier.p_values`.
    `diagnostics`: numbers of interest by name, float64 ``[N]``, which the ledger keeps and no verdict looks at.
    """

    radius: Tensor
    predicted: Tensor
    guarantee: str
    forward: Tensor | None = None
    votes: Votes | None = None
    diagnostics: Mapping[str, Tensor] = field(default_factory=dict)


class Certifier(ABC):
    """A frozen dataclass of hyper-parameters. `cost` is (forwards, backwards) for one example, at most."""

    cost: tuple[int, int] = (2, 0)

    @abstractmethod
    def certify(
        self, model: Classifier, x: Tensor, y: Tensor, threat: ThreatModel, noise: ExampleNoise
    ) -> Certificates:
        """Certificates for ``x``; ``y`` may steer what is worth proving, never what is true."""

    def unsupported(self, model: Classifier, threat: ThreatModel) -> str | None:
        """Why this certifier cannot be used on this model and threat, or None when it can."""
        del model, threat
        return None

    def p_values(
        self, votes: Votes, radii: Sequence[float], threat: ThreatModel, input_shape: Sequence[int]
    ) -> NDArray[np.float64]:
        """For every example and radius, float64 ``[N,R]``: at any level a, a false radius has a p-value of at most a
        with probability at most a. Raises `UsageError` where no `Votes` are kept.
        """
        del votes, radii, threat, input_shape
        raise UsageError(f"{type(self).__name__} keeps no votes, so its certificates cannot be tested as a family.")

    def subject(self, model: Classifier) -> Classifier:
        """The classifier that the certificates speak of: the model itself, or a wrapped one (smoothing).

        The evaluator runs *every* stage on the subject, so that the bracket is about one classifier.
        """
        return model

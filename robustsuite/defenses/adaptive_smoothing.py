"""Adaptive smoothing: an accurate and a robust network, mixed."""

from dataclasses import dataclass
from pathlib import Path

from robustsuite.defenses.base import WrapMethod
from robustsuite.errors import UsageError
from robustsuite.models.averaged import plain_network
from robustsuite.models.bpda import around
from robustsuite.models.checkpoint import read_state
from robustsuite.models.classifier import Classifier
from robustsuite.models.companion import load_companion, pin
from robustsuite.models.mixed import MixedClassifier, check_share
from robustsuite.models.mixing_network import AdaptiveMixture, mixing_network
from robustsuite.registry import register_defense


@register_defense("adaptive_smoothing", kind="wrap", paper="Bai et al. 2024, arXiv:2301.12554", cost="2 passes")
@dataclass(frozen=True)
class AdaptiveSmoothing(WrapMethod):
    """Mix the probabilities of the model, robust, with those of the network ``standard``, accurate.

    Bai, Anderson, Kim, Sojoudi, "Improving the Accuracy-Robustness Trade-Off of Classifiers via Adaptive Smoothing"
    (SIAM J. Math. Data Sci. 2024). ``standard`` is a checkpoint with a sidecar or ``py:file.py:factory`` (empty: the
    model itself); ``standard_sha256`` is filled in.

    Without a head the robust network has the weight ``share``, and the certifier ``mixed-lipschitz`` with the same
    ``standard`` and ``share`` proves radii of this very model. ``head`` is a file with the weights of a mixing network,
    which reads the outputs of the ``standard_layers`` and ``robust_layers`` (names of modules) and chooses a weight
    from ``low`` to ``high`` for each image; no certificate is known of that. Without ``through`` attacks take the
    weight for a constant; evaluate both. ``head_sha256`` is filled in.
    """

    standard: str = ""
    share: float = 0.9
    head: str = ""
    standard_layers: tuple[str, ...] = ()
    robust_layers: tuple[str, ...] = ()
    low: float = 0.84
    high: float = 0.99
    through: bool = True
    standard_sha256: str = ""
    head_sha256: str = ""

    def __post_init__(self) -> None:
        check_share(self.share)
        if not 0 <= self.low <= self.high <= 1:
            raise UsageError(f"adaptive_smoothing needs 0 <= low <= high <= 1, got {self.low} and {self.high}.")
        if bool(self.head) != bool(self.standard_layers or self.robust_layers):
            raise UsageError("a mixing network needs both: its file (head), and the layers that it reads.")
        object.__setattr__(self, "standard_layers", tuple(self.standard_layers))
        object.__setattr__(self, "robust_layers", tuple(self.robust_layers))
        object.__setattr__(self, "standard_sha256", pin(self.standard, self.standard_sha256))
        object.__setattr__(self, "head_sha256", pin(self.head, self.head_sha256))

    def wrap(self, model: Classifier) -> Classifier:
        """A `MixedClassifier`, or a plain classifier with a head; raises `InputError` as `load_companion` does."""
        plain_network(model)
        standard = load_companion(self.standard, model) if self.standard else model
        if not self.head:
            return MixedClassifier(standard, model, self.share, f"{self.standard} {self.standard_sha256}")
        module = AdaptiveMixture(
            standard.module,
            model.module,
            mixing_network(read_state(Path(self.head)), self.head),
            layers=self.standard_layers,
            robust_layers=self.robust_layers,
            low=self.low,
            high=self.high,
            through=self.through,
        )
        return around(model, module, "full" if self.through else "surrogate")

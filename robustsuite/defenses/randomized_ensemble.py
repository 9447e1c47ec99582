"""Randomised ensembles at inference."""

from dataclasses import dataclass

from robustsuite.defenses.base import WrapMethod
from robustsuite.errors import UsageError
from robustsuite.models.classifier import Classifier
from robustsuite.models.companion import load_companion, pin
from robustsuite.models.randomized_ensemble import RandomizedEnsemble, exact_weights
from robustsuite.registry import register_defense


@register_defense(
    "randomized_ensemble", kind="wrap", paper="Dbouk and Shanbhag 2023, arXiv:2302.01375", cost="1 pass a query"
)
@dataclass(frozen=True)
class RandomizedEnsembleDefense(WrapMethod):
    """Answer each query with the model or one of the ``members``, drawn anew with probabilities ``weights``.

    Dbouk and Shanbhag, "On the Robustness of Randomized Ensembles to Adversarial Perturbations" (ICML 2023). The
    evaluator's verdicts are exact expectations over the draw, at points found against the mean of the members'
    probabilities. ``members`` are checkpoints with sidecars or ``py:file.py:factory``, and ``weights`` begin with the
    model's own (empty: equal ones); ``members_sha256`` is filled in from the files.
    """

    members: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    members_sha256: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.members, str):
            raise UsageError(f"members must be a list of models, got '{self.members}'.")
        exact_weights(self.weights, len(self.members) + 1)
        if self.members_sha256 and len(self.members_sha256) != len(self.members):
            raise UsageError(f"{len(self.members)} members need as many hashes, got {len(self.members_sha256)}.")
        known = self.members_sha256 or [""] * len(self.members)
        hashes = tuple(pin(name, sha256) for name, sha256 in zip(self.members, known, strict=True))
        object.__setattr__(self, "members_sha256", hashes)

    def wrap(self, model: Classifier) -> Classifier:
        """A randomised classifier; raises `InputError` as `load_companion` does."""
        members = [model, *(load_companion(name, model) for name in self.members)]
        return RandomizedEnsemble(members, exact_weights(self.weights, len(members)))

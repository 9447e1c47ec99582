"""Certificates by randomized smoothing."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustsuite.certification.base import Certificates, Certifier
from robustsuite.errors import UsageError
from robustsuite.models.classifier import Classifier
from robustsuite.models.smoothed import SmoothedClassifier, certified_radii, check_sampling, count_votes
from robustsuite.noise import ExampleNoise
from robustsuite.registry import register_certifier
from robustsuite.threat import ThreatModel

_PREDICT_SAMPLES = 1000


@register_certifier("smoothing", norms=("L2",), kind="probabilistic", paper="Cohen et al. 2019, arXiv:1902.02918")
@dataclass(frozen=True)
class Smoothing(Certifier):
    """Randomized smoothing: a Clopper-Pearson bound of the top class under Gaussian noise gives an L2 radius.

    Cohen, Rosenfeld, Kolter, "Certified Adversarial Robustness via Randomized Smoothing" (ICML 2019), CERTIFY: the
    class is chosen on ``n0`` samples and its probability p bounded on ``n`` fresh ones; the radius is
    ``sigma * Phi^-1(p)``, wrong with probability at most ``failure_probability`` per example. The paper uses
    n0 = 100, n = 100_000 and 0.001; n = 10_000 is ten times cheaper and lowers the largest possible radius from
    3.81 to 3.20 sigma. ``batch`` rows go through the network at once, always the same number. The statement is about
    the smoothed classifier (`subject`) in exact arithmetic; noise added in float32 is not accounted for.
    """

    sigma: float
    n0: int = 100
    n: int = 10_000
    failure_probability: float = 0.001
    batch: int = 1000

    def __post_init__(self) -> None:
        check_sampling(self.sigma, self.failure_probability, self.n0, self.n, self.batch)
        if self.n0 > self.n:
            raise UsageError(f"smoothing needs n0 <= n, got n0={self.n0} and n={self.n}.")
        object.__setattr__(self, "cost", (self.n0 + self.n, 0))

    def certify(
        self, model: Classifier, x: Tensor, y: Tensor, threat: ThreatModel, noise: ExampleNoise
    ) -> Certificates:
        """Radii of the smoothed classifier; an abstention has the class -1 and the radius 0.

        ``model`` is the base classifier or a `SmoothedClassifier` of the same sigma; raises `UsageError` otherwise.
        """
        del y, threat
        base = self._base(model)
        select = count_votes(base, x, noise.child("select"), self.sigma, self.n0, self.batch)
        chosen = select.argmax(1)
        estimate = count_votes(base, x, noise.child("estimate"), self.sigma, self.n, self.batch)
        successes = estimate.gather(1, chosen.view(-1, 1)).squeeze(1).cpu().numpy()
        radius = torch.from_numpy(certified_radii(successes, self.n, self.sigma, self.failure_probability)).to(x.device)
        return Certificates(radius, chosen.where(radius > 0, -1), f"confidence {1 - self.failure_probability:g}")

    def unsupported(self, model: Classifier, threat: ThreatModel) -> str | None:
        """Gaussian smoothing certifies L2 alone."""
        del model
        return None if threat.norm == "L2" else f"Gaussian smoothing certifies L2 balls, not {threat.norm}."

    def subject(self, model: Classifier) -> Classifier:
        """The smoothed classifier, with this sigma; an already smoothed model of this sigma stays as it is."""
        base = self._base(model)
        if base is not model:
            return model
        n = min(self.n, _PREDICT_SAMPLES)
        return SmoothedClassifier(
            model, sigma=self.sigma, n=n, failure_probability=self.failure_probability, batch=self.batch
        )

    def _base(self, model: Classifier) -> Classifier:
        if not isinstance(model, SmoothedClassifier):
            return model
        if model.sigma != self.sigma:
            raise UsageError(
                f"the certifier smooths with sigma={self.sigma}, the model with sigma={model.sigma}: these are two "
                "classifiers. Give both the same sigma."
            )
        return model.base

"""Certificates by randomized smoothing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustsuite.certification.base import Certificates, Certifier, Votes
from robustsuite.certification.smoothing_bounds import LookBounds, make_bounds
from robustsuite.certification.smoothing_stopping import GridStop
from robustsuite.errors import UsageError
from robustsuite.models.classifier import Classifier
from robustsuite.models.smoothed import SmoothedClassifier, check_sampling
from robustsuite.models.smoothing_noises import Floats, noise_named
from robustsuite.models.votes import check_independence, count_votes, poll
from robustsuite.noise import ExampleNoise
from robustsuite.registry import register_certifier
from robustsuite.results.curve import GRID
from robustsuite.threat import Eps, ThreatModel

_PREDICT_SAMPLES = 1000
_MODES = ("fixed", "staged", "radius", "anytime")
_PRECISIONS = ("float32", "bf16")


@register_certifier(
    "smoothing", norms=("L2", "L1", "Linf"), kind="probabilistic", paper="Cohen et al. 2019, arXiv:1902.02918"
)
@dataclass(frozen=True)
class Smoothing(Certifier):
    """Randomized smoothing: a lower bound of the top class's probability under noise gives a radius.

    Cohen, Rosenfeld, Kolter, "Certified Adversarial Robustness via Randomized Smoothing" (ICML 2019), CERTIFY: the
    class is chosen on ``n0`` samples and its probability p bounded on up to ``n`` fresh ones. Under ``noise``
    ``gaussian`` the L2 radius is ``sigma * Phi^-1(p)``; ``uniform`` and ``laplace`` are for L1 (`SmoothingNoise` has
    the radii of all norms). ``sigma`` is the standard deviation of every noise. A radius is wrong with probability at
    most ``failure_probability`` per example; with ``family`` examples, all of them hold together but with this
    probability, because each is given an equal share (Bonferroni). The paper uses n0 = 100, n = 100_000 and 0.001;
    n = 10_000 lowers the largest possible radius from 3.81 to 3.20 sigma.

    ``mode`` says when counting ends, and each keeps ``failure_probability`` with every early end:

    - ``fixed``: CERTIFY as published, always n samples; for radii that are compared with older tables.
    - ``staged``: Clopper-Pearson bounds at looks that are 1.25 times apart; an example is done when its remaining
      samples would not lift it to a further radius of ``grid``. Accuracies there stay; the radii are not as large as
      they could be in between, and so is their average. ``grid`` is by default the one that the suite prints: L2
      0, 0.25, ..., 4; L1 0, 0.5, ..., 4; Linf 0, 1/255, ..., 0.4. The threat model's eps is always on it.
    - ``radius``: decides eps alone, with exact boundaries; other radii are not looked at.
    - ``anytime``: a betting confidence sequence, stopped as ``staged``: fewer samples, slightly smaller radii.

    ``futility`` is how unlikely a success may get before samples are saved on it; it costs accuracy, never truth.
    ``batch`` rows go through the network at once, always the same number. ``precision`` ``bf16`` certifies another
    base classifier, the network in bfloat16, and `subject` is that one. The statement is about the smoothed classifier
    in exact arithmetic of the noise; noise added in float32 is not accounted for.
    """

    sigma: float
    n0: int = 100
    n: int = 10_000
    failure_probability: float = 0.001
    batch: int = 1000
    noise: str = "gaussian"
    mode: str = "staged"
    grid: tuple[float, ...] = ()
    futility: float = 0.001
    family: int = 1
    precision: str = "float32"

    def __post_init__(self) -> None:
        check_sampling(self.sigma, self.failure_probability, self.n0, self.n, self.batch)
        if self.n0 > self.n:
            raise UsageError(f"smoothing needs n0 <= n, got n0={self.n0} and n={self.n}.")
        noise_named(self.noise)
        for name, value, known in (("mode", self.mode, _MODES), ("precision", self.precision, _PRECISIONS)):
            if value not in known:
                raise UsageError(f"smoothing knows the {name} {', '.join(known)}, not '{value}'.")
        if not 0 < self.futility < 1:
            raise UsageError(f"futility must lie between 0 and 1, got {self.futility}; 0.001 is the default.")
        if self.family < 1 or not all(np.isfinite(r) and r >= 0 for r in self.grid):
            raise UsageError(f"smoothing needs family >= 1 and radii >= 0, got {self.family} and {self.grid}.")
        object.__setattr__(self, "cost", (self.n0 + self.n, 0))

    def certify(
        self, model: Classifier, x: Tensor, y: Tensor, threat: ThreatModel, noise: ExampleNoise
    ) -> Certificates:
        """Radii of the smoothed classifier, and the samples that each took; an abstention has class -1 and radius 0.

        ``model`` is the base classifier or a `SmoothedClassifier` of the same noise, sigma and precision. Raises
        `UsageError` otherwise, and when there are more examples than ``family`` (above 1) was told; `ContractError`
        when the network's votes depend on each other.
        """
        del y
        base, kind = self._base(model), noise_named(self.noise)
        if 1 < self.family < len(x):
            raise UsageError(f"family={self.family}, but {len(x)} examples are to be certified; give their number.")
        check_independence(base, x)
        stop = GridStop(self._bounds(x[0].numel(), threat), self._tails(x[0].numel(), threat), self.futility, len(x))
        select = count_votes(base, x, noise.child("select"), self.sigma, self.n0, self.batch, kind=kind)
        chosen = select.argmax(1)
        estimate = noise.child("estimate")
        used = poll(base, x, estimate, self.sigma, chosen, stop.bounds.times, stop, self.batch, kind=kind)
        radius = torch.from_numpy(self._radii(stop.best, x[0].numel(), threat)).to(x.device)
        forward, votes = torch.from_numpy(used + self.n0), Votes(chosen.cpu().numpy(), used, stop.votes)
        return Certificates(radius, chosen.where(radius > 0, -1), self._guarantee(), forward, votes)

    def p_values(
        self, votes: Votes, radii: Sequence[float], threat: ThreatModel, input_shape: Sequence[int]
    ) -> NDArray[np.float64]:
        """From the votes at the look that ended the count; with ``mode`` radius, 1 beyond eps."""
        pixels = math.prod(input_shape)
        bounds = self._bounds(pixels, threat)
        tails = self._edges(radii, threat, pixels)
        found = np.ones((len(votes.samples), len(radii)))
        for look in np.flatnonzero(np.isin(bounds.times, votes.samples)).tolist():
            rows = votes.samples == bounds.times[look]
            found[rows] = bounds.p_values(votes.votes[rows], look, tails)
        return found

    def unsupported(self, model: Classifier, threat: ThreatModel) -> str | None:
        """With ``mode`` radius: an eps that no votes of n samples could prove."""
        pixels = math.prod(model.input_shape)
        if self.mode != "radius" or self._bounds(pixels, threat).votes_needed(self._tails(pixels, threat))[0] <= self.n:
            return None
        return f"no votes of n={self.n} samples prove {threat} under {self.noise} noise of sigma={self.sigma}: raise n."

    def subject(self, model: Classifier) -> Classifier:
        """The smoothed classifier, with this noise; an already smoothed model of this noise stays as it is."""
        base = self._base(model)
        if isinstance(model, SmoothedClassifier):
            return model
        return SmoothedClassifier(
            base,
            sigma=self.sigma,
            n=min(self.n, _PREDICT_SAMPLES),
            failure_probability=self.failure_probability,
            batch=self.batch,
            noise=self.noise,
        )

    def _base(self, model: Classifier) -> Classifier:
        if not isinstance(model, SmoothedClassifier):
            return model.attacking("bf16" if self.precision == "bf16" else "float32")
        mine = (self.noise, self.sigma, self.precision)
        others = (model.kind.name, model.sigma, model.precision)
        if mine != others:
            raise UsageError(
                "the certifier smooths with noise={}, sigma={}, precision={}, the model with noise={}, sigma={}, "
                "precision={}: these are two classifiers. Give both the same.".format(*mine, *others)
            )
        return model.base

    def _bounds(self, pixels: int, threat: ThreatModel) -> LookBounds:
        tail = float(self._tails(pixels, threat)[0]) if self.mode == "radius" else 0.0
        return _cached_bounds(self.mode, self.n, self.failure_probability / self.family, tail)

    def _tails(self, pixels: int, threat: ThreatModel) -> Floats:
        """What ``1 - p`` must be bounded by for each radius of the grid, descending; radius 0 needs p > 1/2."""
        grid = self.grid or tuple(float(Eps.parse(text)) for text in GRID[threat.norm])
        radii = [threat.radius] if self.mode == "radius" else sorted({threat.radius, *grid})
        return self._edges(radii, threat, pixels)

    def _edges(self, radii: Sequence[float], threat: ThreatModel, pixels: int) -> Floats:
        return np.minimum(noise_named(self.noise).tail(radii, self.sigma, threat.norm, pixels), np.nextafter(0.5, 0))

    def _radii(self, tails: Floats, pixels: int, threat: ThreatModel) -> Floats:
        if self.mode == "radius":
            return np.where(tails < 0.5, threat.radius, 0.0)
        return noise_named(self.noise).radius(tails, self.sigma, threat.norm, pixels)

    def _guarantee(self) -> str:
        text = f"confidence {1 - Decimal(repr(self.failure_probability)):f}"
        return text if self.family == 1 else f"{text} for all {self.family} examples together"


@lru_cache(maxsize=16)
def _cached_bounds(mode: str, n: int, failure_probability: float, tail: float) -> LookBounds:
    return make_bounds(mode, n, failure_probability, tail)

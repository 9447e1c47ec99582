"""Soft smoothing: the expectation, under Gaussian noise, of a point of the probability simplex made from the logits."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from robustsuite.errors import UsageError
from robustsuite.models.averaged import Averaged, SampledClassifier
from robustsuite.models.classifier import Classifier
from robustsuite.models.confidence import Floats, leading
from robustsuite.models.smoothed import check_sampling
from robustsuite.models.smoothing_noises import GAUSSIAN
from robustsuite.noise import ExampleNoise

Simplex = Callable[[Tensor], Tensor]

# Scores are rounded down to multiples of this, so that their sums are sums of integers: exact, in any order and on any
# device. 2^20 levels leave room for the squares of 2^22 samples.
_LEVELS = 2**20


def sparsemax(z: Tensor) -> Tensor:
    """Projection of every row of ``z`` ``[N,K]`` onto the simplex (Martins and Astudillo 2016, algorithm 1)."""
    ordered = z.sort(1, descending=True).values
    count = torch.arange(1, z.shape[1] + 1, device=z.device)
    sums = ordered.cumsum(1)
    support = (1 + count * ordered > sums).sum(1, keepdim=True).clamp(min=1)  # NaN rows have none
    threshold = (sums.gather(1, support - 1) - 1) / support
    return (z - threshold).clamp(min=0)


def hardmax(z: Tensor) -> Tensor:
    """1 for the largest entry of every row, 0 elsewhere; NaN rows vote for no class."""
    votes = F.one_hot(z.argmax(1), z.shape[1]).float()
    return votes.masked_fill(z.isnan().any(1, keepdim=True), 0)


SIMPLEX_MAPS: dict[str, Simplex] = {
    "softmax": partial(torch.softmax, dim=1),
    "sparsemax": sparsemax,
    "hardmax": hardmax,
}


class SoftSmoothedClassifier(SampledClassifier):
    """``g(x)`` = the class with the largest ``F_c(x) = E[t_c(base(x + N(0, sigma^2 I)) / temperature)]``.

    t is ``simplex``: softmax, sparsemax or hardmax (which is Cohen's majority vote), rounded down to 20 bits. `decide`
    takes ``n`` samples and may abstain (`leading`). Attacks see the mean of softmax whatever t is, because sparsemax
    and hardmax have no gradient where they are saturated.
    """

    def __init__(
        self,
        base: Classifier,
        *,
        sigma: float,
        simplex: str = "softmax",
        temperature: float = 1.0,
        n: int = 1000,
        failure_probability: float = 0.001,
        m: int = 16,
        seed: int = 0,
        batch: int = 1000,
    ) -> None:
        check_sampling(sigma, failure_probability, n, m, batch)
        check_simplex(simplex, temperature)
        surrogate = Averaged(base.module, base.input_shape, sigma=sigma, m=m, seed=seed, temperature=temperature)
        super().__init__(base, surrogate, per_decision=n, per_evaluation=m)
        self.sigma, self.simplex, self.temperature = sigma, simplex, temperature
        self.n, self.failure_probability, self.batch = n, failure_probability, batch

    def moments(self, x: Tensor, noise: ExampleNoise, n: int) -> tuple[Floats, Floats]:
        """Means and sample variances (divisor n - 1) of the scores of ``n`` samples, ``[N,K]`` each."""
        sums, squares = (t.cpu().numpy().astype(np.float64) for t in self._sums(x, noise, n))
        means = sums / (n * _LEVELS)
        variances = (squares / _LEVELS**2 - n * means**2) / max(n - 1, 1)
        return means, np.maximum(variances, 0.0)

    def decide(self, x: Tensor, noise: ExampleNoise) -> tuple[Tensor, Tensor]:
        """The class int64 ``[N]`` or -1, and the log of its mean score, slightly evened out, ``[N,K]``."""
        means, _ = self.moments(x, noise.child("predict"), self.n)
        predicted = torch.from_numpy(leading(means, self.n, self.failure_probability))
        scores = np.log((self.n * means + 0.5) / (self.n + 0.5 * self.num_classes))
        return predicted.to(x.device), torch.from_numpy(scores).float().to(x.device)

    def _sums(self, x: Tensor, noise: ExampleNoise, n: int) -> tuple[Tensor, Tensor]:
        """Sums of the scores and of their squares, in levels, int64 ``[N,K]``; sampled as `count_votes` does."""
        rows = x.shape[0] * n
        sums, squares = torch.zeros(2, x.shape[0], self.num_classes, dtype=torch.int64, device=x.device)
        network, simplex = self._part(self.base.module), SIMPLEX_MAPS[self.simplex]
        for start in range(0, rows, self.batch):
            flat = torch.arange(start, start + self.batch, device=x.device).clamp(max=rows - 1)
            example, draw = flat // n, flat % n
            keyed = ExampleNoise(noise.noise, noise.ids.to(x.device)[example])
            logits = network.logits(torch.add(x[example], GAUSSIAN.sample(keyed, x.shape[1:], draw), alpha=self.sigma))
            scores = simplex(logits / self.temperature).nan_to_num(0).clamp(0, 1)
            levels = (scores * _LEVELS).floor().long()[: rows - start]
            sums.index_add_(0, example[: rows - start], levels)
            squares.index_add_(0, example[: rows - start], levels**2)
        return sums, squares


def check_simplex(simplex: str, temperature: float) -> None:
    """Raise `UsageError` for an unknown map or a temperature that is not positive."""
    if simplex not in SIMPLEX_MAPS:
        raise UsageError(f"simplex must be one of {', '.join(SIMPLEX_MAPS)}, got '{simplex}'.")
    if not 0 < temperature < float("inf"):
        raise UsageError(f"temperature must be positive, got {temperature}; 1 leaves the logits as they are.")

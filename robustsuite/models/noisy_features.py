"""Classifiers with noise on the outputs of their internal layers."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustsuite.models.bpda import around
from robustsuite.models.classifier import Classifier
from robustsuite.models.hooks import check_layers, hooked
from robustsuite.models.keyed import Draws, KeyedClassifier
from robustsuite.noise import Noise


class NoisyFeatures(nn.Module):
    """``network(x)`` with ``sigma N(0,1)`` added to the output of every layer in ``layers``, drawn anew in each pass.

    With ``relative`` the noise is in units of the standard deviation of the row's own outputs at that layer.
    """

    def __init__(self, network: nn.Module, layers: Sequence[str], sigma: float, relative: bool, source: Draws) -> None:
        super().__init__()
        check_layers(network, layers)
        self.network, self.layers, self.source = network, tuple(layers), source
        self.sigma, self.relative = sigma, relative

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N,K]``."""
        if self.sigma == 0:
            return self.network(x)
        noise, calls = self.source.rows(x), Counter[str]()

        def add(name: str, output: Tensor) -> Tensor:
            drawn = noise.child(f"layer/{name}").normal(output.shape[1:], calls[name]).to(output)
            calls[name] += 1
            return output + self.sigma * drawn * (self._spread(output) if self.relative else 1)

        with hooked(self.network, self.layers, add):
            return self.network(x)

    def _spread(self, output: Tensor) -> Tensor:
        spread = output.detach().flatten(1).std(1, correction=0)
        return spread.view(-1, *[1] * (output.ndim - 1))


class NoisyFeatureClassifier(KeyedClassifier):
    """`NoisyFeatures` of a plain network; `unwrap` gives the network back. No hook outlives a pass."""

    def __init__(
        self, base: Classifier, layers: Sequence[str], sigma: float, *, relative: bool, eot: int, draws: int
    ) -> None:
        source = Draws()
        made = around(base, NoisyFeatures(base.module, layers, sigma, relative, source), base.facts.differentiable)
        super().__init__(made, source, eot=eot, draws=draws)
        self.base, self.layers, self.sigma, self.relative = base, tuple(layers), sigma, relative

    def unwrap(self) -> Classifier:
        """The network without noise: the very classifier that was wrapped."""
        return self.base

    def accuracy(self, x: Tensor, y: Tensor, noise: Noise) -> float:
        """The expected share of right answers over the draws, each of which counts by itself."""
        votes, _ = self.votes(x, noise)
        return float(votes.gather(1, y.view(-1, 1)).double().mean()) / self.draws


def largest_sigma(
    base: Classifier, layers: Sequence[str], x: Tensor, y: Tensor, *, relative: bool, drop: float, draws: int, seed: int
) -> float:
    """The largest sigma of a grid (0.01 to 1, 10 a factor of ten) up to which accuracy falls by at most ``drop``.

    Accuracies are expectations over ``draws`` draws, the same for every sigma; the first that falls too far ends the
    search, so that a smaller sigma is never worse. 0 where the least is too much.
    """
    wanted = float((base.logits(x).argmax(1) == y).double().mean()) - drop
    found = 0.0
    for sigma in (10 ** (torch.arange(21) / 10 - 2)).tolist():
        noisy = NoisyFeatureClassifier(base, layers, sigma, relative=relative, eot=1, draws=draws)
        if noisy.accuracy(x, y, Noise(seed, "calibrate")) < wanted:
            break
        found = sigma
    return found

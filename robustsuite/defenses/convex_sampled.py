"""The sampled convex program: neurons drawn at random and left alone, their output weights the only unknowns."""

import torch
from torch import Tensor

from robustsuite.defenses.admm import Blocks, Split, admm
from robustsuite.defenses.convex_program import Loss
from robustsuite.defenses.convex_prox import lower_loss
from robustsuite.noise import Noise


def sample_neurons(count: int, size: int, noise: Noise) -> Tensor:
    """Directions ``[count,size]``, float64, uniform on the unit sphere."""
    drawn = noise.child("neurons").at(torch.arange(count)).normal((size,)).double()
    return drawn / drawn.norm(dim=1, keepdim=True)


def solve_sampled(
    features: Tensor, y: Tensor, loss: Loss, beta: float, *, steps: int = 4000, tolerance: float = 1e-6
) -> Tensor:
    """The weights a ``[m]`` that minimise ``mean_k loss(features_k . a, y_k) + beta |a|_1``, by ADMM.

    ``features`` are ``(rows_k . u_i)_+``, float64 ``[n,m]``, ``y`` -1 or 1. Source: Bai, Gautam, Sojoudi 2023,
    arXiv:2201.01965, section 3.3.
    """
    start = features.new_zeros(features.shape[1])
    split, penalty = SampledSplit(features, y, loss, beta), 1 / len(y)
    return admm(split, [start], penalty=penalty, steps=steps, tolerance=tolerance)[1]


class SampledSplit(Split):
    """Blocks: the answers, which have the loss, and the weights, which have the penalty."""

    def __init__(self, features: Tensor, y: Tensor, loss: Loss, beta: float) -> None:
        self.features, self.y, self.beta = features, y, beta
        self.loss: Loss = loss
        self.factor = torch.linalg.cholesky(torch.eye(features.shape[1]).to(features) + features.T @ features)

    def rows(self, x: Blocks) -> list[Tensor]:
        """See `Split`."""
        return [self.features @ x[0], x[0]]

    def fit(self, z: Blocks) -> list[Tensor]:
        """See `Split`."""
        return [torch.cholesky_solve((self.features.T @ z[0] + z[1]).unsqueeze(1), self.factor).squeeze(1)]

    def lower(self, z: Blocks, rate: float) -> list[Tensor]:
        """See `Split`."""
        one = torch.ones_like(self.y).unsqueeze(1)
        share = rate / len(self.y)
        answers = lower_loss(self.loss, z[0].unsqueeze(1), one, torch.zeros_like(one), self.y, share).squeeze(1)
        return [answers, z[1] - z[1].clamp(-rate * self.beta, rate * self.beta)]

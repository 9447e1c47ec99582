"""The soft smoothed classifier over noise that is held fixed for a training step."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustsuite.models.classifier import Passes


def mean_log_softmax(logits: Sequence[Tensor]) -> Tensor:
    """``log((1/m) sum_i softmax(logits_i))``, ``[B,K]`` from m tensors ``[B,K]``; no logarithm of zero on the way."""
    return torch.stack([draw.log_softmax(1) for draw in logits]).logsumexp(0) - math.log(len(logits))


class SoftSmoothed(nn.Module):
    """``log((1/m) sum_i softmax(net(x + noise_i)))``, for inner maximisation to attack; a log-probability is a logit.

    Salman et al. 2019 (SmoothAdv): the attack's gradient is that of the mean probability, not the mean of gradients.
    ``noise`` are m tensors shaped like the batch, so that every example keeps noise of its own. The m - 1 passes that
    the caller cannot see are counted in ``passes``.
    """

    def __init__(self, net: nn.Module, noise: Sequence[Tensor], passes: Passes) -> None:
        super().__init__()
        self.net, self.noise, self.passes = net, noise, passes

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities ``[B,K]`` of ``x``; ``m B`` rows in one pass."""
        hidden = (len(self.noise) - 1) * len(x)
        self.passes.forward += hidden
        self.passes.backward += hidden if torch.is_grad_enabled() else 0
        return mean_log_softmax(self.net(torch.cat([x + draw for draw in self.noise])).chunk(len(self.noise)))

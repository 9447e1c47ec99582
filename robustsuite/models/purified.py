"""Diffusion purification: images noised by a diffusion process and taken back by its reverse equation."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robustsuite.errors import ContractError
from robustsuite.models.keyed import Draws

BETA_MIN, BETA_MAX = 0.1, 20.0


def beta(t: float) -> float:
    """The rate of the variance-preserving process at the time t in [0,1]: 0.1 to 20, linear (Song et al. 2021)."""
    return BETA_MIN + t * (BETA_MAX - BETA_MIN)


def signal_share(t: float) -> float:
    """The share of an image's variance that is left at t: ``exp(-integral of beta)``."""
    return math.exp(-BETA_MIN * t - (BETA_MAX - BETA_MIN) * t**2 / 2)


class GaussianScore(nn.Module):
    """The score of images whose pixels are ``N(mean, scale^2)``, exactly: ``(sqrt(a) mean - x) / (a scale^2 + 1 - a)``.

    In units of images in [-1,1], with a the `signal_share`. The one data set whose purification is known in closed
    form; as a denoiser of real images it only draws all pixels towards the mean.
    """

    def __init__(self, mean: float = 0.0, scale: float = 0.5) -> None:
        super().__init__()
        self.mean, self.scale = mean, scale

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Scores ``[N,C,H,W]`` at the times ``[N]``; all rows have one time."""
        kept = signal_share(float(t[0]))
        return (math.sqrt(kept) * self.mean - x) / (kept * self.scale**2 + 1 - kept)


class NoiseScore(nn.Module):
    """The score that a predictor of the unit noise implies: ``-noise(x, scale t) / sqrt(1 - a)``.

    Further output channels (learned variances) are dropped. ``scale`` is what the network's own time is at t = 1: 999
    for Song's networks, 1000 for most others.
    """

    def __init__(self, predictor: nn.Module, scale: float) -> None:
        super().__init__()
        self.predictor, self.scale = predictor, scale

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Scores ``[N,C,H,W]`` at the times ``[N]``; all rows have one time."""
        noise = self.predictor(x, self.scale * t)[:, : x.shape[1]]
        return -noise / math.sqrt(1 - signal_share(float(t[0])))


class Purifier(nn.Module):
    """Forward to the time ``until`` in one step, back to 0 in ``steps`` Euler-Maruyama steps of the reverse SDE.

    ``dx = -beta/2 (x + 2 score) dt + sqrt(beta) dw`` backwards in time. Images are in [0,1] outside and in [-1,1]
    inside. Where a gradient is asked for, every step is computed again on the way back instead of being kept, and the
    draws are those of ``source`` both times. Raises `ContractError` when the score has another shape than the images.
    """

    def __init__(self, score: Callable[[Tensor, Tensor], Tensor], until: float, steps: int, source: Draws) -> None:
        super().__init__()
        self.score, self.until, self.steps, self.source = score, until, steps, source

    def forward(self, x: Tensor) -> Tensor:
        """Purified images ``[N,C,H,W]``, not clipped."""
        if self.until == 0:
            return x
        noise, kept = self.source.rows(x).child("purify"), signal_share(self.until)
        z = math.sqrt(kept) * (2 * x - 1) + math.sqrt(1 - kept) * noise.normal(x.shape[1:])
        for step in range(self.steps):
            drawn = noise.normal(x.shape[1:], step + 1)
            if torch.is_grad_enabled() and z.requires_grad:
                made = checkpoint(self._back, z, drawn, step, use_reentrant=False, preserve_rng_state=False)
                assert isinstance(made, Tensor)
                z = made
            else:
                z = self._back(z, drawn, step)
        return (z + 1) / 2

    def _back(self, z: Tensor, drawn: Tensor, step: int) -> Tensor:
        dt = self.until / self.steps
        t = self.until - step * dt
        score = self.score(z, torch.full((z.shape[0],), t, device=z.device, dtype=z.dtype))
        if score.shape != z.shape:
            raise ContractError(f"a score must have its image's shape {list(z.shape)}, got {list(score.shape)}.")
        return z + dt * beta(t) * (z / 2 + score) + math.sqrt(beta(t) * dt) * drawn

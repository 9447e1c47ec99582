"""Noises that smooth a classifier, and the radius that a bound of the top class's probability proves under each.

Every noise has independent pixels with mean 0 and standard deviation sigma, so that noises compare at one sigma (the
convention of Yang et al. 2020, "Randomized Smoothing of All Shapes and Sizes"). Radii are written in ``tail = 1 - p``,
which keeps the digits that p close to 1 would lose. Where a norm has no bound of its own, norms are compared:
``|d|_2 <= |d|_1 <= sqrt(D) |d|_2`` and ``|d|_1 <= D |d|_inf`` for D pixels.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm as gaussian
from torch import Tensor

from robustsuite.errors import UsageError
from robustsuite.models.wide_philox import WORDS, words
from robustsuite.noise import ExampleNoise
from robustsuite.threat import Norm

Floats = NDArray[np.float64]


class SmoothingNoise(ABC):
    """A distribution of noise: its samples, and what it certifies."""

    name: ClassVar[str]

    def sample(self, noise: ExampleNoise, shape: Sequence[int], draw: int | Tensor = 0) -> Tensor:
        """float32 ``[N, *shape]`` with mean 0 and standard deviation 1; ``draw``: an int or int64 ``[N]``.

        Row i depends on ids[i], its draw and the shape alone; another kind of device may move the last bits.
        """
        count = math.prod(shape)
        out = torch.empty(len(noise.ids), -(-count // WORDS) * WORDS, device=noise.ids.device)
        for rows, bits in words(noise, count, draw):
            self._fill(out[rows], bits)
        return out[:, :count].reshape(-1, *shape)

    @abstractmethod
    def _fill(self, out: Tensor, bits: Tensor) -> None:
        """Write float32 samples to ``out`` ``[rows, columns]`` from as many words, int32; columns are even."""

    @abstractmethod
    def _radius(self, tail: Floats, sigma: float, norm: Norm, pixels: int) -> Floats:
        """The radius for ``tail < 1/2``."""

    @abstractmethod
    def _tail(self, radius: Floats, sigma: float, norm: Norm, pixels: int) -> Floats:
        """The inverse of `_radius`; 0 or below beyond every radius."""

    def radius(self, tail: ArrayLike, sigma: float, norm: Norm, pixels: int) -> Floats:
        """Radii, in ``norm``, of images with so many pixels; 0 where ``tail`` is 1/2 or more."""
        tail = np.asarray(tail, dtype=np.float64)
        return np.where(tail < 0.5, self._radius(np.minimum(tail, 0.5), sigma, norm, pixels), 0.0)

    def tail(self, radius: ArrayLike, sigma: float, norm: Norm, pixels: int) -> Floats:
        """The largest ``tail`` that proves a radius: 1/2 at 0, and 0 for one that nothing proves."""
        return np.maximum(self._tail(np.asarray(radius, dtype=np.float64), sigma, norm, pixels), 0.0)


class Gaussian(SmoothingNoise):
    """L2: ``sigma * Phi^-1(p)`` (Cohen et al. 2019, theorem 1); no other radius is possible from p alone."""

    name = "gaussian"

    def _fill(self, out: Tensor, bits: Tensor) -> None:
        """Box-Muller; |z| is at most 6.7."""
        half = bits.shape[1] // 2
        radius = _unit(bits[:, :half].float()).log_().mul_(-2).sqrt_()
        angle = bits[:, half:].float().mul_(math.pi * 2.0**-31)
        torch.mul(radius, angle.cos(), out=out[:, :half])
        torch.mul(radius, angle.sin_(), out=out[:, half:])

    def _radius(self, tail: Floats, sigma: float, norm: Norm, pixels: int) -> Floats:
        return sigma * gaussian.isf(tail) / self._factor(norm, pixels)

    def _tail(self, radius: Floats, sigma: float, norm: Norm, pixels: int) -> Floats:
        return gaussian.sf(radius * self._factor(norm, pixels) / sigma)

    @staticmethod
    def _factor(norm: Norm, pixels: int) -> float:
        return math.sqrt(pixels) if norm == "Linf" else 1.0


class Uniform(SmoothingNoise):
    """On ``[-l, l]``, ``l = sqrt(3) sigma``. L1: ``2 l (p - 1/2)``; Linf: ``2 l (1 - (3/2 - p)^(1/D))``.

    A shift by d leaves the share ``prod_i (1 - |d_i| / 2l)`` of the cube inside, which is at least ``1 - |d|_1 / 2l``
    and at least ``(1 - |d|_inf / 2l)^D`` (Lee et al. 2019; Yang et al. 2020, table 1).
    """

    name = "uniform"

    def _fill(self, out: Tensor, bits: Tensor) -> None:
        """32 bits, rounded once."""
        out.copy_(bits).mul_(math.sqrt(3) * 2.0**-31)

    def _radius(self, tail: Floats, sigma: float, norm: Norm, pixels: int) -> Floats:
        width = 2 * math.sqrt(3) * sigma
        if norm == "Linf":
            return -width * np.expm1(np.log1p(tail - 0.5) / pixels)
        return width * (0.5 - tail) / (math.sqrt(pixels) if norm == "L2" else 1.0)

    def _tail(self, radius: Floats, sigma: float, norm: Norm, pixels: int) -> Floats:
        share = np.minimum(radius / (2 * math.sqrt(3) * sigma), 1.0)
        if norm == "Linf":
            return (1 - share) ** pixels - 0.5
        return 0.5 - share * (math.sqrt(pixels) if norm == "L2" else 1.0)


class Laplace(SmoothingNoise):
    """Density ``exp(-|z| / l) / 2l``, ``l = sigma / sqrt(2)``. L1: ``-l log(2 (1 - p))`` (Teng et al. 2020).

    A shift by d changes the density by a factor of at most ``exp(|d|_1 / l)``, and so the probability of the other
    classes.
    """

    name = "laplace"

    def _fill(self, out: Tensor, bits: Tensor) -> None:
        """A sign and an exponential of 31 bits; below 15.7."""
        signed = bits.float()
        torch.copysign(_unit(signed.clone()).log_().mul_(-math.sqrt(0.5)), signed, out=out)

    def _radius(self, tail: Floats, sigma: float, norm: Norm, pixels: int) -> Floats:
        with np.errstate(divide="ignore"):
            return -math.sqrt(0.5) * sigma * np.log(2 * tail) / self._factor(norm, pixels)

    def _tail(self, radius: Floats, sigma: float, norm: Norm, pixels: int) -> Floats:
        return 0.5 * np.exp(-radius * self._factor(norm, pixels) * math.sqrt(2) / sigma)

    @staticmethod
    def _factor(norm: Norm, pixels: int) -> float:
        return {"L1": 1.0, "L2": math.sqrt(pixels), "Linf": float(pixels)}[norm]


def _unit(words: Tensor) -> Tensor:
    """In place, signed words to uniform numbers in (0, 1]: their 31-bit sizes keep all digits near 0."""
    return words.abs_().clamp_(min=0.5).mul_(2.0**-31)


GAUSSIAN = Gaussian()
NOISES: dict[str, SmoothingNoise] = {noise.name: noise for noise in (GAUSSIAN, Uniform(), Laplace())}


def noise_named(name: str) -> SmoothingNoise:
    """The noise called ``name``; raises `UsageError` for an unknown one."""
    if name not in NOISES:
        raise UsageError(f"no smoothing noise '{name}'; there are {', '.join(NOISES)}.")
    return NOISES[name]

"""Boxes, and the outward rounding that makes them hold for the network as float32 executes it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, overload

import torch
from torch import Tensor

UNIT_FLOAT32 = 2.0**-24
# Smallest normal float32: a result below it may be rounded or flushed to zero with an absolute error of that size.
TINY = torch.finfo(torch.float32).tiny
HUGE = torch.finfo(torch.float32).max
# The bounds are themselves computed in float64, whose own error on n terms is n * 1.1e-16 of the same magnitude.
_OWN_ERROR = 1e-9
_OWN_ROUNDINGS = 8  # of a sum of two terms and the ends of its box, where they are computed in float32


@dataclass(frozen=True)
class Box:
    """An interval for every element: `lower` and `upper` of one shape ``[N, ...]``."""

    lower: Tensor
    upper: Tensor

    @property
    def center(self) -> Tensor:
        """Midpoint of every interval."""
        return (self.lower + self.upper).mul_(0.5)

    @property
    def radius(self) -> Tensor:
        """Half the width of every interval."""
        return (self.upper - self.lower).mul_(0.5)

    @property
    def magnitude(self) -> Tensor:
        """Largest absolute value within every interval."""
        return self.lower.abs().maximum(self.upper.abs())


@overload
def gamma(roundings: int) -> float: ...
@overload
def gamma(roundings: Tensor) -> Tensor: ...
def gamma(roundings: int | Tensor) -> float | Tensor:
    """``n u / (1 - n u)`` of float32, infinite from ``n u = 1/2`` on; a tensor of numbers gives one of float32."""
    if isinstance(roundings, Tensor):
        n = roundings.double() * UNIT_FLOAT32
        return (n / (1 - n)).masked_fill(n >= 0.5, float("inf")).float()
    n = roundings * UNIT_FLOAT32
    return n / (1 - n) if n < 0.5 else float("inf")


@dataclass(frozen=True)
class Rounding:
    """How far an execution in the arithmetic with this unit roundoff may stray from the exact result (0: not at all).

    Every operator gives the number of roundings that a result can go through, and the sum of the absolute values of
    what it adds up. The error is then at most ``gamma_n * magnitude``, ``gamma_n = n u / (1 - n u)``, for every order
    of summation, with or without fused multiply-add (Higham, "Accuracy and Stability of Numerical Algorithms", 3.1).
    Winograd and FFT convolutions (cudnn and NNPACK may choose them) are not covered; nor are TF32 and autocast, which
    `Classifier` turns off.
    """

    unit: float
    noting: ClassVar[bool] = False  # whether `note` wants to be told

    @property
    def active(self) -> bool:
        """Whether boxes are widened at all."""
        return self.unit > 0

    def note(self, roundings: int | Tensor, magnitude: Tensor) -> None:
        """Told, where `noting`, what `error` would be given, by operators that charge it in a way of their own."""

    def error(self, roundings: int | Tensor, magnitude: Tensor) -> Tensor:
        """Bound of the execution error; infinite where float32 could overflow.

        ``roundings`` is a number, or as many numbers as broadcast over ``magnitude``.
        """
        n = torch.as_tensor(roundings * self.unit, dtype=magnitude.dtype, device=magnitude.device)
        error = (n / (1 - n) + _OWN_ERROR) * magnitude + roundings * TINY
        return error.masked_fill((magnitude > HUGE / 2) | (n >= 0.5), float("inf"))

    def widen(self, box: Box, roundings: int | Tensor, magnitude: Tensor) -> Box:
        """``box`` with the execution error added on both sides; as it is when there is none."""
        if not self.active:
            return box
        error = self.error(roundings, magnitude)
        return Box(box.lower - error, box.upper + error)

    def widen_sum(self, box: Box, roundings: int, terms: Sequence[Box]) -> Box:
        """``box`` of a sum of up to two terms, in these boxes, with the execution error ``gamma_n sum |term|`` added.

        In float32 each end is widened by the error at the ends of the terms (the sum less its error grows with every
        term), and by the roundings of doing so.
        """
        if not self.active:
            return box
        if box.lower.dtype == torch.float64:
            return self.widen(box, roundings, sum((t.magnitude for t in terms[1:]), terms[0].magnitude))
        if self.noting:
            self.note(roundings, sum((t.magnitude.double() for t in terms[1:]), terms[0].magnitude.double()))
        share, lost = gamma(roundings + _OWN_ROUNDINGS), (roundings + _OWN_ROUNDINGS) * TINY
        lower, upper = box.lower - lost, box.upper + lost
        for term in terms:
            lower.sub_(term.lower.abs(), alpha=share)
            upper.add_(term.upper.abs(), alpha=share)
        limit = HUGE / 4
        if bool((lower.amin() >= -limit) & (upper.amax() <= limit)):  # NaN is not
            return Box(lower, upper)
        unknown = ~((lower >= -limit) & (upper <= limit))
        return Box(lower.masked_fill_(unknown, -torch.inf), upper.masked_fill_(unknown, torch.inf))


@dataclass(frozen=True)
class Noting(Rounding):
    """A `Rounding` that remembers what it was asked for."""

    seen: list[tuple[int | Tensor, Tensor]] = field(default_factory=list)
    noting: ClassVar[bool] = True

    def note(self, roundings: int | Tensor, magnitude: Tensor) -> None:
        """Remember it."""
        self.seen.append((roundings, magnitude))

    def error(self, roundings: int | Tensor, magnitude: Tensor) -> Tensor:
        """As `Rounding.error`, remembered."""
        self.note(roundings, magnitude)
        return super().error(roundings, magnitude)


EXACT = Rounding(0.0)
FLOAT32 = Rounding(UNIT_FLOAT32)

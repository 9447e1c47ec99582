"""Threat models: the norm, eps as an exact fraction, and the only code that knows a norm's geometry.

Tensors are used through their methods alone, so that reading an eps (boards, records) imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Literal

from robustsuite.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

Norm = Literal["Linf", "L2", "L1"]
NORMS: tuple[Norm, ...] = ("Linf", "L2", "L1")
_SPELLINGS: dict[str, Norm] = {
    "linf": "Linf",
    "inf": "Linf",
    "l_inf": "Linf",
    "l2": "L2",
    "2": "L2",
    "l1": "L1",
    "1": "L1",
}

# x + delta is rounded to float32 once, so an exact eps may be exceeded by that much and no more.
RELATIVE_SLACK = 1e-6
ABSOLUTE_SLACK = 1e-7
_L2_ROUNDS = {True: 10, False: 32}  # by is_cuda: every round is feasible, and a GPU is not asked whether it is the last
_HUGE = re.compile(r"[eE][+-]?\d{4,}")


@dataclass(frozen=True)
class Eps:
    """A perturbation budget kept as a fraction: 8/255 is not 0.031."""

    fraction: Fraction

    @classmethod
    def parse(cls, value: str | float | Fraction | Eps) -> Eps:
        """Read ``8/255``, ``0.3`` or a number; raises `UsageError` when it is not a finite number >= 0."""
        if isinstance(value, Eps):
            return value
        if _HUGE.search(str(value)):  # Fraction("1e999999999") would build that number
            raise UsageError(f"eps '{value}' is out of range.")
        try:
            fraction = Fraction(repr(value) if isinstance(value, float) else str(value).replace(" ", ""))
        except (ValueError, ZeroDivisionError) as error:
            raise UsageError(f"eps '{value}' is not a number; write it like 8/255 or 0.3.") from error
        if fraction < 0:
            raise UsageError(f"eps must not be negative, got {value}.")
        return cls(fraction)

    def __float__(self) -> float:
        return float(self.fraction)

    def __str__(self) -> str:
        rest = self.fraction.denominator
        for prime in (2, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            text = f"{float(self.fraction):.15g}"
            return text if Fraction(text) == self.fraction else str(self.fraction)
        if 255 % self.fraction.denominator == 0:
            return f"{self.fraction.numerator * (255 // self.fraction.denominator)}/255"
        return str(self.fraction)


@dataclass(frozen=True)
class ThreatModel:
    """Perturbations delta with ``||delta||_norm <= eps`` and ``x + delta`` in [0,1].

    All methods take float tensors ``[N, ...]`` and act on each row alone.
    """

    norm: Norm
    eps: Eps

    @classmethod
    def parse(cls, text: str | ThreatModel) -> ThreatModel:
        """Read ``Linf:8/255``, ``L2:0.5``, ``L1:12``; raises `UsageError` otherwise."""
        if isinstance(text, ThreatModel):
            return text
        name, _, eps = text.partition(":")
        norm = _SPELLINGS.get(name.strip().lower())
        if norm is None or not eps:
            raise UsageError(f"threat model '{text}' is not NORM:EPS; write it like Linf:8/255, L2:0.5 or L1:12.")
        return cls(norm, Eps.parse(eps))

    def __str__(self) -> str:
        return f"{self.norm}:{self.eps}"

    @property
    def radius(self) -> float:
        """eps as a float."""
        return float(self.eps)

    def scaled(self, factor: float) -> ThreatModel:
        """The same norm with ``factor`` times eps, exactly."""
        return self if factor == 1 else ThreatModel(self.norm, Eps(self.eps.fraction * Eps.parse(factor).fraction))

    def norms(self, delta: Tensor) -> Tensor:
        """``||delta||`` of each row, float64 ``[N]``."""
        flat = delta.double().flatten(1)
        if self.norm == "Linf":
            return flat.abs().amax(1)
        return flat.pow(2).sum(1).sqrt() if self.norm == "L2" else flat.abs().sum(1)

    def distance(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """``||x_adv - x||`` of each row, the difference taken in float64, ``[N]``."""
        return self.norms(x_adv.double() - x.double())

    def contains(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Whether each row lies in ball and box, bool ``[N]``; NaN lies nowhere.

        The ball has a slack of ``1e-6 eps + 1e-7`` for the rounding of ``x + delta`` to float32; the box has none.
        """
        limit = self.radius * (1 + RELATIVE_SLACK) + ABSOLUTE_SLACK
        flat = x_adv.flatten(1)
        inside = (flat >= 0).all(1) & (flat <= 1).all(1)
        return inside & (self.distance(x, x_adv) <= limit)

    def project(self, x: Tensor, delta: Tensor) -> Tensor:
        """Euclidean projection of delta onto ball and box *together*, exact for each norm.

        The box is ``-x <= delta <= 1-x`` and holds 0, which makes the joint projection a one-parameter problem
        (Linf: two clamps; L2: ``clip(t delta)``; L1: ``clip`` of a soft threshold). No gradient flows through it.
        """
        delta = delta.detach()
        if self.norm == "Linf":
            return delta.clamp(-self.radius, self.radius).maximum(-x).minimum(1 - x)
        size = delta.abs()
        room = x.where(delta < 0, 1 - x)  # how far each coordinate may move in its direction
        flat_size, flat_room = size.flatten(1), room.flatten(1).clamp(min=0)
        kept = self._shrink_l2(flat_size, flat_room) if self.norm == "L2" else self._shrink_l1(flat_size, flat_room)
        return kept.to(delta.dtype).view_as(delta) * delta.sign()

    def projector(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """`project` around fixed images, for loops: of Linf the bounds are made once, and one clamp is left."""
        if self.norm != "Linf":
            return partial(self.project, x)
        lower, upper = (-x).clamp(min=-self.radius), (1 - x).clamp(max=self.radius)
        return lambda delta: delta.detach().clamp(lower, upper)

    def _shrink_l2(self, size: Tensor, room: Tensor) -> Tensor:
        """``min(t size, room)`` with the largest t <= 1 whose norm is at most eps.

        A coordinate saturates when t size > room. Starting with none saturated, t only grows and so does the set;
        every iterate is inside the ball, and the fixed point is the exact projection.
        """
        size, room = size.double(), room.double()
        budget = self.radius**2
        saturated = size.new_zeros(size.shape).bool()
        scale = size[:, :1]
        for _ in range(_L2_ROUNDS[size.is_cuda]):
            free = size.masked_fill(saturated, 0).pow(2).sum(1, keepdim=True)
            spent = room.masked_fill(~saturated, 0).pow(2).sum(1, keepdim=True)
            scale = ((budget - spent).clamp(min=0) / free.clamp(min=1e-300)).sqrt().clamp(max=1)
            grown = size * scale > room
            if not size.is_cuda and bool((grown == saturated).all()):  # on a GPU asking would cost a sync
                break
            saturated = grown
        return (size * scale).minimum(room)

    def _shrink_l1(self, size: Tensor, room: Tensor) -> Tensor:
        """``min(max(size - t, 0), room)`` with the smallest t >= 0 whose sum is at most eps.

        The sum is piecewise linear in t with breakpoints at size (weight +1) and size - room (weight -1).
        """
        import torch

        size, room = size.double(), room.double()
        points = torch.cat([size, size - room], 1)
        weights = torch.cat([torch.ones_like(size), -torch.ones_like(size)], 1)
        points, order = points.sort(1, descending=True)
        weights = weights.gather(1, order)
        slope, mass = weights.cumsum(1), (weights * points).cumsum(1)
        total = mass - points * slope  # the sum at t = each breakpoint, rising along the row
        index = (total < self.radius).sum(1, keepdim=True).clamp(max=points.shape[1] - 1)
        before = (index - 1).clamp(min=0)
        threshold = (mass.gather(1, before) - self.radius) / slope.gather(1, before).clamp(min=1)
        threshold = threshold.clamp(min=0)
        inside = size.minimum(room).sum(1, keepdim=True) <= self.radius
        threshold = threshold.masked_fill(inside, 0)
        return (size - threshold).clamp(min=0).minimum(room)

    def ascent(self, grad: Tensor) -> Tensor:
        """Direction of steepest ascent with norm 1 in this norm (a zero gradient gives zero)."""
        if self.norm == "Linf":
            return grad.sign()
        flat = grad.flatten(1)
        if self.norm == "L2":
            return (flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-12)).view_as(grad)
        size = flat.abs()
        best = size.argmax(1, keepdim=True)
        picked = flat.new_zeros(flat.shape).scatter(1, best, flat.gather(1, best).sign())
        return picked.view_as(grad)

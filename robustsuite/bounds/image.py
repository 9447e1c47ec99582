"""Boxes behind linear layers and ReLUs in exact arithmetic, for training: as few passes over memory as can be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from robustsuite.bounds.rounding import Box

Apply = Callable[[Tensor, Tensor, Tensor | None], Tensor]
_BLOCK = 2**17  # elements of each tensor that a core's cache holds a dozen of


def blocks(like: Tensor) -> Iterator[slice]:
    """Slices of the first dimension of ``like``, on a CPU so small that many operations stay in its cache."""
    rows = len(like)
    step = max(1, _BLOCK * torch.get_num_threads() * rows // max(like.numel(), 1)) if like.is_cpu else max(rows, 1)
    return (slice(start, start + step) for start in range(0, rows, step))


class Late(Box):
    """A box whose ends are computed when one is first asked for."""

    def ends(self) -> tuple[Tensor, Tensor]:
        """Upper and lower."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        if name not in ("lower", "upper"):
            raise AttributeError(name)
        for end, value in zip(("upper", "lower"), self.ends(), strict=True):
            object.__setattr__(self, end, value)  # a box is frozen
        return self.__dict__[name]

    @property
    def known(self) -> bool:
        """Whether the ends were computed."""
        return "lower" in self.__dict__


class Image(Late):
    """The exact image of the box ``x`` under ``apply(x, weight, bias)``, every element a dot product.

    Batch normalisation that follows goes into the weights (`scaled`), which are few, and not over the activations,
    which are many.
    """

    def __init__(self, x: Box, weight: Tensor, bias: Tensor | None, apply: Apply) -> None:
        dtype = like(x).dtype
        weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        self.__dict__.update(x=x, weight=weight, bias=bias, apply=apply, found=None)

    def halves(self) -> tuple[Tensor, Tensor]:
        """Midpoints and half widths."""
        if (found := self.found) is None:
            # Halves of the weights in place of halves of sum and width: there are fewer, and nothing is rounded.
            weight, (total, width) = 0.5 * self.weight, _total_and_width(self.x)
            found = self.apply(total, weight, self.bias), self.apply(width, weight.abs(), None)
            self.__dict__["found"] = found
        return found

    def ends(self) -> tuple[Tensor, Tensor]:
        """Upper and lower."""
        return SumAndDifference.apply(*self.halves())

    @property
    def by_channel(self) -> bool:
        """Whether the second dimension of the result is that of the weights' rows."""
        return self.weight.ndim == like(self.x).ndim

    def scaled(self, scale: Tensor, shift: Tensor) -> Image:
        """The image followed by ``scale z + shift`` of every channel."""
        weight = self.weight * scale.view(-1, *[1] * (self.weight.ndim - 1))
        return Image(self.x, weight, shift if self.bias is None else self.bias * scale + shift, self.apply)


class Rectified(Late):
    """The image of a box ``x`` under ReLU."""

    def __init__(self, x: Image) -> None:
        self.__dict__.update(x=x)

    def ends(self) -> tuple[Tensor, Tensor]:
        """Upper and lower."""
        return self.x.upper.relu(), self.x.lower.relu()


def like(x: Box) -> Tensor:
    """A tensor of the shape and dtype of ``x``, which need not be computed for it."""
    while isinstance(x, Rectified):
        x = x.x
    return x.halves()[0] if isinstance(x, Image) else x.lower


def _total_and_width(x: Box) -> tuple[Tensor, Tensor]:
    """Sum and difference of the ends."""
    if isinstance(x, Rectified) and not x.known:
        return RectifiedEnds.apply(*x.x.halves())
    return SumAndDifference.apply(x.upper, x.lower)


class SumAndDifference(torch.autograd.Function):
    """``(a + b, a - b)``, which is its own gradient: two operations back where autograd would record five."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Sum and difference."""
        return a + b, a - b

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, total: Tensor, difference: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Of sum and difference."""
        return total + difference, total - difference


class RectifiedEnds(torch.autograd.Function):
    """Midpoints m and half widths h to sum and difference of ``relu(m + h)`` and ``relu(m - h)``, block by block."""

    @staticmethod
    def forward(ctx: Any, middle: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
        """Sum and difference."""
        ctx.save_for_backward(middle, half)
        total, width = torch.empty_like(middle), torch.empty_like(middle)
        for rows in blocks(middle):
            upper = (middle[rows] + half[rows]).clamp_(min=0)
            lower = (middle[rows] - half[rows]).clamp_(min=0)
            torch.add(upper, lower, out=total[rows])
            torch.sub(upper, lower, out=width[rows])
        return total, width

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, total: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Of midpoints and half widths."""
        middle, half = ctx.saved_tensors
        by_middle, by_half = torch.empty_like(middle), torch.empty_like(middle)
        for rows in blocks(middle):
            upper = (middle[rows] + half[rows]).clamp_(min=0).sign_().mul_(total[rows] + width[rows])
            lower = (middle[rows] - half[rows]).clamp_(min=0).sign_().mul_(total[rows] - width[rows])
            torch.add(upper, lower, out=by_middle[rows])
            torch.sub(upper, lower, out=by_half[rows])
        return by_middle, by_half

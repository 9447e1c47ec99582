"""Linear functions of an activation, many at once: what backward bound propagation pushes towards the input."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK = 32  # products summed in the arithmetic of the rows, before float64 takes over
_WHOLE = 0.7  # windows that cover this share of the image are as well taken whole


@dataclass(frozen=True)
class Windows:
    """Where the windows of rows lie that start at single units of an image of ``grid`` (height, width).

    Row m starts at unit ``place[m]`` (int64, counted row by row). The window of unit (i, j) has its corner at
    ``(i, j) * step - offset`` of an image of `size`, and may hang over its edge.
    """

    place: Tensor
    grid: tuple[int, int]
    step: tuple[int, int]
    offset: tuple[int, int]
    size: tuple[int, int]

    def below(self, stride: tuple[int, int], padding: tuple[int, int], size: tuple[int, int]) -> "Windows":
        """Those on the input (of ``size``) of a convolution that gave this image."""
        step = self.step[0] * stride[0], self.step[1] * stride[1]
        offset = self.offset[0] * stride[0] + padding[0], self.offset[1] * stride[1] + padding[1]
        return Windows(self.place, self.grid, step, offset, size)

    def lattice(self, values: Tensor, height: int, width: int) -> Tensor:
        """The window of every unit, cut from ``values`` ``[N,C,*size]``: ``[N * units, C, height, width]``."""
        ends = [
            (count - 1) * step - offset + extent - size
            for count, step, offset, extent, size in zip(
                self.grid, self.step, self.offset, (height, width), self.size, strict=True
            )
        ]
        around = F.pad(values, [self.offset[1], ends[1], self.offset[0], ends[0]])
        windows = around.unfold(2, height, self.step[0]).unfold(3, width, self.step[1])
        return windows.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)

    def indices(self, height: int, width: int) -> Tensor:
        """Index of each window's elements in the image, int64 ``[M, height * width]``; ``size.numel()`` beyond it."""
        count = self.size[0] * self.size[1]
        inside = torch.arange(count, device=self.place.device, dtype=torch.float64).view(1, 1, *self.size) + 1
        index = self.lattice(inside, height, width).flatten(1).long() - 1
        return index.where(index >= 0, count).index_select(0, self.place)


@dataclass(frozen=True)
class Rows:
    """Row m is a linear function of the activation of example ``owner[m]``.

    `coeff` holds its coefficients, ``[M, *shape]``; or, with `windows`, those of a window alone, ``[M,C,h,w]``: a
    neuron of a convolution sees a patch of the image, not all of it. Coefficients beyond the image's edge are 0. `each`
    is the number of rows of every example where they are as many and in the examples' order, and 0 where not.
    """

    owner: Tensor
    coeff: Tensor
    windows: Windows | None = None
    each: int = 0

    @property
    def shape(self) -> torch.Size:
        """Shape of the activation, without the examples."""
        return self.coeff.shape[1:] if self.windows is None else torch.Size((self.coeff.shape[1], *self.windows.size))

    def part(self, index: slice | Tensor) -> "Rows":
        """Some of the rows, which have no windows yet."""
        assert self.windows is None
        if isinstance(index, slice) and index.start == 0 and index.stop >= len(self.owner):
            return self
        return Rows(self.owner[index], self.coeff[index])

    @property
    def grid(self) -> Tensor:
        """`coeff`, as ``[N, each, *shape]`` where `each` is known."""
        return self.coeff.unflatten(0, (-1, self.each)) if self.each else self.coeff

    def along(self, values: Tensor) -> Tensor:
        """``values`` ``[N or 1, *shape]`` to broadcast against `grid`: without a copy where `each` is known."""
        return values.to(self.coeff.dtype).unsqueeze(1) if self.each else self.at(values)

    def at(self, values: Tensor) -> Tensor:
        """``values`` ``[N or 1, *shape]`` laid out like `coeff`, or to broadcast: the owner's, in the window."""
        values = values.to(self.coeff.dtype) if values.is_floating_point() else values
        many = values.shape[0] > 1
        if self.windows is None or values.shape[2:] == (1, 1):
            return values.index_select(0, self.owner) if many else values
        values = values.expand(-1, -1, *self.windows.size)
        units = self.windows.grid[0] * self.windows.grid[1]
        cut = self.windows.lattice(values, *self.coeff.shape[2:])
        return cut.index_select(0, self.owner * units + self.windows.place if many else self.windows.place)

    def signs(self) -> tuple[Tensor, Tensor]:
        """The positive part of `grid`, and the negative one."""
        positive = self.grid.clamp(min=0)
        return positive, self.grid - positive

    def lowest(self, low: Tensor, high: Tensor) -> Tensor:
        """Smallest value ``[M]`` (float64) of each row over the boxes ``[low, high]``, each ``[N or 1, *shape]``.

        Products of 32 neighbours are summed in the arithmetic of the rows: the sum is off by at most 34 roundings of
        the absolute values.
        """
        return self.total(mixed(*self.signs(), self.along(low), self.along(high)))

    def total(self, products: Tensor) -> Tensor:
        """Sum over each row of products that are laid out like `grid`, float64 ``[M]``; as `total`."""
        return total(products.flatten(0, 1) if self.each else products)

    def over(self, coeff: Tensor) -> "Rows":
        """Rows over an activation of the same shape, in the same windows."""
        return replace(self, coeff=coeff.view(self.coeff.shape))

    def onto(self, coeff: Tensor) -> "Rows":
        """Rows of the same owners with coefficients ``[M, *shape]`` over another activation."""
        return Rows(self.owner, coeff, each=self.each)

    def dense(self) -> "Rows":
        """The same rows with a coefficient for every element of the activation."""
        if self.windows is None:
            return self
        m, channels, h, w = self.coeff.shape
        place = self.windows.indices(h, w).unsqueeze(1).expand(-1, channels, -1)
        count = self.windows.size[0] * self.windows.size[1]
        canvas = self.coeff.new_zeros(m, channels, count + 1)
        whole = canvas.scatter(2, place, self.coeff.flatten(2))[:, :, :-1]
        return Rows(self.owner, whole.unflatten(2, self.windows.size))

    def alike(self, other: "Rows") -> bool:
        """Whether the coefficients of both stand for the same elements."""
        return self.coeff.shape == other.coeff.shape and _same(self.windows, other.windows)

    def plus(self, other: "Rows") -> "Rows":
        """The sum of two sets of rows over the same activation."""
        if self.alike(other):
            return self.over(self.coeff + other.coeff)
        return self.onto(self.dense().coeff + other.dense().coeff)

    def through_convolution(
        self, patch: Tensor, size: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
    ) -> "Rows":
        """Windows pulled back through a convolution of images of ``size``; they grow by its kernel.

        ``patch`` ``[C,h,w,C',h',w']``: the window, grown, that each element of a window comes to.
        """
        assert self.windows is not None
        coeff = (self.coeff.flatten(1) @ patch.flatten(3).flatten(0, 2)).unflatten(1, patch.shape[3:])
        rows = Rows(self.owner, coeff, self.windows.below(stride, padding, size))
        if coeff.shape[2] * coeff.shape[3] >= _WHOLE * size[0] * size[1]:
            return rows.dense()
        # What a neuron sees of the padding is 0.
        return rows.over(coeff * rows.at(coeff.new_ones(1, 1, *size)))


def mixed(positive: Tensor, negative: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """``positive * one + negative * other``; without a graph in the memory of ``positive``, which is lost."""
    if torch.is_grad_enabled():
        return torch.addcmul(positive * one, negative, other)
    return positive.mul_(one).addcmul_(negative, other)


def _same(one: Windows | None, other: Windows | None) -> bool:
    """Whether windows lie at the same places; those of one backward pass start at the same units."""
    if one is None or other is None:
        return one is other
    return (one.step, one.offset, one.size) == (other.step, other.offset, other.size)


def total(products: Tensor) -> Tensor:
    """Sum over all but the first dimension, float64 ``[M]``: 32 at a time in their own arithmetic, then float64."""
    flat = products.flatten(1)
    if flat.dtype == torch.float64:
        return flat.sum(1)
    whole = flat.shape[1] // _BLOCK * _BLOCK
    head = flat[:, :whole].unflatten(1, (_BLOCK, -1)).sum(1).double().sum(1) if whole else flat.new_zeros(1).double()
    return head + flat[:, whole:].double().sum(1)


def unit_rows(owner: Tensor, index: Tensor, sign: Tensor, shape: torch.Size, dtype: torch.dtype) -> Rows:
    """Row m is ``sign[m]`` times element ``index[m]`` of an activation of ``shape`` (without the examples)."""
    m, windows = len(owner), None
    if len(shape) == 3:
        size = shape[1], shape[2]
        windows = Windows(index % (size[0] * size[1]), size, (1, 1), (0, 0), size)
        index, shape = index // (size[0] * size[1]), torch.Size((shape[0], 1, 1))
    coeff = torch.zeros(m, shape.numel(), dtype=dtype, device=owner.device)
    coeff[torch.arange(m, device=owner.device), index] = sign.to(dtype)
    return Rows(owner, coeff.view(m, *shape), windows)

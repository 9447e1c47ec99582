"""Activations, arithmetic with constants, sums of branches, and changes of shape."""
# ruff: noqa: D102 (the methods are those of Operator, documented there)

import operator as arithmetic
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustsuite.bounds.image import Image, Rectified
from robustsuite.bounds.operators import Operator, UnsupportedOperator, operator
from robustsuite.bounds.relaxation import Lines, leaky_relu_lines, relu_lines
from robustsuite.bounds.rounding import Box, Rounding
from robustsuite.bounds.rows import Rows

Operand = Box | Tensor | float


@operator(nn.ReLU, F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
class ReLU(Operator):
    """``max(x, 0)``: monotone and free of rounding."""

    relaxed = True
    single = True

    def interval(self, rounding: Rounding, x: Box, inplace: bool = False) -> Box:
        return Rectified(x) if isinstance(x, Image) else Box(x.lower.relu(), x.upper.relu())

    def lines(self, rounding: Rounding, x: Box, inplace: bool = False) -> Lines:
        return relu_lines(x.lower, x.upper)

    def loose(self, box: Box) -> Tensor:
        return (box.lower < 0) & (box.upper > 0)


@operator(nn.LeakyReLU, F.leaky_relu, F.leaky_relu_)
class LeakyReLU(Operator):
    """``x`` or, below 0, ``slope x``: monotone for slope >= 0."""

    relaxed = True

    def slope(self, negative_slope: float) -> float:
        """The slope below 0."""
        return negative_slope if self.module is None else self.module.negative_slope

    def refusal(self, x: Any, negative_slope: float = 0.01, inplace: bool = False) -> str | None:
        slope = self.slope(negative_slope)
        return None if slope >= 0 else f"negative_slope={slope}, which is not monotone"

    def interval(self, rounding: Rounding, x: Box, negative_slope: float = 0.01, inplace: bool = False) -> Box:
        slope = self.slope(negative_slope)
        box = Box(F.leaky_relu(x.lower, slope), F.leaky_relu(x.upper, slope))
        return rounding.widen(box, 3, slope * x.magnitude) if rounding.active else box

    def lines(self, rounding: Rounding, x: Box, negative_slope: float = 0.01, inplace: bool = False) -> Lines:
        slope = self.slope(negative_slope)
        lines = leaky_relu_lines(x.lower, x.upper, slope)
        error = rounding.error(3, slope * x.magnitude)
        return replace(lines, lower_offset=lines.lower_offset - error, upper_offset=lines.upper_offset + error)

    def loose(self, box: Box) -> Tensor:
        return (box.lower < 0) & (box.upper > 0)


@operator(nn.Identity, nn.Dropout, nn.Dropout2d, "contiguous")
class Identity(Operator):
    """The argument itself: identities, and dropout modules, which do nothing in eval mode."""

    aliases = True
    single = True

    def interval(self, rounding: Rounding, x: Box, *args: Any, **kwargs: Any) -> Box:
        return x

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x

    def pull(self, rows: Rows, *args: Any, **kwargs: Any) -> list[Rows]:
        return [rows]


@operator("clone")
class Copy(Identity):
    """The argument itself, in memory of its own."""

    aliases = False


@operator(F.dropout, F.dropout2d)
class Dropout(Identity):
    """Dropout as a function: the argument itself, provided that it is told ``training=self.training``."""

    def refusal(self, x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> str | None:
        return "dropout that stays active in eval mode (pass training=self.training)" if training else None


class Reshape(Operator):
    """A change of shape that keeps the rows apart."""

    aliases = True
    single = True

    @abstractmethod
    def reshape(self, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The operator on one tensor."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.reshape(x, *args, **kwargs)

    def interval(self, rounding: Rounding, x: Box, *args: Any, **kwargs: Any) -> Box:
        lower, upper = (self.reshape(bound, *args, **kwargs) for bound in (x.lower, x.upper))
        if lower.ndim < 2 or lower.shape[0] != x.lower.shape[0]:
            before, after = list(x.lower.shape), list(lower.shape)
            raise UnsupportedOperator(f"a reshape from {before} to {after} mixes examples; keep dimension 0 as it is.")
        return Box(lower, upper)


@operator(nn.Flatten, torch.flatten, "flatten")
class Flatten(Reshape):
    """Dimensions from `start_dim` to `end_dim` made one."""

    def reshape(self, value: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
        if self.module is not None:
            start_dim, end_dim = self.module.start_dim, self.module.end_dim
        return value.flatten(start_dim, end_dim)

    def pull(self, rows: Rows, x: Box, *args: Any, **kwargs: Any) -> list[Rows]:
        return [_as_shape(rows, x)]


@operator(torch.reshape, "view", "reshape")
class View(Reshape):
    """Another shape for the same elements."""

    def reshape(self, value: Tensor, *sizes: Any) -> Tensor:
        return value.reshape(*sizes)

    def pull(self, rows: Rows, x: Box, *args: Any, **kwargs: Any) -> list[Rows]:
        return [_as_shape(rows, x)]


def _as_shape(rows: Rows, x: Box) -> Rows:
    return rows.onto(rows.dense().coeff.reshape(-1, *x.lower.shape[1:]))


def _constant(value: Tensor | float, like: Box) -> Tensor:
    return torch.as_tensor(value, device=like.lower.device).to(like.lower.dtype)


def _apart(rows: Rows, a: Operand, b: Operand, sign: float) -> list[Rows] | None:
    """The rows of both terms of ``a + sign b``; None where one of them is stretched to the other's shape."""
    if any(isinstance(term, Box) and term.lower.shape[1:] != rows.shape for term in (a, b)):
        return None
    terms = [rows] if isinstance(a, Box) else []
    return terms + [rows if sign > 0 else rows.over(-rows.coeff)] * isinstance(b, Box)


def _times(rows: Rows, x: Box, factor: Tensor) -> list[Rows] | None:
    """The rows of ``x * factor``; None where ``x`` is stretched."""
    if x.lower.shape[1:] != rows.shape:
        return None
    return [rows.over(rows.coeff * rows.at(factor.reshape(*[1] * (len(rows.shape) + 1 - factor.ndim), *factor.shape)))]


def _sum(rounding: Rounding, a: Operand, b: Operand, sign: float) -> Box:
    """``a + sign b``, either of them a constant; both as boxes, because a shared origin is not tracked."""
    dtypes = {v.lower.dtype for v in (a, b) if isinstance(v, Box)}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float64
    like = a if isinstance(a, Box) else b
    assert isinstance(like, Box)
    a, b = (_as_box(v, like, dtype) for v in (a, b))
    if sign < 0:
        b = Box(-b.upper, -b.lower)
    box = Box(a.lower + b.lower, a.upper + b.upper)
    return rounding.widen_sum(box, 4, (a, b))


def _as_box(value: Operand, like: Box, dtype: torch.dtype) -> Box:
    ends = (value.lower, value.upper) if isinstance(value, Box) else (_constant(value, like),) * 2
    return Box(*(end.to(dtype) for end in ends))


@operator(torch.add, arithmetic.add, arithmetic.iadd, "add", "add_")
class Add(Operator):
    """Sum of two activations, or of one and a constant."""

    single = True

    def interval(self, rounding: Rounding, a: Operand, b: Operand) -> Box:
        return _sum(rounding, a, b, 1.0)

    def forward(self, a: Any, b: Any) -> Tensor:
        return a + b

    def pull(self, rows: Rows, a: Operand, b: Operand) -> list[Rows] | None:
        return _apart(rows, a, b, 1.0)


@operator(torch.sub, arithmetic.sub, arithmetic.isub, "sub", "sub_")
class Sub(Operator):
    """Difference of two activations, or of one and a constant in either order."""

    single = True

    def interval(self, rounding: Rounding, a: Operand, b: Operand) -> Box:
        return _sum(rounding, a, b, -1.0)

    def forward(self, a: Any, b: Any) -> Tensor:
        return a - b

    def pull(self, rows: Rows, a: Operand, b: Operand) -> list[Rows] | None:
        return _apart(rows, a, b, -1.0)


@operator(torch.neg, arithmetic.neg, "neg")
class Neg(Operator):
    """``-x``: free of rounding."""

    single = True

    def interval(self, rounding: Rounding, x: Box) -> Box:
        return Box(-x.upper, -x.lower)

    def forward(self, x: Tensor) -> Tensor:
        return -x

    def pull(self, rows: Rows, x: Box) -> list[Rows]:
        return [rows.over(-rows.coeff)]


def _scale(rounding: Rounding, x: Box, apply: Callable[[Tensor], Tensor]) -> Box:
    one, other = apply(x.lower), apply(x.upper)
    box = Box(one.minimum(other), one.maximum(other))
    return rounding.widen_sum(box, 4, (box,))


@operator(torch.mul, arithmetic.mul, arithmetic.imul, "mul", "mul_")
class Mul(Operator):
    """An activation times a constant."""

    single = True

    def refusal(self, a: Any, b: Any) -> str | None:
        return "a product of two activations" if a is Box and b is Box else None

    def interval(self, rounding: Rounding, a: Operand, b: Operand) -> Box:
        x, constant = (a, b) if isinstance(a, Box) else (b, a)
        assert isinstance(x, Box)
        assert not isinstance(constant, Box)
        factor = _constant(constant, x)
        return _scale(rounding, x, lambda bound: bound * factor)

    def forward(self, a: Any, b: Any) -> Tensor:
        return a * b

    def pull(self, rows: Rows, a: Operand, b: Operand) -> list[Rows] | None:
        x, constant = (a, b) if isinstance(a, Box) else (b, a)
        assert isinstance(x, Box)
        assert not isinstance(constant, Box)
        return _times(rows, x, torch.as_tensor(constant, device=rows.coeff.device).to(rows.coeff.dtype))


@operator(torch.div, torch.true_divide, arithmetic.truediv, arithmetic.itruediv, "div", "div_")
class Div(Operator):
    """An activation divided by a constant."""

    single = True

    def refusal(self, a: Any, b: Any) -> str | None:
        return "a division by an activation" if b is Box else None

    def interval(self, rounding: Rounding, a: Box, b: Tensor | float) -> Box:
        divisor = _constant(b, a)
        return _scale(rounding, a, lambda bound: bound / divisor)

    def forward(self, a: Any, b: Any) -> Tensor:
        return a / b

    def pull(self, rows: Rows, a: Box, b: Tensor | float) -> list[Rows] | None:
        return _times(rows, a, 1 / torch.as_tensor(b, device=rows.coeff.device).to(rows.coeff.dtype))


@operator(torch.cat, torch.concat, torch.concatenate)
class Concat(Operator):
    """Activations side by side, along any dimension but the examples'."""

    def refusal(self, tensors: Any, dim: int = 0) -> str | None:
        if dim == 0:
            return "a concatenation along dimension 0 (the examples)"
        return None if all(t is Box for t in tensors) else "a concatenation with a constant"

    def interval(self, rounding: Rounding, tensors: Sequence[Box], dim: int = 0) -> Box:
        return Box(torch.cat([t.lower for t in tensors], dim), torch.cat([t.upper for t in tensors], dim))

    def forward(self, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
        return torch.cat(list(tensors), dim)

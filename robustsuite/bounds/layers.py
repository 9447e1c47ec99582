"""Linear layers, batch normalisation and pooling."""

# ruff: noqa: D102 (the methods are those of Operator, documented there)

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustsuite.bounds.image import Image
from robustsuite.bounds.operators import Operator, UnsupportedOperator, operator
from robustsuite.bounds.pooling import MaxPool, PoolLines, max_pool_lines
from robustsuite.bounds.products import Apply, float32_image, in_float32, linear
from robustsuite.bounds.rounding import Box, Rounding
from robustsuite.bounds.rows import Rows
from robustsuite.strided import FEW, SOME, input_gradient

Size = int | Sequence[int]


def _affine(rounding: Rounding, x: Box, weight: Tensor, bias: Tensor | None, apply: Apply) -> Box:
    """Exact image of a box under ``apply(x, weight, bias)``, every element a dot product: midpoint and half width."""
    if in_float32(rounding, weight, bias):
        return float32_image(rounding, x, weight, bias, apply)
    if not rounding.active:
        return Image(x, weight, bias, apply)
    x = Box(x.lower.double(), x.upper.double())
    weight, bias = _cast(x.lower, weight, bias)
    size = weight.abs()
    middle, half = apply(x.center, weight, bias), apply(x.radius, size, None)
    box = Box(middle - half, middle + half)
    magnitude = apply(x.magnitude, size, None if bias is None else bias.abs())
    return rounding.widen(box, _terms(x, weight) + 2, magnitude)


def _terms(x: Box, weight: Tensor) -> int | Tensor:
    """How many products a dot product adds up, at the most; those with an element that is 0 for certain add nothing."""
    if weight.ndim == 2:
        return (x.magnitude != 0).sum(-1, keepdim=True)
    return weight[0].numel()


def _cast(like: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return weight.to(like.dtype), None if bias is None else bias.to(like.dtype)


@operator(nn.Linear, F.linear)
class Linear(Operator):
    """``x W^T + b``."""

    mixes = True
    single = True

    def parameters(self, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the module, or those that the function was called with."""
        return (weight, bias) if weight is not None else (self.module.weight, self.module.bias)

    def interval(self, rounding: Rounding, x: Box, weight: Tensor | None = None, bias: Tensor | None = None) -> Box:
        apply = linear if rounding.active else F.linear
        return _affine(rounding, x, *self.parameters(weight, bias), apply)

    def forward(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        return F.linear(x, *_cast(x, *self.parameters(weight, bias)))

    def pull(self, rows: Rows, x: Box, weight: Tensor | None = None, bias: Tensor | None = None) -> list[Rows] | None:
        return [rows.onto(rows.dense().coeff @ self.parameters(weight, bias)[0].to(rows.coeff.dtype))]

    def terms(self, x: Box, weight: Tensor | None = None, bias: Tensor | None = None) -> int:
        return self.parameters(weight, bias)[0].shape[0]


@operator(nn.Conv2d, F.conv2d)
class Conv2d(Linear):
    """Two-dimensional convolution with zero padding."""

    def __init__(self, module: nn.Module | None = None) -> None:
        super().__init__(module)
        self.patches: dict[torch.Size, tuple[Any, Tensor]] = {}

    def refusal(self, *args: Any, **kwargs: Any) -> str | None:
        mode = "zeros" if self.module is None else self.module.padding_mode
        return None if mode == "zeros" else f"padding_mode='{mode}'"

    def call(
        self,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> tuple[Tensor, Tensor | None, tuple[Any, Any, Any, int]]:
        """Weight, bias and (stride, padding, dilation, groups) of the module, or of the function's call."""
        if (m := self.module) is not None:
            stride, padding, dilation, groups = m.stride, m.padding, m.dilation, m.groups
        return *self.parameters(weight, bias), (stride, padding, dilation, groups)

    def interval(self, rounding: Rounding, x: Box, *args: Any, **kwargs: Any) -> Box:
        weight, bias, options = self.call(*args, **kwargs)

        def apply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return F.conv2d(x, weight, bias, *options)

        return _affine(rounding, x, weight, bias, apply)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        weight, bias, options = self.call(*args, **kwargs)
        return F.conv2d(x, *_cast(x, weight, bias), *options)

    def pull(self, rows: Rows, x: Box, *args: Any, **kwargs: Any) -> list[Rows] | None:
        weight, _, (stride, padding, dilation, groups) = self.call(*args, **kwargs)
        if isinstance(padding, str):
            return None
        weight = weight.to(rows.coeff.dtype)
        stride, padding, dilation = _pair(stride), _pair(padding), _pair(dilation)
        if rows.windows is not None:
            patch = self.patch(rows.coeff, weight, stride, dilation, groups)
            return [rows.through_convolution(patch, _pair(x.lower.shape[2:]), stride, padding)]
        size = _pair(x.lower.shape[2:])
        if _strided(rows.coeff, weight, stride, padding, dilation, groups):
            return [rows.onto(input_gradient(rows.coeff, weight, stride[0], padding[0], size))]
        if rows.coeff.requires_grad and groups == 1 and weight[0].numel() <= weight.shape[0]:
            # For the few channels of an image a product and a sum of patches is a third of the time, gradients too.
            patches = weight.flatten(1).t() @ rows.coeff.flatten(2)
            return [rows.onto(F.fold(patches, size, weight.shape[2:], dilation, padding, stride))]
        seen = zip(size, rows.coeff.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
        missed = [extent - ((out - 1) * s - 2 * p + d * (taps - 1) + 1) for extent, out, taps, s, p, d in seen]
        coeff = F.conv_transpose2d(rows.coeff, weight, None, stride, padding, missed, groups, dilation)
        return [rows.onto(coeff)]

    def patch(
        self, window: Tensor, weight: Tensor, stride: tuple[int, int], dilation: tuple[int, int], groups: int
    ) -> Tensor:
        """What every element of a window ``[M,C,h,w]`` comes to, ``[C,h,w,C',h',w']``.

        As a matrix it is several times as fast as a transposed convolution of many small windows. It is kept until the
        weights change.
        """
        shape = window.shape[1:]
        key = (shape, weight.dtype, weight.data_ptr(), weight._version, stride, dilation, groups)
        if self.patches.get(shape, (None,))[0] != key:
            units = torch.eye(shape.numel(), dtype=weight.dtype, device=weight.device).view(-1, *shape)
            grown = F.conv_transpose2d(units, weight, None, stride, groups=groups, dilation=dilation)
            self.patches[shape] = key, grown.unflatten(0, tuple(shape))
        return self.patches[shape][1]

    def terms(self, x: Box, *args: Any, **kwargs: Any) -> int:
        weight, _, (stride, _, _, groups) = self.call(*args, **kwargs)
        taps = (-(-size // step) for size, step in zip(weight.shape[2:], _pair(stride), strict=True))
        return weight.shape[0] // groups * math.prod(taps)


def _strided(coeff: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> bool:
    """Whether `input_gradient` is the faster way back, and can be gone."""
    square = stride[0] == stride[1] > 1 and padding[0] == padding[1] and weight.shape[2] == weight.shape[3]
    few = weight.shape[1] <= (FEW if weight.shape[2] % stride[0] else SOME)
    alone = not coeff.requires_grad and not weight.requires_grad
    return square and few and alone and coeff.device.type == "cpu" and tuple(dilation) == (1, 1) and groups == 1


@operator(nn.BatchNorm1d, nn.BatchNorm2d)
class BatchNorm(Operator):
    """Batch normalisation by the running statistics, whatever mode the module is in."""

    def refusal(self, *args: Any, **kwargs: Any) -> str | None:
        return None if self.module.running_mean is not None else "no running statistics (track_running_stats=False)"

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
        """Scale, mean and bias, shaped to broadcast over ``x`` and in its dtype."""
        m, dtype, shape = self.module, x.dtype, (1, -1, *[1] * (x.ndim - 2))
        scale = (m.running_var.to(dtype) + m.eps).rsqrt().view(shape)
        if m.weight is not None:
            scale = scale * m.weight.to(dtype).view(shape)
        return scale, m.running_mean.to(dtype).view(shape), 0.0 if m.bias is None else m.bias.to(dtype).view(shape)

    def forward(self, x: Tensor) -> Tensor:
        scale, mean, bias = self.parts(x)
        return (x - mean) * scale + bias

    def pull(self, rows: Rows, x: Box) -> list[Rows]:
        return [rows.over(rows.coeff * rows.at(self.parts(rows.coeff.new_empty(x.lower.shape))[0]))]

    def interval(self, rounding: Rounding, x: Box) -> Box:
        if isinstance(x, Image) and not rounding.active and x.by_channel:
            scale, mean, bias = self.parts(x.weight.new_empty(1, 1))
            return x.scaled(scale.flatten(), (bias - mean * scale).flatten())
        scale, mean, bias = self.parts(x.lower)
        middle, half = (x.center - mean) * scale + bias, x.radius * scale.abs()
        box = Box(middle - half, middle + half)
        if not rounding.active:
            return box
        # Kernels compute (x - mean) s + b or x s + (b - mean s): the bound is for both, and for an approximate rsqrt.
        magnitude = (x.magnitude + mean.abs()) * scale.abs() + abs(bias)
        return rounding.widen(box, 16, magnitude)


@operator(nn.AvgPool2d, F.avg_pool2d)
class AvgPool2d(Operator):
    """Mean over windows: linear with weights >= 0."""

    mixes = True

    def options(self, kernel_size: Size = 1, *args: Any, **kwargs: Any) -> tuple[Size, tuple[Any, ...], dict[str, Any]]:
        """Kernel size and the other options of the module, or those that the function was called with."""
        if (m := self.module) is None:
            return kernel_size, args, kwargs
        return m.kernel_size, (m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override), {}

    def refusal(self, x: Any, *args: Any, **kwargs: Any) -> str | None:
        _, others, named = self.options(*args, **kwargs)
        return "divisor_override" if named.get("divisor_override", others[4] if len(others) > 4 else None) else None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        kernel_size, others, named = self.options(*args, **kwargs)
        return F.avg_pool2d(x, kernel_size, *others, **named)  # type: ignore[arg-type]

    def terms(self, x: Box, *args: Any, **kwargs: Any) -> int:
        return math.prod(_pair(self.options(*args, **kwargs)[0]))

    def interval(self, rounding: Rounding, x: Box, *args: Any, **kwargs: Any) -> Box:
        kernel_size, _, _ = self.options(*args, **kwargs)
        return _mean(rounding, x, lambda v: self.forward(v, *args, **kwargs), math.prod(_pair(kernel_size)))


@operator(nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d)
class AdaptiveAvgPool2d(Operator):
    """Mean over the windows that give the wanted size."""

    mixes = True

    def forward(self, x: Tensor, output_size: Any = 1) -> Tensor:
        return F.adaptive_avg_pool2d(x, output_size if self.module is None else self.module.output_size)

    def interval(self, rounding: Rounding, x: Box, output_size: Any = 1) -> Box:
        return _mean(rounding, x, lambda v: self.forward(v, output_size), math.prod(x.lower.shape[-2:]))


@operator(torch.mean, "mean")
class Mean(Operator):
    """Mean over dimensions other than the examples'."""

    mixes = True

    def refusal(self, x: Any, dim: Any = None, keepdim: bool = False) -> str | None:
        dims = [dim] if isinstance(dim, int) else list(dim or [])
        if not dims or 0 in dims:
            return "a mean that includes dimension 0 (the examples)"
        return None

    def forward(self, x: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
        return x.mean(dim, keepdim)

    def interval(self, rounding: Rounding, x: Box, dim: Any = None, keepdim: bool = False) -> Box:
        dims = [dim] if isinstance(dim, int) else list(dim)
        if any(d % x.lower.ndim == 0 for d in dims):
            raise UnsupportedOperator("a mean over dimension 0 mixes examples.")
        return _mean(rounding, x, lambda v: self.forward(v, dims, keepdim), math.prod(x.lower.shape[d] for d in dims))


def _pair(size: Size) -> tuple[int, int]:
    first, second = (size, size) if isinstance(size, int) else size
    return first, second


def _mean(rounding: Rounding, x: Box, pool: Callable[[Tensor], Tensor], terms: int) -> Box:
    box = Box(pool(x.lower), pool(x.upper))
    return rounding.widen(box, terms + 3, pool(x.magnitude).abs()) if rounding.active else box


@operator(nn.MaxPool2d, F.max_pool2d)
class MaxPool2d(MaxPool):
    """Maximum over windows of an image."""

    single = True

    def refusal(self, *args: Any, **kwargs: Any) -> str | None:
        indices = kwargs.get("return_indices", len(args) > 6 and args[6])
        return "return_indices=True" if indices or (self.module and self.module.return_indices) else None

    def interval(self, rounding: Rounding, x: Box, *args: Any, **kwargs: Any) -> Box:
        args = self.options(*args)
        return Box(F.max_pool2d(x.lower, *args, **kwargs), F.max_pool2d(x.upper, *args, **kwargs))

    def pool_lines(self, x: Box, *args: Any, **kwargs: Any) -> PoolLines:
        kwargs.pop("return_indices", None)
        return max_pool_lines(x, *self.options(*args)[:5], **kwargs)

    def options(self, *args: Any) -> tuple[Any, ...]:
        """Kernel size, stride, padding, dilation and ceil_mode of the module, or those of the function's call."""
        m = self.module
        return args if m is None else (m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode)

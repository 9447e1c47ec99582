"""Linear layers, batch normalisation and pooling."""

# ruff: noqa: D102 (the methods are those of Operator, documented there)

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustsuite.bounds.operators import Operator, UnsupportedOperator, operator
from robustsuite.bounds.rounding import Box, Rounding

Size = int | Sequence[int]


def _affine(rounding: Rounding, x: Box, weight: Tensor, bias: Tensor | None, apply: Callable[..., Tensor]) -> Box:
    """Exact image of a box under ``apply(x, weight, bias)``, every element a dot product: midpoint and half width."""
    dtype = x.lower.dtype
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    size = weight.abs()
    middle, half = apply(x.center, weight, bias), apply(x.radius, size, None)
    box = Box(middle - half, middle + half)
    if not rounding.active:
        return box
    magnitude = apply(x.magnitude, size, None if bias is None else bias.abs())
    return rounding.widen(box, weight[0].numel() + 2, magnitude)


@operator(nn.Linear, F.linear)
class Linear(Operator):
    """``x W^T + b``."""

    def parameters(self, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the module, or those that the function was called with."""
        return (weight, bias) if weight is not None else (self.module.weight, self.module.bias)

    def interval(self, rounding: Rounding, x: Box, weight: Tensor | None = None, bias: Tensor | None = None) -> Box:
        return _affine(rounding, x, *self.parameters(weight, bias), F.linear)


@operator(nn.Conv2d, F.conv2d)
class Conv2d(Linear):
    """Two-dimensional convolution with zero padding."""

    def refusal(self, *args: Any, **kwargs: Any) -> str | None:
        mode = "zeros" if self.module is None else self.module.padding_mode
        return None if mode == "zeros" else f"padding_mode='{mode}'"

    def interval(
        self,
        rounding: Rounding,
        x: Box,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Box:
        if (m := self.module) is not None:
            stride, padding, dilation, groups = m.stride, m.padding, m.dilation, m.groups
        weight, bias = self.parameters(weight, bias)

        def apply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

        return _affine(rounding, x, weight, bias, apply)


@operator(nn.BatchNorm1d, nn.BatchNorm2d)
class BatchNorm(Operator):
    """Batch normalisation by the running statistics, whatever mode the module is in."""

    def refusal(self, *args: Any, **kwargs: Any) -> str | None:
        return None if self.module.running_mean is not None else "no running statistics (track_running_stats=False)"

    def interval(self, rounding: Rounding, x: Box) -> Box:
        m, dtype = self.module, x.lower.dtype
        shape = (1, -1, *[1] * (x.lower.ndim - 2))
        scale = (m.running_var.to(dtype) + m.eps).rsqrt().view(shape)
        if m.weight is not None:
            scale = scale * m.weight.to(dtype).view(shape)
        mean = m.running_mean.to(dtype).view(shape)
        bias = 0.0 if m.bias is None else m.bias.to(dtype).view(shape)
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

    def options(self, kernel_size: Size = 1, *args: Any, **kwargs: Any) -> tuple[Size, tuple[Any, ...], dict[str, Any]]:
        """Kernel size and the other options of the module, or those that the function was called with."""
        if (m := self.module) is None:
            return kernel_size, args, kwargs
        return m.kernel_size, (m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override), {}

    def refusal(self, x: Any, *args: Any, **kwargs: Any) -> str | None:
        _, others, named = self.options(*args, **kwargs)
        return "divisor_override" if named.get("divisor_override", others[4] if len(others) > 4 else None) else None

    def interval(self, rounding: Rounding, x: Box, *args: Any, **kwargs: Any) -> Box:
        kernel_size, others, named = self.options(*args, **kwargs)

        def pool(value: Tensor) -> Tensor:
            return F.avg_pool2d(value, kernel_size, *others, **named)  # type: ignore[arg-type]

        return _mean(rounding, x, pool, math.prod(_pair(kernel_size)))


@operator(nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d)
class AdaptiveAvgPool2d(Operator):
    """Mean over the windows that give the wanted size."""

    def interval(self, rounding: Rounding, x: Box, output_size: Any = 1) -> Box:
        size = output_size if self.module is None else self.module.output_size

        def pool(value: Tensor) -> Tensor:
            return F.adaptive_avg_pool2d(value, size)

        return _mean(rounding, x, pool, math.prod(x.lower.shape[-2:]))


@operator(torch.mean, "mean")
class Mean(Operator):
    """Mean over dimensions other than the examples'."""

    def refusal(self, x: Any, dim: Any = None, keepdim: bool = False) -> str | None:
        dims = [dim] if isinstance(dim, int) else list(dim or [])
        if not dims or 0 in dims:
            return "a mean that includes dimension 0 (the examples)"
        return None

    def interval(self, rounding: Rounding, x: Box, dim: Any = None, keepdim: bool = False) -> Box:
        dims = [dim] if isinstance(dim, int) else list(dim)

        def mean(value: Tensor) -> Tensor:
            return value.mean(dims, keepdim)

        if any(d % x.lower.ndim == 0 for d in dims):
            raise UnsupportedOperator("a mean over dimension 0 mixes examples.")
        return _mean(rounding, x, mean, math.prod(x.lower.shape[d] for d in dims))


def _pair(size: Size) -> tuple[int, ...]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _mean(rounding: Rounding, x: Box, pool: Callable[[Tensor], Tensor], terms: int) -> Box:
    box = Box(pool(x.lower), pool(x.upper))
    return rounding.widen(box, terms + 3, pool(x.magnitude).abs()) if rounding.active else box


@operator(nn.MaxPool2d, F.max_pool2d)
class MaxPool2d(Operator):
    """Maximum over windows: monotone and free of rounding."""

    def refusal(self, *args: Any, **kwargs: Any) -> str | None:
        indices = kwargs.get("return_indices", len(args) > 6 and args[6])
        return "return_indices=True" if indices or (self.module and self.module.return_indices) else None

    def interval(self, rounding: Rounding, x: Box, *args: Any, **kwargs: Any) -> Box:
        if self.module is not None:
            m = self.module
            args = (m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode)
        return Box(F.max_pool2d(x.lower, *args, **kwargs), F.max_pool2d(x.upper, *args, **kwargs))

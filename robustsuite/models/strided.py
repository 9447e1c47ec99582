"""Input gradients of strided first layers on a CPU: as a convolution at stride 1, several times as fast as oneDNN's.

The gradient of a strided convolution is a transposed convolution, and for few input channels (the first layer of
nearly every image model) the library's is slow. The pixels that share a remainder by the stride are reached by the
same taps of the kernel, so that an ordinary convolution with a group of output channels for each remainder, and a
shuffle of these into pixels, gives the same sums. Forward passes are not touched.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

_FEW = 4  # input channels; from 16 on the library's way is as fast


class Strided(TorchFunctionMode):
    """Context in which convolutions that qualify get the faster input gradient; all else goes its usual way."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Replace ``conv2d``, as `torch.nn.Conv2d` calls it, where it qualifies."""
        if func is F.conv2d and not kwargs and len(args) == 7:
            x, weight, bias, stride, padding, dilation, groups = args
            if qualifies(x, weight, stride, padding, dilation, groups):
                return cast(Tensor, _Strided.apply(x, weight, bias, stride[0], padding[0]))
        return func(*args, **(kwargs or {}))


def qualifies(x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> bool:
    """Whether the faster gradient applies, and pays."""
    square = isinstance(padding, tuple) and stride[0] == stride[1] > 1 and padding[0] == padding[1]
    return (
        square
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.requires_grad
        and x.ndim == 4
        and not weight.requires_grad
        and weight.shape[1] <= _FEW
        and weight.shape[2] == weight.shape[3] > 1
        and tuple(dilation) == (1, 1)
        and groups == 1
    )


class _Strided(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
        ctx.weight, ctx.stride, ctx.padding, ctx.size = weight, stride, padding, x.shape[2:]
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        return input_gradient(grads[0], ctx.weight, ctx.stride, ctx.padding, ctx.size), None, None, None, None


def input_gradient(grad: Tensor, weight: Tensor, stride: int, padding: int, size: tuple[int, int]) -> Tensor:
    """The gradient at the input ``[N,C,*size]`` of ``conv2d(x, weight, stride=stride, padding=padding)``."""
    kernel, first, last = _kernel(weight, stride, padding)
    right = [-(-extent // stride) - first - out for extent, out in zip(size, grad.shape[2:], strict=True)]
    if right[0] == right[1] == last >= 0:
        parts = F.conv2d(grad, kernel, padding=last)
    else:
        parts = F.conv2d(F.pad(grad, (last, right[1], last, right[0])), kernel)
    return F.pixel_shuffle(parts, stride)[:, :, : size[0], : size[1]]


_KERNELS = WeakTensorKeyDictionary()


def _kernel(weight: Tensor, stride: int, padding: int) -> tuple[Tensor, int, int]:
    """The kernel at stride 1, ``[C stride^2, K, n, n]``, with its first and last offset; kept as long as the weight."""
    key = (stride, padding, weight._version)
    kept = _KERNELS.get(weight)
    if kept is None or kept[0] != key:
        kept = key, _rearranged(weight.detach(), stride, padding)
        _KERNELS[weight] = kept
    return kept[1]


def _rearranged(weight: Tensor, stride: int, padding: int) -> tuple[Tensor, int, int]:
    """Pixel ``q stride + a`` gets ``grad[q - j] weight[j stride + a + padding]`` for every offset j that has a tap."""
    outputs, channels, taps, _ = weight.shape
    of = {(j, a): j * stride + a + padding for a in range(stride) for j in range(-taps - padding, taps + 1)}
    of = {place: tap for place, tap in of.items() if 0 <= tap < taps}
    first, last = min(j for j, _ in of), max(j for j, _ in of)
    kernel = weight.new_zeros(channels, stride, stride, outputs, last - first + 1, last - first + 1)
    for (j, a), tap in of.items():
        for (i, b), other in of.items():
            kernel[:, a, b, :, last - j, last - i] = weight[:, :, tap, other].t()
    return kernel.flatten(0, 2), first, last

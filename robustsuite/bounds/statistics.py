"""Batch normalisation in training: a batch's own statistics in the place of the running ones."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from robustsuite.errors import UsageError

Statistics = Mapping[nn.Module, tuple[Tensor, Tensor]]
"""What each batch normalisation normalises by: mean and (biased) variance of every channel."""


def batch_normalised(module: nn.Module) -> list[_BatchNorm]:
    """The parts of ``module`` that normalise by the batch, in the mode that they are in."""
    return [part for part in module.modules() if isinstance(part, _BatchNorm) and part.training]


@contextmanager
def noting(module: nn.Module) -> Iterator[Statistics]:
    """What the batch normalisations in train mode normalise by, of one forward pass made inside; with its graph.

    Raises `UsageError` for one that the pass goes through twice: it has two sets of statistics.
    """
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def normalise(part: Any, x: Tensor) -> Tensor:
        if part in seen:
            raise UsageError(
                f"bounds in training know one set of statistics for a batch normalisation, and {part} is used twice "
                "in one pass; give each place its own."
            )
        part._check_input_dim(x)
        momentum, counted = part.momentum, part.num_batches_tracked
        if counted is not None:
            counted.add_(1)
            momentum = 1 / float(counted) if momentum is None else momentum
        running = part.running_mean, part.running_var
        out, mean, variance = _Normalised.apply(x, part.weight, part.bias, *running, momentum or 0.0, part.eps)
        seen[part] = mean, variance
        return out

    parts = batch_normalised(module)
    try:
        for part in parts:
            part.__dict__["forward"] = partial(normalise, part)
        yield seen
    finally:
        for part in parts:
            part.__dict__.pop("forward", None)


class _Normalised(torch.autograd.Function):
    """Batch normalisation by the batch's own statistics, and these, mean and biased variance ``[C]``, with a graph.

    torch's own kernel, which knows the statistics anyway; over them again is twice the time of the kernel.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The normalised ``x``, mean and variance; moves the running statistics."""
        out, mean, scale = torch.native_batch_norm(x, weight, bias, running_mean, running_var, True, momentum, eps)
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.eps = eps
        return out, mean, (scale.square().reciprocal() - eps).clamp_(min=0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Of all three; of the statistics ``(g_mean + 2 (x - mean) g_variance) / n``."""
        x, weight, middle, scale = ctx.saved_tensors
        kernel = torch.ops.aten.native_batch_norm_backward
        wanted = ctx.needs_input_grad[:3]
        by_x, by_weight, by_bias = kernel(out, x, weight, None, None, middle, scale, True, ctx.eps, wanted)
        if wanted[0]:
            each, shape = x.numel() // x.shape[1], (1, -1, *[1] * (x.ndim - 2))
            slope = 2 * variance / each
            by_x = by_x.addcmul_(x, slope.to(x.dtype).view(shape))
            by_x = by_x.add_((mean / each - slope * middle).to(x.dtype).view(shape))
        return by_x, by_weight, by_bias, None, None, None, None


@contextmanager
def normalised_by(statistics: Statistics) -> Iterator[None]:
    """Inside, the batch normalisations have these for running statistics, and so do bounds; then their own again."""
    before = {part: (part._buffers["running_mean"], part._buffers["running_var"]) for part in statistics}
    try:
        for part, (mean, variance) in statistics.items():
            part._buffers["running_mean"], part._buffers["running_var"] = mean, variance
        yield
    finally:
        for part, (mean, variance) in before.items():
            part._buffers["running_mean"], part._buffers["running_var"] = mean, variance

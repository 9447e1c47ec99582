"""Batch normalisation in training: a batch's own statistics in the place of the running ones."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
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

    def note(part: nn.Module, given: tuple[Any, ...]) -> None:
        if part in seen:
            raise UsageError(
                f"bounds in training know one set of statistics for a batch normalisation, and {part} is used twice "
                "in one pass; give each place its own."
            )
        x = given[0].float() if given[0].dtype != torch.float64 else given[0]
        variance, mean = torch.var_mean(x, [0, *range(2, x.ndim)], correction=0)
        seen[part] = mean, variance

    hooks = [part.register_forward_pre_hook(note) for part in batch_normalised(module)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


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

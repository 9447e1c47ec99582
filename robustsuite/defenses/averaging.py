"""A network that follows another one: the exponential average of its weights."""

from typing import Literal

import torch
from torch import nn


@torch.no_grad()
def follow(average: nn.Module, live: nn.Module, decay: float, buffers: Literal["copy", "average"] = "copy") -> None:
    """Move the weights of ``average`` by ``1 - decay`` of the way to those of ``live``, all of it at 0.

    ``buffers`` (batch-norm statistics) are taken over or averaged too; counters are always taken over.
    """
    for mean, now in zip(average.parameters(), live.parameters(), strict=True):
        mean.lerp_(now, 1 - decay)
    for mean, now in zip(average.buffers(), live.buffers(), strict=True):
        if buffers == "average" and mean.is_floating_point():
            mean.lerp_(now, 1 - decay)
        else:
            mean.copy_(now)

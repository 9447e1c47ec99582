"""Normalisation as the model's first layer: the suite's images stay in [0,1], and attacks see through it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustsuite.errors import InputError


class Normalize(nn.Module):
    """``(x - mean) / std`` for every channel of ``x`` ``[N,C,H,W]``.

    The constants are buffers outside the state dict, so that a checkpoint's names stay those of the network. Raises
    `InputError` when the lengths differ or a std is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean:
            raise InputError(
                f"normalisation needs one mean and one std a channel, got {len(mean)} means and {len(std)} stds."
            )
        tensors = torch.tensor([list(mean), list(std)], dtype=torch.float32)
        if not bool(torch.isfinite(tensors).all()) or not bool((tensors[1] > 0).all()):
            raise InputError(f"normalisation needs finite means and positive stds, got {list(mean)} and {list(std)}.")
        self.register_buffer("mean", tensors[0].view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", tensors[1].view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images of the same shape."""
        return (x - self.mean) / self.std

    def extra_repr(self) -> str:
        """The constants."""
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"


def with_normalization(
    net: nn.Module, mean: Sequence[float], std: Sequence[float], *, channels: int | None = None
) -> nn.Sequential:
    """``net`` behind a `Normalize`; raises `InputError` when the lengths are not ``channels`` (if given)."""
    if channels is not None and len(mean) != channels:
        raise InputError(
            f"the images have {channels} channel{'s' if channels != 1 else ''}, but {len(mean)} normalisation "
            f"mean{'s were' if len(mean) != 1 else ' was'} given; give one mean and one std for each channel."
        )
    return nn.Sequential(Normalize(mean, std), net)


class LogProbabilities(nn.Module):
    """Logits of a network that returns probabilities: their logarithm, zeros lifted to the smallest normal float."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities ``[N,K]``, which are logits of the same probabilities."""
        return self.net(x).float().clamp_min(torch.finfo(torch.float32).tiny).log()

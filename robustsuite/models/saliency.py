"""Attributions as maps over the pixels, and how far two maps agree: their top k, and their centres of mass."""

import torch
from torch import Tensor

_TINY = 1e-30


def saliency(attributions: Tensor) -> Tensor:
    """Each pixel's share of the attributions ``[N,C,H,W]``, their sizes summed over the channels: ``[N,H*W]``.

    Rows sum to 1, and are 0 where all attributions are. Ghorbani, Abid, Zou (AAAI 2019), which scales them by H*W.
    """
    size = attributions.abs().sum(1).flatten(1)
    return size / size.sum(1, keepdim=True).clamp(min=_TINY)


def top_pixels(maps: Tensor, k: int) -> Tensor:
    """Whether each pixel of the maps ``[N,P]`` is among the k largest, bool ``[N,P]``; of equals the first."""
    order = maps.argsort(dim=1, descending=True, stable=True)[:, :k]
    return torch.zeros_like(maps, dtype=torch.bool).scatter_(1, order, True)


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """The share of the pixels of ``a`` that are also in ``b``, both bool ``[N,P]``: float64 ``[N]``."""
    return (a & b).sum(1).double() / a.sum(1).clamp(min=1)


def centre(maps: Tensor, height: int, width: int) -> Tensor:
    """Row and column of each map's centre of mass, in pixels: ``[N,2]``. Differentiable."""
    rows, columns = torch.meshgrid(
        torch.arange(height, device=maps.device), torch.arange(width, device=maps.device), indexing="ij"
    )
    return maps @ torch.stack([rows.flatten(), columns.flatten()], 1).to(maps.dtype)

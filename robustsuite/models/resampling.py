"""Bilinear resampling of a window of each image into a window of a canvas, as one linear map."""

import torch
from torch import Tensor


def resample(x: Tensor, source: Tensor, target: Tensor, size: tuple[int, int]) -> Tensor:
    """The ``source`` windows of images ``[N,C,H,W]``, resized into the ``target`` windows of canvases ``[N,C,*size]``.

    Windows are int64 ``[N,4]``: top, left, height, width. Pixels are sampled as by ``interpolate(mode="bilinear",
    align_corners=False)``; the canvas is 0 around the target. Both axes are matrix products, so that no gradient is
    summed in an order of its own.
    """
    rows = _weights(source[:, 0], source[:, 2], target[:, 0], target[:, 2], x.shape[2], size[0], x)
    columns = _weights(source[:, 1], source[:, 3], target[:, 1], target[:, 3], x.shape[3], size[1], x)
    return rows.unsqueeze(1) @ x @ columns.unsqueeze(1).mT


def whole(x: Tensor) -> Tensor:
    """The window of each image that is all of it, int64 ``[N,4]``."""
    return torch.tensor([0, 0, *x.shape[2:]], device=x.device).expand(x.shape[0], 4)


def _weights(
    start: Tensor, length: Tensor, place: Tensor, extent: Tensor, pixels: int, size: int, like: Tensor
) -> Tensor:
    """``[N,size,pixels]``: how much of each pixel of the source every pixel of the canvas gets along one axis."""
    start, length, place, extent = (t.unsqueeze(1).to(like.dtype) for t in (start, length, place, extent))
    own = torch.arange(size, device=like.device, dtype=like.dtype) - place
    at = ((own + 0.5) * length / extent - 0.5).clamp(min=0).minimum(length - 1) + start
    hat = 1 - (at.unsqueeze(2) - torch.arange(pixels, device=like.device, dtype=like.dtype)).abs()
    return hat.clamp(min=0) * ((own >= 0) & (own < extent)).unsqueeze(2)

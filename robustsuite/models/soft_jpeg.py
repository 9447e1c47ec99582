"""JPEG as a differentiable function: all of the codec but its rounding, which is softened."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHROMA = {"4:4:4": 0, "4:2:0": 2}
"""How colours are sampled, and what libjpeg calls it."""

# The tables that the standard (ITU-T T.81, annex K) suggests and libjpeg scales by quality.
_LUMA = [
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
]
_CHROMA = [
    [17, 18, 24, 47, 99, 99, 99, 99],
    [18, 21, 26, 66, 99, 99, 99, 99],
    [24, 26, 56, 99, 99, 99, 99, 99],
    [47, 66, 99, 99, 99, 99, 99, 99],
    *[[99] * 8] * 4,
]
_TO_YCBCR = [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]


def quantisation(quality: int, base: list[list[int]]) -> Tensor:
    """The table of a quality from 1 to 100, float32 ``[8,8]``: libjpeg's rule."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((torch.tensor(base) * scale + 50) // 100).clamp(1, 255).float()


class SoftJPEG(nn.Module):
    """Compression and decompression with ``round(v)`` replaced by ``round(v) + (v - round(v))^3``.

    Shin and Song, "JPEG-resistant Adversarial Images" (2017). Colour transform, subsampling, blocks and tables are the
    codec's; pixels are neither rounded nor clipped. ``chroma`` is 4:4:4 or 4:2:0.
    """

    tables: Tensor
    dct: Tensor
    colours: Tensor

    def __init__(self, quality: int, chroma: str) -> None:
        super().__init__()
        self.halved = chroma == "4:2:0"
        tables = torch.stack([quantisation(quality, base) for base in (_LUMA, _CHROMA)])
        k, n = torch.arange(8.0).view(-1, 1), torch.arange(8.0)
        dct = torch.cos((2 * n + 1) * k * math.pi / 16) / 2
        dct[0] /= math.sqrt(2)
        for name, value in (("tables", tables), ("dct", dct), ("colours", torch.tensor(_TO_YCBCR))):
            self.register_buffer(name, value, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[N,1,H,W]`` grey or ``[N,3,H,W]`` RGB in [0,1], the same shape."""
        height, width = x.shape[2:]
        cell = 16 if self.halved and x.shape[1] == 3 else 8
        x = F.pad(255 * x, (0, -width % cell, 0, -height % cell), mode="replicate")
        if x.shape[1] == 1:
            return self._coded(x - 128, 0)[:, :, :height, :width] / 255 + 128 / 255
        parts = torch.einsum("ij,njhw->nihw", self.colours, x)
        luma, chroma = self._coded(parts[:, :1] - 128, 0) + 128, parts[:, 1:]
        if self.halved:
            chroma = self._coded(F.avg_pool2d(chroma, 2), 1)
            chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
        else:
            chroma = self._coded(chroma, 1)
        rgb = torch.einsum("ij,njhw->nihw", torch.linalg.inv(self.colours), torch.cat([luma, chroma], 1))
        return rgb[:, :, :height, :width] / 255

    def _coded(self, planes: Tensor, table: int) -> Tensor:
        """Each 8x8 block of ``[N,C,H,W]`` transformed, quantised softly and transformed back."""
        rows, columns = (extent // 8 for extent in planes.shape[2:])
        blocks = planes.unflatten(3, (columns, 8)).unflatten(2, (rows, 8)).transpose(3, 4)
        scaled = (self.dct @ blocks @ self.dct.T) / self.tables[table]
        nearest = scaled.detach().round()
        coarse = (nearest + (scaled - nearest) ** 3) * self.tables[table]
        return (self.dct.T @ coarse @ self.dct).transpose(3, 4).flatten(4).flatten(2, 3)

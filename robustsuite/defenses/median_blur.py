"""Median blur: every pixel becomes the median of its window."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustsuite.defenses.base import WrapMethod
from robustsuite.errors import UsageError
from robustsuite.models.bpda import check_surrogate, transformed
from robustsuite.models.classifier import Classifier
from robustsuite.registry import register_defense


@register_defense("median_blur", kind="wrap", paper="Xu, Evans, Qi 2018, arXiv:1704.01155", cost="1 pass")
@dataclass(frozen=True)
class MedianBlur(WrapMethod):
    """The median of ``size`` x ``size`` pixels, channel by channel, with the image mirrored at its edges.

    Xu, Evans, Qi, "Feature Squeezing" (NDSS 2018), with 2 and 3; of an even number of pixels the upper median, as in
    their code (SciPy). ``surrogate`` is what the gradient goes through: ``exact``, the pixel that is the median;
    ``soft``, the mean of the window; or ``identity``.
    """

    size: int = 2
    surrogate: str = "exact"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UsageError(f"median_blur needs a window of at least one pixel, got size {self.size}.")
        check_surrogate(self.surrogate, soft=True)

    def wrap(self, model: Classifier) -> Classifier:
        """A plain classifier behind the filter; raises `UsageError` where the window is larger than the image."""
        if len(model.input_shape) != 3 or min(model.input_shape[1:]) < self.size:
            raise UsageError(
                f"median_blur is for images [C,H,W] of at least {self.size}x{self.size} pixels, got "
                f"{list(model.input_shape)}."
            )
        return transformed(model, Median(self.size), self.surrogate, soft=Mean(self.size))


class Median(nn.Module):
    """The (upper) median of each window, ``size // 2`` pixels of which come before the pixel itself."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N,C,H,W]``."""
        windows = self._mirrored(x).unfold(2, self.size, 1).unfold(3, self.size, 1).flatten(4)
        return windows.sort(4).values[..., self.size**2 // 2]

    def _mirrored(self, x: Tensor) -> Tensor:
        rows, columns = (self._reflected(extent, x.device) for extent in x.shape[2:])
        return x[:, :, rows][:, :, :, columns]

    def _reflected(self, extent: int, device: torch.device) -> Tensor:
        """Positions with the edge pixel repeated: ... 1 0 | 0 1 2 ..."""
        before = self.size // 2
        at = torch.arange(-before, extent + self.size - 1 - before, device=device)
        at = torch.where(at < 0, -at - 1, at)
        return torch.where(at >= extent, 2 * extent - 1 - at, at)


class Mean(Median):
    """The mean of the same windows."""

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[N,C,H,W]``."""
        return F.avg_pool2d(self._mirrored(x), self.size, 1)

"""Bit-depth reduction: pixels rounded to a few levels."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustsuite.defenses.base import WrapMethod
from robustsuite.errors import UsageError
from robustsuite.models.bpda import check_surrogate, transformed
from robustsuite.models.classifier import Classifier
from robustsuite.registry import register_defense

_SHARPNESS = 4.0


@register_defense("bit_depth", kind="wrap", paper="Xu, Evans, Qi 2018, arXiv:1704.01155", cost="1 pass")
@dataclass(frozen=True)
class BitDepth(WrapMethod):
    """Round every pixel to ``round(x (2^bits - 1)) / (2^bits - 1)``: stops attacks that follow the true gradient, only.

    Xu, Evans, Qi, "Feature Squeezing" (NDSS 2018), with 3 to 5 ``bits``; broken by Athalye, Carlini, Wagner (ICML
    2018). ``surrogate`` is what the gradient goes through: ``identity``; ``soft``, a smooth staircase; or ``exact``,
    the true gradient, which is zero.
    """

    bits: int = 4
    surrogate: str = "identity"

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 16:
            raise UsageError(f"bits must lie between 1 and 16, got {self.bits}; 8 leaves 8-bit images as they are.")
        check_surrogate(self.surrogate, soft=True)

    def wrap(self, model: Classifier) -> Classifier:
        """A plain classifier behind the rounding."""
        levels = 2**self.bits - 1
        return transformed(model, Rounding(levels), self.surrogate, soft=SoftRounding(levels), exact="none")


class Rounding(nn.Module):
    """Pixels in [0,1] to the nearest multiple of ``1 / levels``."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return (x * self.levels).round() / self.levels


class SoftRounding(Rounding):
    """The staircase with a tanh in place of every jump: flat near the levels, but nowhere without a slope."""

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        v = x * self.levels
        floor = v.detach().floor()
        rise = torch.tanh(_SHARPNESS * (v - floor - 0.5)) / (2 * math.tanh(_SHARPNESS / 2))
        return (floor + 0.5 + rise) / self.levels

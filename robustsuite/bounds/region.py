"""The sets of inputs that bounds are taken over: norm balls, clipped to the image box."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustsuite.bounds.ibp import input_box
from robustsuite.bounds.rounding import UNIT_FLOAT32, Box
from robustsuite.bounds.rows import Rows
from robustsuite.threat import ABSOLUTE_SLACK, RELATIVE_SLACK, Norm

# Roundings of a sum of products as `Rows.lowest` makes it, a scaled coefficient's among them.
SUMMED = 40
_DUAL: dict[Norm, float] = {"L2": 2.0, "L1": float("inf")}


@dataclass(frozen=True)
class Region:
    """Images within ``radius`` (float64 ``[N]``) of ``center`` in a norm, and within `box` (float64).

    It holds everything that `ThreatModel.contains` lets pass, its slack for rounding included.
    """

    box: Box
    center: Tensor
    radius: Tensor
    norm: Norm

    @property
    def is_box(self) -> bool:
        """Whether `box` is all there is to it."""
        return self.norm == "Linf"

    def rows(self, index: Tensor) -> "Region":
        """The regions of some of the examples."""
        return Region(
            Box(self.box.lower[index], self.box.upper[index]), self.center[index], self.radius[index], self.norm
        )

    def lowest(self, rows: Rows) -> Tensor:
        """Lower bounds ``[M]`` (float64) of linear functions of the image over their owners' regions."""
        unit = UNIT_FLOAT32 if rows.coeff.dtype == torch.float32 else 0.0
        slack = SUMMED * unit * self.box.magnitude
        dtype = rows.coeff.dtype
        found = rows.lowest(below(self.box.lower - slack, dtype), above(self.box.upper + slack, dtype))
        if self.is_box:
            return found
        slack = SUMMED * unit * self.center.abs()
        middle = rows.lowest(below(self.center - slack, dtype), above(self.center + slack, dtype))
        flat = rows.coeff.flatten(1)
        length = torch.linalg.vector_norm(flat, _DUAL[self.norm], dim=1, dtype=torch.float64) * (1 + 1e-9)
        return found.maximum(middle - self.radius[rows.owner] * length)


def region(x: Tensor, radius: float | Tensor, norm: Norm) -> Region:
    """The ball of ``radius`` (a number, or one for each row ``[N]``) around ``x`` ``[N,C,H,W]``, clipped to [0,1]."""
    box = Box(*input_box(x, radius))
    radii = torch.as_tensor(radius, dtype=torch.float64, device=x.device).expand(len(x))
    return Region(box, x.double(), radii * (1 + RELATIVE_SLACK) + ABSOLUTE_SLACK, norm)


def below(value: Tensor, dtype: torch.dtype) -> Tensor:
    """``value`` in another floating-point type, rounded downwards."""
    if value.dtype == dtype:
        return value
    rounded = value.to(dtype)
    over = rounded > value
    if value.device.type == "cpu" and not bool(over.any()):  # the values of float32 boxes, for the most part
        return rounded
    return torch.nextafter(rounded, rounded.new_full((), float("-inf"))).where(over, rounded)


def above(value: Tensor, dtype: torch.dtype) -> Tensor:
    """``value`` in another floating-point type, rounded upwards."""
    return -below(-value, dtype)

"""Boxes through dot products: midpoint and half width, both in float32, with every rounding charged.

Let x be in a box around c with half widths r, and ``m = |c| + r``, so that ``|x| <= m``. With u = 2^-24 and
``gamma_n = n u / (1 - n u)``, for every order of summation, with or without fused multiply-add (Higham, "Accuracy and
Stability of Numerical Algorithms", 3.1), and leaving underflow aside:

- the network's own result y(x) is off its exact one by at most ``gamma_e (|W| m + |b|)``;
- the midpoint that is computed here is off ``W c + b`` by at most ``gamma_o (|W| |c| + |b|)``;
- a sum of nonnegative products that is computed here is at least ``1 - gamma_o`` times the exact one.

So ``|y(x) - midpoint| <= |W| ((1 + gamma_e) r + (gamma_e + gamma_o) |c|) + (gamma_e + gamma_o) |b|``: the errors are
folded into the half widths and into the bias that the second product takes, and no third one is needed. A factor of
``1 + 2 gamma_o >= 1 / (1 - gamma_o)`` covers that product, four roundings more in gamma_o the sums ``midpoint +- half
width``, and sixteen in the factors what computes c, r, the folded half widths and the factors themselves.

Underflow: a result below the smallest normal number may be off by that much, or flushed to zero. It is added 8 times
to every sum for each of its terms (products and additions, of the three sums), and more than it to every folded half
width.
Overflow: the half width is at least gamma_o times the sum of the absolute values, and so tells where that might exceed
float32; nothing is known of such an element, nor of one that comes to NaN.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from robustsuite.bounds.rounding import HUGE, TINY, UNIT_FLOAT32, Box, Rounding, gamma

Apply = Callable[[Tensor, Tensor, Tensor | None], Tensor]

_BLOCK = 512  # products of a long row that are summed before the blocks are, for a small gamma_o
_LEAST = 2.0**-80  # keeps products with it clear of subnormal numbers, which processors are slow at
_SUMS, _FACTORS = 4, 16 * UNIT_FLOAT32


def in_float32(rounding: Rounding, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether `float32_image` may be used: on a CPU that multiplies float32 as float32.

    Other devices may choose algorithms that the analysis does not cover.
    """
    plain = weight.dtype == torch.float32 and (bias is None or bias.dtype == torch.float32)
    return rounding.unit == UNIT_FLOAT32 and plain and weight.device.type == "cpu" and _full_precision()


def float32_image(rounding: Rounding, x: Box, weight: Tensor, bias: Tensor | None, apply: Apply) -> Box:
    """Box (float32) of all that float32 execution of ``apply(x, weight, bias)`` gives over a box of any precision.

    Of rows of a matrix, products with elements that are 0 for certain add no rounding of the execution.
    """
    count, size = weight[0].numel(), weight.abs()
    blocks = -(-count // _BLOCK) if weight.ndim == 2 else 1
    own = gamma(-(-count // blocks) + blocks + _SUMS)
    safe = (1 + 2 * own) * (1 + _FACTORS)
    center, radius = _middle(x)
    distance = center.abs()
    largest = distance + radius
    terms = largest.count_nonzero(-1).unsqueeze(-1) if weight.ndim == 2 else count
    executed = gamma(terms + 2)
    wide = radius.mul_((1 + executed) * safe).add_(distance.mul_((executed + own) * safe)).add_(_LEAST)
    lost = 8 * (count + 2) * TINY
    extra = lost + (weight.new_zeros(len(weight)) if bias is None else bias.abs() * ((gamma(count + 2) + own) * safe))
    middle = apply(center, weight, bias)
    if rounding.noting:
        half, magnitude = apply(torch.cat([wide, largest.mul_(safe)]), size, extra).chunk(2)
        added = 0.0 if bias is None else bias.abs().double().view(-1, *[1] * (weight.ndim - 2))
        rounding.note(terms + 2, magnitude.double() + added)
    else:
        half = apply(wide, size, extra)
    box = Box(middle - half, middle + half)
    limit = own * HUGE / 4
    if bool(half.amax() <= limit):  # NaN is not
        return box
    unknown = ~(half <= limit)
    return Box(box.lower.masked_fill(unknown, -torch.inf), box.upper.masked_fill(unknown, torch.inf))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear`` in blocks of nearly one length, at most 512, whose sums are then added up."""
    blocks = -(-weight.shape[1] // _BLOCK)
    if blocks < 2:
        return F.linear(x, weight, bias)
    parts = zip(x.tensor_split(blocks, -1), weight.tensor_split(blocks, 1), strict=True)
    out = F.linear(*next(parts))
    for part, columns in parts:
        out.add_(F.linear(part, columns))
    return out if bias is None else out.add_(bias)


def _middle(x: Box) -> tuple[Tensor, Tensor]:
    """Points near the midpoints, and how far the ends are from them; new tensors, float32."""
    center = torch.lerp(x.lower, x.upper, 0.5).float()
    there = center.to(x.lower.dtype)
    return center, torch.maximum(x.upper - there, there - x.lower).float()


def _full_precision() -> bool:
    """Whether neither autocast nor a setting makes products of float32 coarser than float32 on a CPU."""
    if torch.is_autocast_enabled("cpu"):
        return False
    try:
        overall = torch.get_float32_matmul_precision()
    except RuntimeError:  # single backends have been set
        overall = "highest"
    parts = (getattr(torch.backends.mkldnn, name, None) for name in ("conv", "matmul"))
    return overall == "highest" and all(getattr(part, "fp32_precision", "") not in ("bf16", "tf32") for part in parts)

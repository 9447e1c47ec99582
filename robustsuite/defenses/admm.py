"""The alternating direction method of multipliers, for a sum of simple functions of linear maps of one unknown."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

Blocks = Sequence[Tensor]
_EVERY, _APART, _FACTOR, _RELAXED = 50, 3.0, 2.0, 1.6


class Split(ABC):
    """``min_x sum_b h_b(z_b)`` with ``z = K x``: all that is known is what is done with K and with the functions h."""

    @abstractmethod
    def rows(self, x: Blocks) -> list[Tensor]:
        """``K x``."""

    @abstractmethod
    def fit(self, z: Blocks) -> list[Tensor]:
        """The x that minimises ``|K x - z|^2``."""

    @abstractmethod
    def lower(self, z: Blocks, rate: float) -> list[Tensor]:
        """The proximal map of the sum of the h, times ``rate``."""


def admm(split: Split, start: Blocks, *, penalty: float, steps: int, tolerance: float) -> list[Tensor]:
    """The blocks z where it ends, begun at 0; ``start`` is any x, of which only the shapes count.

    It ends after ``steps`` rounds, or when the sizes of ``K x - z`` and of z's last move (times the penalty) are both
    below ``tolerance`` of those of z and of the multipliers. Over the first half the ``penalty`` is adapted so that the
    two shrink alike; steps are over-relaxed by 1.6 (Boyd et al. 2011, sections 3.3 and 3.4).
    """
    z = [torch.zeros_like(part) for part in split.rows(start)]
    u = [part.clone() for part in z]
    for step in range(1, steps + 1):
        reached = split.rows(split.fit([a - b for a, b in zip(z, u, strict=True)]))
        mixed = [_RELAXED * a + (1 - _RELAXED) * b for a, b in zip(reached, z, strict=True)]
        before, z = z, split.lower([a + b for a, b in zip(mixed, u, strict=True)], 1 / penalty)
        u = [a + b - c for a, b, c in zip(u, mixed, z, strict=True)]
        if step % _EVERY:
            continue
        apart = _size([a - b for a, b in zip(reached, z, strict=True)]) / max(_size(z), 1e-12)
        moved = _size([a - b for a, b in zip(before, z, strict=True)]) / max(_size(u), 1e-12)
        if max(apart, moved) < tolerance:
            break
        if 2 * step <= steps and not 1 / _APART <= apart / max(moved, 1e-300) <= _APART:
            factor = _FACTOR if apart > moved else 1 / _FACTOR
            penalty, u = penalty * factor, [part / factor for part in u]
    return z


def _size(blocks: Blocks) -> float:
    return float(torch.stack([part.square().sum() for part in blocks]).sum().sqrt())

"""Optimal sampling: with which probabilities the members of a randomised ensemble should answer."""

from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

_SHARES = 100


def onto_simplex(point: Tensor) -> Tensor:
    """The nearest probabilities, ``[M]``, by sorting (Duchi et al. 2008)."""
    falling = point.sort(descending=True).values
    ranks = torch.arange(1, len(point) + 1, device=point.device)
    shift = (falling.cumsum(0) - 1) / ranks
    last = int((falling > shift).sum()) - 1
    return (point - shift[last]).clamp(min=0)


def optimal_sampling(errors: Callable[[Tensor, int], Tensor], start: Tensor, *, steps: int, rate: float) -> Tensor:
    """The best of the probabilities ``[M]`` that projected subgradient descent meets from ``start`` on.

    ``errors(probabilities, step)`` are the members' error rates on examples that attack these probabilities: a
    subgradient of the expected error, which is what is minimised. The t-th step (from 1) has the size ``rate / t``.
    Source: Dbouk, Shanbhag 2023, arXiv:2302.01375, algorithm 1.
    """
    at, best, lowest = start, start, 1.0
    for step in range(steps):
        slope = errors(at, step)
        value = float(slope @ at)
        if value <= lowest:
            best, lowest = at, value
        at = onto_simplex(at - rate / (step + 1) * slope)
    return best


def in_shares(probabilities: Tensor) -> list[Fraction]:
    """The same as hundredths that sum to 1, the largest remainders rounded up; equal probabilities stay equal."""
    if bool((probabilities == probabilities[0]).all()):
        return [Fraction(1, len(probabilities))] * len(probabilities)
    parts = [_SHARES * value for value in probabilities.tolist()]
    whole = [int(part + 1e-9) for part in parts]
    order = sorted(range(len(parts)), key=lambda m: (whole[m] - parts[m], m))
    for member in order[: _SHARES - sum(whole)]:
        whole[member] += 1
    return [Fraction(part, _SHARES) for part in whole]

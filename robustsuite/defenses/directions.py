"""Directions of gradients, and how far two of them are from parallel: differentiable, and safe where there is none."""

from torch import Tensor

TINY = 1e-20  # below it a gradient in float32 has no direction worth the name


def direction(grad: Tensor) -> Tensor:
    """Each row of ``grad`` ``[B,...]`` divided by its norm, ``[B,d]``; 0 where it is 0."""
    flat = grad.flatten(1)
    # Squares of a confident example's gradient underflow: bring its largest entry to 1 before.
    largest = flat.detach().abs().amax(1, keepdim=True)
    flat = (flat / largest.clamp(min=TINY)).masked_fill(largest <= TINY, 0)
    return flat / flat.norm(dim=1, keepdim=True).clamp(min=0.5)


def misalignment(a: Tensor, b: Tensor) -> Tensor:
    """``1 - cos(a, b)`` of each row of ``[B,...]``, ``[B]``; 0 where one of them has no direction."""
    a, b = direction(a), direction(b)
    still = (a == 0).all(1) | (b == 0).all(1)
    return (1 - (a * b).sum(1)).masked_fill(still, 0)

"""A small box around the worst example, in place of the whole ball."""

from torch import Tensor

from robustsuite.defenses.step import InnerSpec, Step


def adversarial(step: Step, steps: int, alpha: float, eps: float) -> Tensor:
    """What PGD finds in the ball of ``eps`` times the threat model's, in ``steps`` of ``alpha`` times that."""
    return step.maximise(InnerSpec("ce", steps, alpha * eps, eps=eps))


def small_box(found: Tensor, lower: Tensor, upper: Tensor, shrink: float) -> tuple[Tensor, Tensor]:
    """The box of ``shrink`` times the size of ``[lower, upper]`` within it, with its center nearest to ``found``.

    ``shrink`` 1 gives the whole of it, bit for bit.
    """
    if shrink == 1:
        return lower, upper
    half = (upper - lower) / 2 * shrink
    center = found.maximum(lower + half).minimum(upper - half)
    return center - half, center + half

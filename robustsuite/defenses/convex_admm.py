"""The convex programs solved by ADMM: after one factorisation a step costs no more than a few matrix products."""

import torch
from torch import Tensor

from robustsuite.defenses.admm import Blocks, Split, admm
from robustsuite.defenses.convex_program import Program
from robustsuite.defenses.convex_prox import lower_loss, ordered, shrink_rows, under

_PENALTY = 0.03  # to begin with, as the multipliers of the mean loss are of the size 1 / n


def solve(program: Program, *, steps: int = 4000, tolerance: float = 1e-5) -> tuple[Tensor, Tensor]:
    """The v and w ``[P,d+1]`` that minimise ``program``, sparse; constraints hold up to the tolerance."""
    split = PatternSplit(program)
    d = program.cells.rows.shape[1]
    both = program.y.new_zeros(2, program.patterns.shape[1], d)
    penalty = _PENALTY / len(program.y)
    v, w = admm(split, [both, both[..., :-1]], penalty=penalty, steps=steps, tolerance=tolerance)[1]
    return v, w


class PatternSplit(Split):
    """Unknowns are (v, w) ``[2,P,d+1]`` and bounds t ``[2,P,d]`` of their sizes, which only cells with a width need.

    Blocks: the linear function of every image, which has the loss; (v, w), which have the penalty; (v, w) and t, of
    which one bounds the other; and both sides of the constraints, their rows scaled to length 1. K'K then is a matrix
    on patterns plus one on pixels, so that two eigendecompositions solve every step (for clean programs Bai, Gautam,
    Sojoudi 2023, arXiv:2201.01965, section 3, factorise all at once).
    """

    def __init__(self, program: Program) -> None:
        self.program, cells = program, program.cells
        self.wide = bool(cells.half.any())
        self.rows_, self.sides = cells.rows, 2 * program.patterns.T - 1
        length = self.rows_.norm(dim=1, keepdim=True)
        self.unit, self.half = self.rows_ / length, cells.half / length
        self.padded = torch.nn.functional.pad(cells.half, (0, 1))
        copies = torch.full((self.rows_.shape[1],), 1.0 + self.wide, dtype=self.rows_.dtype)
        copies[-1] = 1.0
        self.pixels = torch.linalg.eigh(torch.diag(copies) + self.unit.T @ self.unit)
        self.across = torch.linalg.eigh(2 * program.patterns.T @ program.patterns)
        self.bounds = torch.linalg.cholesky(torch.eye(self.half.shape[1]).to(self.half) + self.half.T @ self.half)

    def rows(self, x: Blocks) -> list[Tensor]:
        """See `Split`."""
        z, t = x
        found = [self.program.patterns @ (z[0] - z[1]), z, self.sides * (z @ self.unit.T)]
        return [*found, t @ self.half.T, z[..., :-1], t] if self.wide else found

    def fit(self, z: Blocks) -> list[Tensor]:
        """See `Split`."""
        linear, plain, signed, *wide = z
        right = plain + (self.sides * signed) @ self.unit
        pull = self.program.patterns.T @ linear
        bounds = right.new_zeros(*right.shape[:-1], right.shape[-1] - 1)
        if self.wide:
            spread, small, t = wide
            right = right + torch.nn.functional.pad(small, (0, 1))
            goal = t + spread @ self.half
            bounds = torch.cholesky_solve(goal.flatten(0, 1).T, self.bounds).T.view_as(goal)
        (values, basis), (gains, modes) = self.pixels, self.across
        total = (right[0] + right[1]) @ basis / values @ basis.T
        apart = modes.T @ (right[0] - right[1] + 2 * pull) @ basis / (gains.unsqueeze(1) + values)
        apart = modes @ apart @ basis.T
        return [torch.stack([total + apart, total - apart]) / 2, bounds]

    def lower(self, z: Blocks, rate: float) -> list[Tensor]:
        """See `Split`."""
        linear, plain, signed, *wide = z
        program = self.program
        share = rate / len(program.y)
        linear = lower_loss(program.loss, linear, self.rows_, self.padded, program.y, share)
        plain = shrink_rows(plain, rate * program.beta)
        if not self.wide:
            return [linear, plain, signed.clamp(min=0)]
        spread, small, t = wide
        return [linear, plain, *ordered(signed, spread), *under(small, t)]

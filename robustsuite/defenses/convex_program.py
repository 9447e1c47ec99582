"""Training a two-layer ReLU network as a convex program: what is minimised, and under which constraints."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from robustsuite.errors import UsageError

Loss = Literal["hinge", "squared", "logistic"]
LOSSES: tuple[Loss, ...] = get_args(Loss)


@dataclass(frozen=True)
class Cells:
    """Where each image may be moved to: ``|x' - centre| <= half`` coordinate by coordinate; float64 ``[n,d]`` both.

    The Linf ball of an image, cut off at the box [0,1], is such a cell, and so is (half 0) the image itself.
    """

    centre: Tensor
    half: Tensor

    @classmethod
    def around(cls, x: Tensor, eps: float) -> "Cells":
        """Of images ``[n,...]`` in the Linf ball of ``eps`` and the box."""
        flat = x.detach().double().cpu().flatten(1)
        lower, upper = (flat - eps).clamp(min=0), (flat + eps).clamp(max=1)
        return cls((lower + upper) / 2, (upper - lower) / 2) if eps else cls(flat, torch.zeros_like(flat))

    @property
    def rows(self) -> Tensor:
        """The centres with a last column of ones, which no adversary moves, ``[n,d+1]``."""
        return torch.cat([self.centre, torch.ones_like(self.centre[:, :1])], 1)


@dataclass(frozen=True)
class Program:
    """Minimise ``mean_k loss_k + beta sum_i (|v_i| + |w_i|)`` over v, w float64 ``[P,d+1]`` (the last entry a bias).

    On its cell the network is the linear function ``g_k = sum_i D_ik (v_i - w_i)`` of image k, for which the worst
    point of the cell is known: with ``f = g_k . centre_k`` and ``r = half_k . |g_k|`` the loss is ``max(0, 1 - y f +
    r)`` (hinge), ``log(1 + exp(-y f + r))`` (logistic) or ``(|f - y| + r)^2 / 2`` (squared), all of them exact. It is
    linear there because of the constraints ``(2 D_ik - 1) v_i . centre_k >= half_k . |v_i|``, the same for w, which
    keep every neuron's activation as the pattern has it on the whole cell. `patterns` D are float64 ``[n,P]`` of 0 and
    1, `y` float64 ``[n]`` of -1 and 1. Source: Bai, Gautam, Sojoudi 2023, arXiv:2201.01965, theorems 4.1 and 4.2.
    """

    cells: Cells
    y: Tensor
    patterns: Tensor
    loss: Loss
    beta: float

    def objective(self, v: Tensor, w: Tensor) -> float:
        """What is minimised."""
        return float(self.risk(v, w) + self.beta * (v.norm(dim=1).sum() + w.norm(dim=1).sum()))

    def risk(self, v: Tensor, w: Tensor) -> Tensor:
        """The mean loss at the worst points of the cells, if v and w keep the constraints."""
        linear = self.patterns @ (v - w)
        answers = (self.cells.rows * linear).sum(1)
        return losses(self.loss, self.y, answers, (self.cells.half * linear[:, :-1].abs()).sum(1)).mean()

    def violation(self, v: Tensor, w: Tensor) -> float:
        """By how much the worst constraint is missed, 0 if none is."""
        sides = 2 * self.patterns - 1
        slack = [sides * (self.cells.rows @ z.T) - self.cells.half @ z[:, :-1].abs().T for z in (v, w)]
        return max(0.0, -float(torch.stack(slack).min()))


def losses(loss: Loss, y: Tensor, answers: Tensor, reach: Tensor) -> Tensor:
    """The largest loss ``[n]`` where the answer to an image may lie ``reach`` away from ``answers``; labels are -1, 1.

    Raises `UsageError` for a loss that does not exist.
    """
    if loss == "hinge":
        return (1 - y * answers + reach).clamp(min=0)
    if loss == "logistic":
        return torch.nn.functional.softplus(reach - y * answers)
    if loss == "squared":
        return ((answers - y).abs() + reach).square() / 2
    raise UsageError(f"no convex loss '{loss}'; choose {', '.join(LOSSES)}.")

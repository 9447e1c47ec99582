"""CROWN-IBP: one backward pass over interval bounds, differentiable, for training.

Zhang et al. 2020, "Towards Stable and Efficient Training of Verifiably Robust Neural Networks", arXiv:1906.06316; with
loss fusion as in Xu et al. 2020, "Automatic Perturbation Analysis for Scalable Certified Robustness and Beyond",
arXiv:2002.12920, section 3.3.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from robustsuite.bounds.ascent import Choices
from robustsuite.bounds.crown import Crown
from robustsuite.bounds.elementwise import ReLU
from robustsuite.bounds.graph import Graph, Node
from robustsuite.bounds.ibp import Boxes, without_label
from robustsuite.bounds.image import blocks
from robustsuite.bounds.region import Region
from robustsuite.bounds.rounding import Box
from robustsuite.bounds.rows import Rows


class CrownIBP(Crown):
    """Backward passes over the interval bounds of the boxes ``[lower, upper]`` ``[N,C,H,W]``, differentiable.

    In float32 without a guard: for training, not for a certificate.
    """

    def __init__(self, graph: Graph, lower: Tensor, upper: Tensor) -> None:
        box = Box(lower.double(), upper.double())
        zeros = torch.zeros(len(lower), dtype=torch.float64, device=lower.device)
        self.graphed = torch.is_grad_enabled()
        region = Region(box, box.center, zeros, "Linf")
        super().__init__(graph, region, refine=False, guard=False, dtype=lower.dtype)

    def _propagate(self, refine: bool) -> None:
        with torch.set_grad_enabled(self.graphed):
            super()._propagate(refine)

    def _relax(self, step: Node, rows: Rows, choices: Choices | None) -> tuple[list[Rows], Tensor]:
        if type(step.operator) is not ReLU or choices is not None or rows.each == 0:
            return super()._relax(step, rows, choices)
        (taken,) = self.graph.activations(step, self.values)
        box = self.values[taken]
        coeff, constant = _ThroughReLU.apply(rows.grid, box.lower, box.upper)
        return [rows.over(coeff)], constant.flatten()

    def _lowest_constant(self, step: Node, rows: Rows) -> Tensor | None:
        constant = self.constants[step.name]
        if constant is None or rows.each == 0:
            return super()._lowest_constant(step, rows)
        # Both ends are the same but for roundings.
        if len(constant[0]) == 1:
            return rows.coeff.flatten(1) @ constant[0].flatten()
        return (rows.grid * constant[0].unsqueeze(1)).flatten(2).sum(2).flatten()

    @property
    def boxes(self) -> Boxes:
        """The interval bounds."""
        return Boxes(self.graph, self.values)

    def margins(self, y: Tensor) -> Tensor:
        """Lower bounds ``[N,K]`` of ``logit_y - logit_k``, 0 in column y: K rows for each example."""
        classes = self.values[self.graph.output.name].lower.shape[1]
        one = torch.eye(classes, dtype=self.dtype, device=y.device)
        found = self._rows((one[y].unsqueeze(1) - one).flatten(0, 1), classes)
        return without_label(found.view(-1, classes), y)

    def worst_loss(self, y: Tensor, beta: float = 1.0) -> Tensor:
        """Upper bounds ``[N]`` of the cross-entropy ``log sum_k exp(logit_k - logit_y)`` by one row for each example.

        Each exponential lies below its chord over the interval bounds of ``logit_k - logit_y``, so that the sum lies
        below one linear function of the logits, which is bounded backwards. ``beta``: the share of that bound of the
        sum; the rest is the sum at the interval bounds (0: without a backward pass).
        """
        label = y.view(-1, 1)
        high = -self.boxes.margins(y)
        top = high.amax(1, keepdim=True).clamp(min=0).detach()
        others = torch.ones_like(high).scatter(1, label, 0.0)
        peak = (high - top).exp()
        total = (peak * others).sum(1)
        if beta > 0:
            logits = self.values[self.graph.output.name].center
            middle = logits - logits.gather(1, label)
            width = 2 * (high - middle).clamp(min=0)
            # (1 - exp(-w)) / w is 1 at 0; a width of 0 must not divide.
            slope = (
                peak * others * torch.where(width > 1e-6, -torch.expm1(-width) / width.clamp(min=1e-6), 1 - width / 2)
            )
            coeff = (-slope).scatter(1, label, slope.sum(1, keepdim=True))
            fused = ((peak - slope * high) * others).sum(1) - self._rows(coeff, 1)
            total = beta * fused.clamp(min=0) + (1 - beta) * total
        top = top.squeeze(1)
        return ((-top).exp() + total).log() + top

    def _rows(self, coeff: Tensor, each: int) -> Tensor:
        owner = torch.arange(len(coeff), device=coeff.device) // each
        return self.lowest(self.graph.output.name, Rows(owner, coeff, each=each)).to(self.dtype)


class _ThroughReLU(torch.autograd.Function):
    """Rows ``A`` ``[N,R,*shape]`` over ReLUs as rows over their arguments in ``[l, u]``, and what that adds ``[N,R]``.

    The lines are those of `relu_lines`: below ``z`` or 0, whichever leaves the smaller area, above the chord with the
    slope ``s = u+ / (u+ - l-)``. In two dozen operations on blocks that stay in
    a cache, where autograd would record ten times as many on memory.
    """

    @staticmethod
    def forward(ctx: Any, coeff: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """``A+ a + A- s`` with the slopes a of the lower lines, and ``- sum A- s l-``."""
        ctx.save_for_backward(coeff, lower, upper)
        over, constant = torch.empty_like(coeff), coeff.new_empty(coeff.shape[:2])
        for rows in blocks(coeff):
            low, _, slope, adaptive = _lines(lower[rows], upper[rows])
            negative = coeff[rows].clamp(max=0)
            part = torch.sub(coeff[rows], negative, out=over[rows])
            part.mul_(adaptive).addcmul_(negative, slope)
            constant[rows] = negative.mul_(low.mul_(slope).neg_()).flatten(2).sum(2)
        return over, constant

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, over: Tensor, constant: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        """Gradients of rows and ends; those of a unit whose sign is known are 0."""
        coeff, lower, upper = ctx.saved_tensors
        by_coeff, by_lower, by_upper = (torch.empty_like(value) for value in (coeff, lower, upper))
        constant = constant.view(*constant.shape, *[1] * (coeff.ndim - 2))
        for rows in blocks(coeff):
            low, width, slope, adaptive = _lines(lower[rows], upper[rows])
            negative, positive = coeff[rows].clamp(max=0), coeff[rows].clamp(min=0).sign_()
            below = torch.addcmul(over[rows], constant[rows], low, value=-1)
            torch.lerp(below * slope, over[rows] * adaptive, positive, out=by_coeff[rows])
            unstable = slope.sign().sub_(slope.floor()).squeeze_(1)  # 0 < slope < 1
            by_slope = below.mul_(negative).sum(1).mul_(unstable)
            by_low = negative.mul_(constant[rows]).sum(1).mul_(unstable)
            slope, by_slope = slope.squeeze(1), by_slope.div_(width.squeeze(1))
            torch.sub(by_slope, by_low, out=by_lower[rows]).mul_(slope)
            torch.addcmul(by_slope, by_slope, slope, value=-1, out=by_upper[rows])
        return by_coeff, by_lower, by_upper


def _lines(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Negative part of the lower end, width of the unstable part, slopes of the upper and the lower lines.

    All ``[N,1,*shape]``; the width is never 0.
    """
    high, low = upper.clamp(min=0).unsqueeze_(1), lower.clamp(max=0).unsqueeze_(1)
    width = (high - low).clamp_(min=torch.finfo(lower.dtype).tiny)
    adaptive = (lower + upper).clamp_(min=0).sign_().unsqueeze_(1)
    return low, width, high.div_(width), adaptive

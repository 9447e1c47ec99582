"""Lower bounds of the margins between classes, by backward passes and by the boxes they go over."""

import torch
from torch import Tensor

from robustsuite.bounds.crown import Crown
from robustsuite.bounds.ibp import last_linear, merged_margins, without_label
from robustsuite.bounds.rounding import EXACT, FLOAT32, Box
from robustsuite.bounds.rows import Rows

_SEARCHED = 128  # rows whose slopes are searched at once; the graph of a whole backward pass is kept for each


def margin_rows(y: Tensor, classes: int, dtype: torch.dtype) -> tuple[Rows, Tensor]:
    """Rows ``logit_y - logit_k`` for every class k but y, K - 1 an example; and k, int64 ``[N (K - 1)]``."""
    others = torch.arange(classes, device=y.device).repeat(len(y), 1)
    others = others[others != y.view(-1, 1)]
    owner = torch.arange(len(y), device=y.device).repeat_interleave(classes - 1)
    coeff = torch.zeros(len(owner), classes, dtype=dtype, device=y.device)
    coeff.scatter_(1, y[owner].view(-1, 1), 1.0).scatter_(1, others.view(-1, 1), -1.0)
    return Rows(owner, coeff, each=classes - 1), others


def crown_margins(crown: Crown, y: Tensor, steps: int = 0) -> Tensor:
    """Lower bounds ``[N,K]`` (float64) of ``logit_y - logit_k`` over the regions of ``crown``; 0 in column y.

    ``steps``: of the search for better slopes (`Crown.best`), where a margin is not positive without.
    """
    output = crown.graph.output.name
    classes = crown.values[output].lower.shape[1]
    rows, others = margin_rows(y, classes, crown.dtype)
    margins = torch.zeros(len(y), classes, dtype=torch.float64, device=y.device)
    with torch.no_grad():
        for part in crown.parts(len(others), crown.graph.output):
            some = rows.part(part)
            margins[some.owner, others[part]] = crown.lowest(output, some)
    open_ = (margins[rows.owner, others] <= 0).nonzero().squeeze(1) if steps else others[:0]
    for start in range(0, len(open_), _SEARCHED):
        part = open_[start : start + _SEARCHED]
        some = rows.part(part)
        margins[some.owner, others[part]] = crown.best(output, some, steps)
    return margins.maximum(_box_margins(crown, y))


def _box_margins(crown: Crown, y: Tensor) -> Tensor:
    """What the boxes alone say, which is tighter now and then: the last linear layer over the box before it."""
    last = last_linear(crown.graph)
    if last is None:
        box = crown.values[crown.graph.output.name]
        return without_label(box.lower.gather(1, y.view(-1, 1)) - box.upper, y).double()
    (before,) = crown.graph.activations(last, crown.values)
    with torch.no_grad():
        box = crown.values[before]
        if crown.guard:
            box = Box(box.lower.double(), box.upper.double())
        return merged_margins(box, last, y, FLOAT32 if crown.guard else EXACT).double()

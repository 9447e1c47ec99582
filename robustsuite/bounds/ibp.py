"""Interval bound propagation (Gowal et al. 2018, arXiv:1810.12715), for training and for proofs."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robustsuite.bounds.elementwise import Identity
from robustsuite.bounds.graph import Graph, Node
from robustsuite.bounds.layers import Linear
from robustsuite.bounds.rounding import EXACT, FLOAT32, Box, Rounding
from robustsuite.threat import ABSOLUTE_SLACK, RELATIVE_SLACK

_CHUNK = 2**24  # elements of the weight differences [n,K,d] held at once
_FEW_CLASSES = 64  # beyond, products with all pairs of classes cost more than the differences that they save


def input_box(x: Tensor, radius: float | Tensor) -> tuple[Tensor, Tensor]:
    """The Linf ball of ``radius`` (a number, or one for each row ``[N]``) around ``x``, clipped to [0,1], in float64.

    It holds everything that `ThreatModel.contains` lets pass, its slack for rounding included.
    """
    center = x.double()
    radii = torch.as_tensor(radius, dtype=torch.float64, device=x.device).view(-1, *[1] * (x.ndim - 1))
    reach = radii * (1 + RELATIVE_SLACK) + ABSOLUTE_SLACK
    return (center - reach).clamp_(min=0), (center + reach).clamp_(max=1)


def ibp(graph: Graph, lower: Tensor, upper: Tensor, *, guard: bool = False) -> tuple[Tensor, Tensor]:
    """Bounds ``(lower, upper)`` of the logits ``[N,K]`` over the boxes ``[lower, upper]`` ``[N,C,H,W]``.

    Without ``guard``: in the dtype of the boxes, differentiable, for training. With it: in float64, without a graph,
    and widened layer by layer so that every logit that float32 execution can give lies inside (`Rounding`).
    """
    box = _propagate(graph, lower, upper, guard, None)
    return (box.lower.double(), box.upper.double()) if guard else (box.lower, box.upper)


def ibp_margins(graph: Graph, lower: Tensor, upper: Tensor, y: Tensor, *, guard: bool = False) -> Tensor:
    """Lower bounds ``[N,K]`` of ``logit_y - logit_k`` over the boxes, 0 in column y; ``guard`` as in `ibp`.

    ``cross_entropy(-margins, y)`` is the worst-case loss, and an example is certified where every column but y is
    positive (`smallest_margin`). A last linear layer is merged with the differences of its rows, which is tighter than
    the difference of two bounds.
    """
    if not guard:
        return propagated(graph, lower, upper).margins(y)
    last = last_linear(graph)
    if last is not None:
        box = _propagate(graph, lower, upper, guard, last.target.all_input_nodes[0].name)
        return merged_margins(Box(box.lower.double(), box.upper.double()), last, y, FLOAT32)
    return _apart(Box(*ibp(graph, lower, upper, guard=guard)), y)


@dataclass(frozen=True)
class Boxes:
    """A batch of boxes pushed through ``graph`` up to what a last linear layer takes: ``values`` by name.

    In the dtype of the input, differentiable, in exact arithmetic: for training.
    """

    graph: Graph
    values: dict[str, Any]

    def margins(self, y: Tensor) -> Tensor:
        """Lower bounds ``[N,K]`` of ``logit_y - logit_k``, 0 in column y."""
        last = last_linear(self.graph)
        if last is None:
            return _apart(self.values[self.graph.output.name], y)
        return merged_margins(self.values[last.target.all_input_nodes[0].name], last, y, EXACT)

    @property
    def input(self) -> Box:
        """What was pushed through."""
        return self.values[self.graph.source]

    @property
    def activated(self) -> list[Box]:
        """What the activations take, in the order of execution."""
        names = [
            name
            for step in self.graph.nodes
            if step.operator.relaxed and step.name in self.values
            for name in self.graph.activations(step, self.values)
        ]
        return [self.values[name] for name in dict.fromkeys(names)]

    def not_finite(self) -> str | None:
        """The first operator whose box is not finite everywhere, in words; None where all are."""
        for step in self.graph.nodes:
            box = self.values.get(step.name)
            if isinstance(box, Box) and not bool(box.lower.isfinite().all() & box.upper.isfinite().all()):
                return step.place
        return None


def propagated(graph: Graph, lower: Tensor, upper: Tensor) -> Boxes:
    """The boxes of the activations over the boxes ``[lower, upper]`` ``[N,C,H,W]``; the last linear layer left out."""
    last = last_linear(graph)
    until = None if last is None else last.target.all_input_nodes[0].name
    return Boxes(graph, graph.values(Box(lower, upper), EXACT, until))


def smallest_margin(margins: Tensor, y: Tensor) -> Tensor:
    """Smallest entry of each row other than column y, ``[N]``; positive where certified, NaN where nothing is known."""
    return margins.scatter(1, y.view(-1, 1), float("inf")).amin(1)


def _propagate(graph: Graph, lower: Tensor, upper: Tensor, guard: bool, until: str | None) -> Box:
    if not guard:
        return graph.run(Box(lower, upper), EXACT, until)
    with torch.no_grad():
        return graph.run(Box(lower.float(), upper.float()), FLOAT32, until)


def last_linear(graph: Graph) -> Node | None:
    """The linear module that gives the logits, looking through identities."""
    nodes = {node.name: node for node in graph.nodes}
    node = graph.output
    while isinstance(node.operator, Identity) and node.target.all_input_nodes[0].name in nodes:
        node = nodes[node.target.all_input_nodes[0].name]
    return node if type(node.operator) is Linear and node.operator.module is not None else None


def merged_margins(x: Box, last: Node, y: Tensor, rounding: Rounding) -> Tensor:
    """Lower bounds ``[N,K]`` of ``logit_y - logit_k`` over a box of what the last linear layer takes; 0 in column y."""
    weight, bias = last.operator.module.weight, last.operator.module.bias
    if rounding.active:
        weight, bias = weight.detach(), None if bias is None else bias.detach()
    weight = weight.to(x.lower.dtype)
    bias = None if bias is None else bias.to(x.lower.dtype)
    logits = F.linear(x.center, weight, bias)
    half = _of_differences(x.radius, weight, y)
    label = y.view(-1, 1)
    low = logits.gather(1, label) - logits - half
    if rounding.active:
        size = F.linear(x.magnitude, weight.abs(), None if bias is None else bias.abs())
        low = low - rounding.error(weight.shape[1] + 2, size.gather(1, label) + size)
    return without_label(low, y)


def _of_differences(radius: Tensor, weight: Tensor, y: Tensor) -> Tensor:
    """``|w_y - w_k| r`` of every class k, ``[N,K]``."""
    classes, inputs = weight.shape
    if classes <= _FEW_CLASSES and classes * classes * inputs <= _CHUNK:
        # All pairs of classes are fewer differences than those of the labels of a batch.
        pairs = (weight.unsqueeze(1) - weight).abs().flatten(0, 1)
        return F.linear(radius, pairs).unflatten(1, (classes, classes))[torch.arange(len(y), device=y.device), y]
    rows = max(1, _CHUNK // weight.numel())
    parts = zip(y.split(rows), radius.split(rows), strict=True)
    return torch.cat([torch.einsum("nkd,nd->nk", (weight[y].unsqueeze(1) - weight).abs(), r) for y, r in parts])


def _apart(logits: Box, y: Tensor) -> Tensor:
    """Lower bounds of the margins from bounds of the logits."""
    return without_label(logits.lower.gather(1, y.view(-1, 1)) - logits.upper, y)


def without_label(margins: Tensor, y: Tensor) -> Tensor:
    """``margins`` with 0 in column y."""
    return margins.scatter(1, y.view(-1, 1), 0.0)

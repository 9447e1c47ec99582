"""The second half of a network, from an activation in the middle of it: for attacks within a box of that activation."""

from typing import Any

from torch import Tensor

from robustsuite.bounds.graph import Graph, Node
from robustsuite.bounds.ibp import Boxes
from robustsuite.bounds.rounding import EXACT, Box
from robustsuite.errors import UsageError


def middle(graph: Graph, last: int) -> str:
    """The activation that the ``last`` so many operators take, by name.

    Raises `UsageError` when there are not as many, or when a branch leads around it.
    """
    nodes = graph.nodes
    if not 0 < last < len(nodes):
        raise UsageError(
            f"the network has {len(nodes)} operators; a second part of {last} leaves no first one. Choose 1 to "
            f"{len(nodes) - 1}."
        )
    name, later = nodes[-last - 1].name, {node.name for node in nodes[-last:]}
    for node in nodes[-last:]:
        around = {taken.name for taken in node.target.all_input_nodes} & ({graph.source} | {n.name for n in nodes})
        if around - later - {name}:
            raise UsageError(
                f"the network cannot be split before its last {last} operators: a branch leads around '{name}' into "
                f"{node.place}. Choose another number."
            )
    return name


def onward(boxes: Boxes, name: str, point: Tensor) -> Tensor:
    """Logits ``[M,K]`` of the values ``point`` ``[M,*shape]`` of the activation ``name``, which is a `middle`.

    What the first part computes besides activations (shapes, parameters) is taken from ``boxes``.
    """
    graph = boxes.graph
    values: dict[str, Any] = {k: v for k, v in boxes.values.items() if not isinstance(v, Box)}
    begun = False
    for step in graph.steps:
        if step.name == name:
            values[name], begun = Box(point, point), True
        elif begun:
            values[step.name] = _at_point(graph, step, values)
    return values[graph.output.name].lower


def _at_point(graph: Graph, step: Any, values: dict[str, Any]) -> Any:
    """As `Graph.value`, at boxes that are points: an affine operator is computed once."""
    if not isinstance(step, Node) or step.operator.relaxed:
        return graph.value(step, values, EXACT)
    args, kwargs = graph.arguments(step, {k: v.lower if isinstance(v, Box) else v for k, v in values.items()})
    found = step.operator.forward(*args, **kwargs)
    return Box(found, found)

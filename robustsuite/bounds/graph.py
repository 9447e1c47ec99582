"""From the user's own module to a list of operators that bounds can be pushed through."""

import inspect
import operator as arithmetic
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate, map_arg

from robustsuite.bounds import activations, elementwise, layers, pooling, shapes  # noqa: F401 (they register their operators)
from robustsuite.bounds.image import Image
from robustsuite.bounds.operators import Operator, UnsupportedOperator, find_operator
from robustsuite.bounds.rounding import EXACT, Box, Rounding

# What may be done to shapes, parameters and buffers on the way: computed by torch itself, as the network does.
_PLAIN_FUNCTIONS = {
    *(getattr, arithmetic.getitem, arithmetic.add, arithmetic.sub, arithmetic.mul, arithmetic.neg),
    *(arithmetic.truediv, arithmetic.floordiv, arithmetic.mod, arithmetic.pow),
    *(torch.reshape, torch.flatten, torch.unsqueeze, torch.squeeze, torch.transpose, torch.permute),
    *(torch.sqrt, torch.rsqrt, torch.exp, torch.log, torch.abs, torch.square, torch.reciprocal),
}
_PLAIN_METHODS = {
    *("size", "dim", "numel", "view", "reshape", "flatten", "unsqueeze", "squeeze", "expand", "t", "transpose"),
    *("permute", "contiguous", "clone", "detach", "to", "float", "type_as", "view_as", "expand_as"),
    *("sqrt", "rsqrt", "exp", "log", "abs", "square", "reciprocal"),
}
_SHAPE_METHODS = {"size", "dim", "numel"}
_SHAPE_ATTRIBUTES = {"shape", "ndim", "device", "dtype"}
_ASSERTS = {torch._assert}
_IN_PLACE_FUNCTIONS = {arithmetic.iadd, arithmetic.isub, arithmetic.imul, arithmetic.itruediv}
_TAKE_INPLACE = {"relu", "leaky_relu", "dropout", "dropout2d", "silu", "elu", "hardtanh", "relu6"}


@dataclass(frozen=True)
class Node:
    """One operator in its place; `target` is the traced call that the arguments come from.

    `normalised`: whether batch normalisation alone takes what it gives.
    """

    name: str
    place: str
    operator: Operator
    target: fx.Node
    normalised: bool = False


@dataclass(frozen=True)
class Graph:
    """A network as operators in the order of execution; the parameters stay those of the module, alive.

    Every bound is of the network in eval mode, whatever mode the module is in. `steps` holds the operators (`Node`) and
    what is only computed (`fx.Node`: shapes, parameters, constants) in order; `output` is the node of the logits.
    """

    root: nn.Module
    steps: tuple[Node | fx.Node, ...]
    source: str
    output: Node

    @property
    def nodes(self) -> list[Node]:
        """The operators alone, in the order of execution."""
        return [step for step in self.steps if isinstance(step, Node)]

    def run(self, box: Box, rounding: Rounding = EXACT, until: str | None = None) -> Box:
        """Push a box ``[N, ...]`` through: the box of the logits, or of the node called ``until``.

        Raises `UnsupportedOperator` when an operator cannot be bounded on these shapes.
        """
        return self.values(box, rounding, until)[until or self.output.name]

    def values(self, box: Box, rounding: Rounding = EXACT, until: str | None = None) -> dict[str, Any]:
        """As `run`: the box of every activation on the way, and whatever else is computed, by name."""
        values: dict[str, Any] = {self.source: box}
        for step in self.steps:
            if until in values:
                break
            values[step.name] = self.value(step, values, rounding)
        return values

    def value(self, step: Node | fx.Node, values: dict[str, Any], rounding: Rounding = EXACT) -> Any:
        """The box of an operator, or whatever else a step computes, given what comes before it by name."""
        return self._bound(step, rounding, values) if isinstance(step, Node) else self._compute(step, values)

    def arguments(self, step: Node, values: dict[str, Any]) -> tuple[Any, Any]:
        """What an operator is called with, ``(args, kwargs)``: every traced argument replaced by its value."""
        return _resolve(step.target, values)

    def activations(self, step: Node, values: dict[str, Any]) -> list[str]:
        """The names of the activations among an operator's arguments, in their order."""
        names: list[str] = []
        map_arg((step.target.args, step.target.kwargs), lambda n: names.append(n.name))
        return [name for name in names if isinstance(values[name], Box)]

    def _bound(self, step: Node, rounding: Rounding, values: dict[str, Any]) -> Box:
        args, kwargs = self.arguments(step, values)
        if rounding.active and not step.operator.single:
            args, kwargs = map_aggregate((args, kwargs), _in_double)
        try:
            box = step.operator.interval(rounding, *args, **kwargs)
            if isinstance(box, Image) and not step.normalised:
                box.halves()  # now, so that what is wrong has this place
            return box
        except torch.OutOfMemoryError:
            raise
        except (UnsupportedOperator, RuntimeError, TypeError, ValueError, IndexError) as error:
            raise UnsupportedOperator(f"no bounds for {step.place}: {error}") from error

    def _compute(self, step: fx.Node, values: dict[str, Any]) -> Any:
        if step.op == "get_attr":
            return _attribute(self.root, step.target)
        args, kwargs = _resolve(step, values)
        # What a shape is asked of is a box; both bounds have the shape of the activation.
        first, *others = (a.lower if isinstance(a, Box) else a for a in args)
        if isinstance(step.target, str):
            return getattr(first, step.target)(*others, **kwargs)
        return step.target(first, *others, **kwargs)


def trace(module: nn.Module, input_shape: Iterable[int] | None = None) -> Graph:
    """Trace ``module`` (images to logits) with torch.fx.

    Raises `UnsupportedOperator` naming the first operator that has no bounds, with its place, and also when the module
    cannot be traced at all (control flow that depends on the data, several inputs or outputs). With ``input_shape``
    (C, H, W) an empty-handed box is pushed through, so that what depends on shapes is found out here too.
    """
    # The sequence of one sees to it that the model is called as a user calls it (its hooks, its defaults, a lone
    # layer), and takes the constants that tracing has to keep.
    root = nn.Sequential(module)
    traced = _trace(root)
    _check_repeatable(root, traced)
    source = next(n.name for n in traced.nodes if n.op == "placeholder")
    boxes, steps, built = {source}, [], {}
    for node in traced.nodes:
        if node.op in ("placeholder", "output") or node.target in _ASSERTS:
            continue
        if not any(i.name in boxes for i in node.all_input_nodes) or _asks_shape(node):
            _check_plain(node)
            steps.append(node)
            continue
        built[node.name] = _build(root, node, boxes)
        boxes.add(node.name)
        steps.append(built[node.name])
    _check_memory(traced, built)
    result = next(n for n in traced.nodes if n.op == "output").args[0]
    if not isinstance(result, fx.Node) or result.name not in built:
        raise UnsupportedOperator("the model must return one tensor computed from its input, the logits.")
    graph = Graph(root, tuple(steps), source, built[result.name])
    if input_shape is not None:
        _rehearse(graph, tuple(input_shape))
    return graph


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # otherwise arithmetic on buffers is done once, now, and never again

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return find_operator(m) is not None or super().is_leaf_module(m, module_qualified_name)


def _trace(root: nn.Module) -> fx.Graph:
    """The traced graph in eval mode; every module keeps its mode."""
    modes = {m: m.training for m in root.modules()}
    try:
        for m in modes:
            m.training = False
        return _Tracer().trace(root)
    except Exception as error:  # user code run on stand-ins may raise anything
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        raise UnsupportedOperator(
            f"the model cannot be traced by torch.fx ({reason}). Its forward must not branch on the data."
        ) from error
    finally:
        for m, training in modes.items():
            m.training = training


def _check_repeatable(root: nn.Module, traced: fx.Graph) -> None:
    """Refuse a forward that does another thing each time: what it computes without its input is frozen by tracing."""
    other = nn.Sequential(*root.children())
    for first, second in zip(traced.nodes, _trace(other).nodes, strict=False):
        same = all(str(getattr(first, part)) == str(getattr(second, part)) for part in ("target", "args", "kwargs"))
        if same and first.op == "get_attr":
            value, again = _attribute(root, first.target), _attribute(other, first.target)
            same = not isinstance(value, Tensor) or torch.equal(value, again)
        if not same:
            raise UnsupportedOperator(f"the model is not the same at every call: {_place(first)} differs.")


def _attribute(module: nn.Module, path: Any) -> Any:
    value: Any = module
    for part in str(path).split("."):
        value = getattr(value, part)
    return value


def _resolve(node: fx.Node, values: dict[str, Any]) -> tuple[Any, Any]:
    return map_arg((node.args, node.kwargs), lambda n: values[n.name])


def _in_double(value: Any) -> Any:
    return Box(value.lower.double(), value.upper.double()) if isinstance(value, Box) else value


def _place(node: fx.Node) -> str:
    """What an operator is and where: ``'features.3' (node 'conv')``, ``einsum (node 'einsum_1' in 'head')``."""
    if node.op == "call_module":
        return f"'{_user_path(node.target)}' (node '{node.name}')"
    what = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", repr(node.target))
    around = [_user_path(path) for path in node.meta.get("nn_module_stack") or {}]
    return f"{what} (node '{node.name}'" + (f" in '{around[-1]}')" if around and around[-1] else ")")


def _user_path(path: Any) -> str:
    return str(path).removeprefix("0").removeprefix(".")  # without the sequence of one


def _asks_shape(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _SHAPE_METHODS
    return node.target is getattr and node.args[1] in _SHAPE_ATTRIBUTES


def _check_plain(node: fx.Node) -> None:
    known = node.op == "get_attr" or (node.op == "call_method" and node.target in _PLAIN_METHODS)
    if not known and not (node.op == "call_function" and node.target in _PLAIN_FUNCTIONS):
        raise UnsupportedOperator(f"no bounds for {_place(node)}: nothing says that it gives the same each time.")


def _build(root: nn.Module, node: fx.Node, boxes: set[str]) -> Node:
    """The operator of a traced call; raises `UnsupportedOperator` with the place and the reason."""
    owner = _attribute(root, node.target) if node.op == "call_module" else None
    place = f"{type(owner).__name__} at {_place(node)}" if owner is not None else _place(node)
    kind = find_operator(owner if owner is not None else node.target)
    if kind is None:
        raise UnsupportedOperator(f"no bounds for {place}: the operator is not supported.")
    if owner is not None and (owner._forward_hooks or owner._forward_pre_hooks):
        raise UnsupportedOperator(f"no bounds for {place}: it has forward hooks, which tracing does not see.")
    operator = kind(owner)
    stand_in: Any = Box  # the class stands for the boxes that are not there yet
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: stand_in if n.name in boxes else n)
    try:
        inspect.signature(operator.interval).bind(EXACT, *args, **kwargs)
        reason = operator.refusal(*args, **kwargs)
    except TypeError as error:
        reason = str(error)
    if reason is not None:
        raise UnsupportedOperator(f"no bounds for {place}: {reason}.")
    takers = [find_operator(_attribute(root, n.target)) if n.op == "call_module" else None for n in node.users]
    return Node(node.name, place, operator, node, all(taker is layers.BatchNorm for taker in takers))


def _check_memory(traced: fx.Graph, built: dict[str, Node]) -> None:
    """Refuse a network that uses an activation again after an in-place operator has overwritten it."""
    memory: dict[str, str] = {}
    overwritten: dict[str, fx.Node] = {}
    written_at: dict[str, int] = {}
    constants = {node.name for node in traced.nodes if node.op == "get_attr"}
    order = {node.name: i for i, node in enumerate(traced.nodes)}
    for node in traced.nodes:
        for read in [] if _asks_shape(node) else node.all_input_nodes:
            home = memory[read.name]
            if home in overwritten and order[read.name] < written_at[home]:
                raise UnsupportedOperator(
                    f"no bounds for {_place(overwritten[home])}: it works in place on '{read.name}', which "
                    f"{_place(node)} uses again; make it out of place."
                )
        writes = _in_place(node, built)
        first = node.all_input_nodes[0].name if node.all_input_nodes else ""
        if writes and memory[first] in constants:
            raise UnsupportedOperator(f"no bounds for {_place(node)}: it writes into a constant of the model.")
        plain = node.name not in built and not _asks_shape(node)  # a view of a parameter, perhaps
        shares = writes or plain or (node.name in built and built[node.name].operator.aliases)
        memory[node.name] = memory[first] if shares and first else node.name
        if writes:
            overwritten[memory[node.name]], written_at[memory[node.name]] = node, order[node.name]


def _in_place(node: fx.Node, built: dict[str, Node]) -> bool:
    if node.name not in built:
        return False
    if node.op == "call_module":
        return bool(getattr(built[node.name].operator.module, "inplace", False))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    positional = name in _TAKE_INPLACE and node.args[-1] is True
    return bool(node.kwargs.get("inplace") or positional or node.target in _IN_PLACE_FUNCTIONS or name.endswith("_"))


def _rehearse(graph: Graph, input_shape: tuple[int, ...]) -> None:
    tensors = [*graph.root.parameters(), *graph.root.buffers()]
    point = torch.zeros(2, *input_shape, device=tensors[0].device if tensors else None)
    with torch.no_grad():
        logits: Tensor = graph.run(Box(point, point)).lower
    if logits.ndim != 2:
        raise UnsupportedOperator(f"the model must return logits [N,K], got a shape of {logits.ndim} dimensions.")

"""Backward bound propagation (CROWN, DeepPoly): linear functions of an activation pushed down to the input.

Zhang et al. 2018, arXiv:1811.00866; Singh et al. 2019 (DeepPoly). The boxes of the activations in between are those of
interval propagation, and are tightened by backward passes of their own where that can help (``refine``).

Rounding. Every box holds what float32 execution can give (`Rounding`), so the linear functions are taken over the
executed values: an executed affine operator is its exact result plus an error of at most ``gamma_n * magnitude``. The
backward pass itself computes coefficients in float32, each with an error of at most ``gamma_m`` times the sum of the
absolute values that it adds up. Summed over the activation, that is again the coefficients' absolute values times
``gamma_m * magnitude`` of the same operator. Both are charged there, together, as an interval around its constant part.
A coefficient below the smallest normal number may be lost; that is charged for all activations at once (`dust`).
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import map_arg

from robustsuite.bounds.ascent import Choices, ascend
from robustsuite.bounds.backward import cancelled, through_lines, through_pool
from robustsuite.bounds.graph import Graph, Node
from robustsuite.bounds.layers import Linear
from robustsuite.bounds.operators import UnsupportedOperator
from robustsuite.bounds.pooling import MaxPool, PoolLines
from robustsuite.bounds.region import SUMMED, Region, above, below
from robustsuite.bounds.relaxation import Lines
from robustsuite.bounds.rounding import EXACT, FLOAT32, TINY, UNIT_FLOAT32, Box, Noting
from robustsuite.bounds.rows import Rows, unit_rows

_OTHERS = 8  # roundings of a coefficient besides its sum's and those of branches that meet: products with slopes
_CAST = 4  # roundings of a constant's ends themselves
_ONLY_BOXES = "the operator knows interval bounds alone; use the certifier ibp"
_BUDGET = 2**22  # coefficients of one activation held at once


class Crown:
    """Bounds of one batch of regions: the boxes of every activation, and backward passes over them.

    ``guard``: hold for the float32 execution of the network (else in exact arithmetic, computed in ``dtype``, for
    search and for comparisons). ``dtype``: of the coefficients. ``steps``: of the search for better slopes that every
    box in between gets (`best`).
    """

    def __init__(
        self,
        graph: Graph,
        region: Region,
        *,
        refine: bool = True,
        guard: bool = True,
        dtype: torch.dtype = torch.float32,
        steps: int = 0,
        budget: int = _BUDGET,
    ) -> None:
        self.graph, self.region, self.guard, self.dtype = graph, region, guard, dtype
        self.steps, self.budget = steps, budget
        self.branches = max(len(node.target.users) for node in graph.nodes)
        self.dust = torch.zeros(len(region.center), dtype=torch.float64, device=region.center.device)
        self.values: dict[str, Any] = {}
        self.constants: dict[str, tuple[Tensor, Tensor] | None] = {}
        self.relaxations: dict[str, Lines | PoolLines] = {}
        with torch.no_grad():
            self._propagate(refine)

    def of(self, index: Tensor) -> "Crown":
        """The bounds of some of the examples, as they are."""
        some = copy.copy(self)
        some.region, some.dust = self.region.rows(index), self.dust[index]
        some.values = {
            k: Box(v.lower[index], v.upper[index]) if isinstance(v, Box) else v for k, v in self.values.items()
        }
        some.constants = {k: v and (v[0][index], v[1][index]) for k, v in self.constants.items()}
        some.relaxations = {}
        return some

    def sharing(self, count: int, boxes: Mapping[str, Box]) -> "Crown":
        """The only example ``count`` times over, with ``boxes`` ``[count, *shape]`` of its own for each.

        All else has one row, which every owner is given.
        """
        parts = copy.copy(self)
        parts.region = replace(self.region, radius=self.region.radius.expand(count))
        parts.dust = self.dust.expand(count)
        parts.values = {**self.values, **boxes}
        own = {n.name for n in self.graph.nodes if not boxes.keys().isdisjoint(self.graph.activations(n, self.values))}
        parts.relaxations = {k: v for k, v in self.relaxations.items() if k not in own}
        return parts

    def units(self) -> int:
        """How many elements of activations one example has that a relaxation is made of."""
        taken = {
            n for step in self.graph.nodes if step.operator.relaxed for n in self.graph.activations(step, self.values)
        }
        return sum(self.values[name].lower[0].numel() for name in taken)

    def _propagate(self, refine: bool) -> None:
        """Boxes of all activations in order; those that a relaxation will be made of, tightened."""
        # Float32 execution sees the ends rounded to float32.
        kind = torch.float32 if self.guard else self.dtype
        box = self.region.box
        self.values[self.graph.source] = Box(box.lower.to(kind), box.upper.to(kind))
        taken = self._consumers()
        meets = taken if refine else {}
        # Boxes are exact for the input and for elementwise functions of one affine layer of it.
        layers = {self.graph.source: 0 if self.region.is_box else 1}
        for step in self.graph.steps:
            if not isinstance(step, Node):
                self.values[step.name] = self.graph.value(step, self.values)
                continue
            names = self.graph.activations(step, self.values)
            noting = Noting(FLOAT32.unit if self.guard else EXACT.unit)
            box = self.graph.value(step, self.values, noting)
            exact = self.guard and step.name in taken  # these may yet be tightened
            self.values[step.name] = Box(box.lower.double(), box.upper.double()) if exact else box
            if not step.operator.relaxed:
                self.constants[step.name] = self._constant(step, noting)
            self._sweep(step, names)
            beyond = step.operator.relaxed or len(names) > 1
            layers[step.name] = max(layers[name] for name in names) + (2 if beyond else step.operator.mixes)
            if layers[step.name] > 1 and step.name in meets:
                self._tighten(step, meets[step.name])

    def _sweep(self, step: Node, names: list[str]) -> None:
        """Charge what is lost where a coefficient is too small for a normal number, and may be taken for 0."""
        if self.guard:
            args, kwargs = self.graph.arguments(step, self.values)
            terms = step.operator.terms(*args, **kwargs) + _OTHERS
            for name in names:
                self.dust += terms * TINY * self.values[name].magnitude.flatten(1).sum(1, dtype=torch.float64)

    def _consumers(self) -> dict[str, list[Node]]:
        """The relaxed operators that take each activation."""
        found: dict[str, list[Node]] = {}
        for node in self.graph.nodes:
            for taken in node.target.all_input_nodes if node.operator.relaxed else []:
                found.setdefault(taken.name, []).append(node)
        return found

    def _constant(self, step: Node, noting: Noting) -> tuple[Tensor, Tensor] | None:
        """What an affine operator adds at least and at most, in the arithmetic of the rows; None for nothing."""
        # A layer's constant is the same for all examples; other operators may be given the batch's size.
        one = isinstance(step.operator, Linear)

        def nothing(box: Box) -> Tensor:
            zeros = torch.zeros_like(box.lower[:1], dtype=torch.float64 if self.guard else None)
            return zeros if one else zeros.expand_as(box.lower)

        args, kwargs = self._at(step, nothing)
        try:
            middle = step.operator.forward(*args, **kwargs)
        except NotImplementedError as error:
            raise UnsupportedOperator(f"no linear bounds for {step.place}: {_ONLY_BOXES}.") from error
        if not bool((middle != 0).any()) and not noting.seen:
            return None
        given, named = self.graph.arguments(step, self.values)
        single = self.dtype == torch.float32
        # gamma_m + gamma_n <= gamma_(m + n)
        own = step.operator.terms(*given, **named) + _OTHERS + self.branches + _CAST if single else 0
        error = (SUMMED + _CAST) * (UNIT_FLOAT32 if single else 0.0) * middle.abs()
        for roundings, magnitude in noting.seen:
            error = error + FLOAT32.error(roundings + own, magnitude)
        if not noting.seen:
            return below(middle - error, self.dtype), above(middle + error, self.dtype)
        return (middle - error).to(self.dtype), (middle + error).to(self.dtype)

    def _at(self, step: Node, stand_in: Any) -> tuple[Any, Any]:
        """The arguments of an operator with every box replaced."""

        def replace(n: Any) -> Any:
            value = self.values[n.name]
            return stand_in(value) if isinstance(value, Box) else value

        return map_arg((step.target.args, step.target.kwargs), replace)

    def _tighten(self, step: Node, consumers: list[Node]) -> None:
        """Intersect the box of an activation with the backward bounds of those elements where that can help."""
        box: Box = self.values[step.name]
        loose = torch.stack([node.operator.loose(box) for node in consumers]).any(0).flatten(1)
        owner, index = loose.nonzero().unbind(1)
        kind = torch.float64 if self.guard else self.dtype
        lower, upper = (end.flatten(1).to(kind, copy=True) for end in (box.lower, box.upper))
        for part in self.parts(len(owner), step):
            who, what = owner[part], index[part]
            for sign, bound in ((1.0, lower), (-1.0, upper)):
                rows = unit_rows(who, what, torch.full_like(who, sign), box.lower.shape[1:], self.dtype)
                found = sign * self.best(step.name, rows, self.steps).to(bound.dtype)
                kept = bound[who, what]
                better = (found > kept if sign > 0 else found < kept) & found.isfinite()
                bound[who, what] = found.where(better, kept)
        self.values[step.name] = Box(lower.view_as(box.lower), upper.view_as(box.upper))

    def parts(self, count: int, step: Node) -> Iterator[slice]:
        """Slices of so many rows over an activation that the memory suffices."""
        shapes = [v.lower.shape[1:].numel() for v in self.values.values() if isinstance(v, Box)]
        windowed = self.values[step.name].lower.ndim == 4
        size = max(1, self.budget * (8 if windowed else 1) // max(shapes))
        return (slice(start, start + size) for start in range(0, count, size))

    def lowest(
        self, name: str, rows: Rows, choices: Choices | None = None, plus: Mapping[str, Rows] | None = None
    ) -> Tensor:
        """Lower bounds ``[M]`` (float64) of linear functions of the activation ``name`` over the regions.

        Under ``choices`` where they are given, else with the default lines and no assumption. ``plus``: functions of
        other activations that are added to them.
        """
        pending = {**(plus or {}), name: rows}
        bound = torch.zeros(len(rows.owner), dtype=torch.float64, device=rows.coeff.device)
        for step in reversed(self.graph.steps):
            if step.name not in pending:
                continue
            assert isinstance(step, Node)
            rows = pending.pop(step.name)
            if step.operator.relaxed:
                pulled, constant = self._relax(step, rows, choices)
            else:
                pulled, constant = self._pull(step, rows), self._lowest_constant(step, rows)
            if constant is not None:
                bound = bound + constant
            for source, part in zip(self.graph.activations(step, self.values), pulled, strict=True):
                if source in pending:
                    if self.guard:
                        bound = bound - cancelled(pending[source], part, self.values[source].magnitude)
                    part = pending[source].plus(part)
                pending[source] = part
        if self.graph.source in pending:
            bound = bound + self.region.lowest(pending[self.graph.source])
        bound = bound - self.dust[rows.owner]
        return bound.where(bound.isfinite(), float("-inf"))  # what has overflowed says nothing

    def best(self, name: str, rows: Rows, steps: int) -> Tensor:
        """`lowest` at the best lower slopes found in so many steps of gradient ascent (alpha-CROWN), ``[M]``."""
        choices = Choices()
        with torch.no_grad():
            bound = self.lowest(name, rows, choices)
        if steps == 0 or not choices.slopes:
            return bound
        return bound.maximum(self.ascend(name, rows, choices, steps))

    def ascend(self, name: str, rows: Rows, choices: Choices, steps: int) -> Tensor:
        """The best bound met in so many steps of ascent from ``choices``, which are left at the last ones."""
        return ascend(lambda chosen: self.lowest(name, rows, chosen), choices, steps)

    def _lowest_constant(self, step: Node, rows: Rows) -> Tensor | None:
        constant = self.constants[step.name]
        return None if constant is None else rows.lowest(*constant)

    def _pull(self, step: Node, rows: Rows) -> list[Rows]:
        args, kwargs = self.graph.arguments(step, self.values)
        found = step.operator.pull(rows, *args, **kwargs)
        if found is not None:
            return found
        dense, leaves = rows.dense(), []

        def leaf(box: Box) -> Tensor:
            leaves.append(dense.coeff.new_zeros(len(rows.owner), *box.lower.shape[1:]).requires_grad_())
            return leaves[-1]

        args, kwargs = self._at(step, leaf)
        try:
            with torch.enable_grad():
                result = step.operator.forward(*args, **kwargs)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UnsupportedOperator(
                f"no linear bounds for {step.place}: a constant for each example ({reason})."
            ) from error
        grads = torch.autograd.grad(result, leaves, dense.coeff, create_graph=torch.is_grad_enabled())
        return [rows.onto(grad) for grad in grads]

    def _relax(self, step: Node, rows: Rows, choices: Choices | None) -> tuple[list[Rows], Tensor]:
        """Rows over an activation's result as rows over its argument, and what that adds."""
        lines = self.relaxations.get(step.name)
        if lines is None:
            lines = self.relaxations[step.name] = self._lines(step)
        if isinstance(lines, PoolLines):
            (source,) = self.graph.activations(step, self.values)
            found, constant = through_pool(rows, lines, self.values[source].lower.shape[1:])
        else:
            found, constant = through_lines(rows, lines, step.name, choices)
        return [found], constant

    def _lines(self, step: Node) -> Lines | PoolLines:
        """The lines around an activation or a maximum, their offsets widened by what summing them up may lose."""
        args, kwargs = self._at(step, lambda box: Box(below(box.lower, self.dtype), above(box.upper, self.dtype)))
        operator = step.operator
        try:
            rounding = FLOAT32 if self.guard else EXACT
            pool = isinstance(operator, MaxPool)
            lines = operator.pool_lines(*args, **kwargs) if pool else operator.lines(rounding, *args, **kwargs)
        except NotImplementedError as error:
            raise UnsupportedOperator(f"no linear bounds for {step.place}: {_ONLY_BOXES}.") from error
        unit = UNIT_FLOAT32 if self.guard and self.dtype == torch.float32 else 0.0
        high = lines.upper_offset + SUMMED * unit * lines.upper_offset.abs()
        if isinstance(lines, PoolLines):
            return replace(lines, upper_offset=high)
        return replace(
            lines, lower_offset=lines.lower_offset - SUMMED * unit * lines.lower_offset.abs(), upper_offset=high
        )

"""Boxes of the points where a linear function is not positive: where a counterexample would have to be (INVPROP).

Kotha et al. 2023, arXiv:2302.01404. To prove ``f > 0``, assume ``f <= 0`` until that is absurd. Then an element z of an
activation is at least the minimum of ``z + weight f`` for every weight >= 0, which one backward pass bounds: the
function starts at the output and z joins it on the way. Where f is hardly ever below 0 these boxes are much smaller
than those of all points, so that the bound of f over them is larger, and the next boxes are smaller still.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustsuite.bounds.ascent import Choices
from robustsuite.bounds.crown import Crown
from robustsuite.bounds.graph import Node
from robustsuite.bounds.relaxation import Lines
from robustsuite.bounds.rounding import Box
from robustsuite.bounds.rows import Rows, unit_rows

# Weights tried, over the coefficient that the function has behind the element. The bound is concave in the weight but
# for its own choice of lines. A few steps of ascent on weights and slopes take three times as long for little more.
_WEIGHTS = (0.03, 0.06, 0.12, 0.25, 0.5, 1.0)
_LEAST = 1e-6
_CHUNK = 64  # elements of each row that are bounded before asking whether it pays
_PAYS = 0.005  # share of their widths that they must lose on average, for more of them to be bounded
_NEAR = 0.2  # share of the width that the first weight may miss the known end by, for the next weight to be tried


def cost(crown: Crown, key: str, choices: Choices) -> Tensor:
    """What the relaxation of each unit may cost a row, ``[M,*shape]``; 0 for split and stable ones.

    By the coefficients that ``choices.met`` holds, and by the distance of the lines.
    """
    assert choices.met is not None
    lines, met = crown.relaxations[key], choices.met[key]
    assert isinstance(lines, Lines)
    assert lines.free is not None
    costs = met.abs() * lines.upper_offset * lines.free
    return costs * (choices.splits[key] == 0) if key in choices.splits else costs


@dataclass(frozen=True)
class Assumption:
    """That ``rows``, one over the activation ``name`` for each example of ``crown``, are not positive.

    ``choices``: slopes, splits and multipliers that they are bounded with, which serve the boxes too.
    """

    crown: Crown
    name: str
    rows: Rows
    choices: Choices

    def boxes(self) -> tuple[dict[str, Box], Tensor]:
        """Boxes ``[M,*shape]`` of the points of each example where its row is not positive; and ``[M]``: it has none.

        Of the arguments of activations from the last one on, in each for the elements whose relaxation costs most.
        More elements, and the activation before, have their turn where that has paid so far.
        """
        found: dict[str, Box] = {}
        count = len(self.rows.owner)
        pays = torch.ones(count, dtype=torch.bool, device=self.rows.coeff.device)
        empty = ~pays
        keys = self._keys()
        for depth in range(len(keys)):
            (source,) = self.crown.graph.activations(keys[depth], self.crown.values)
            this = replace(self, crown=self.crown.sharing(count, found))
            box, pays = this._box(keys[depth].name, source, pays)
            if bool(
                (box.lower > this.crown.values[source].lower).any()
                | (box.upper < this.crown.values[source].upper).any()
            ):
                found[source] = box
            empty |= (box.lower > box.upper).flatten(1).any(1)
            pays &= ~empty
            if not bool(pays.any()):
                break
        return found, empty

    def _met(self) -> Choices:
        """The choices with what a pass has met."""
        chosen = replace(self.choices, met={})
        with torch.no_grad():
            self.crown.lowest(self.name, self.rows, chosen)
        return chosen

    def _keys(self) -> list[Node]:
        """The activations with slopes to choose, from the last one on."""
        met = self._met().met or {}
        return [node for node in reversed(self.crown.graph.nodes) if node.name in met]

    def _box(self, key: str, source: str, pays: Tensor) -> tuple[Box, Tensor]:
        """The box before one activation, of the examples for which that ``pays`` (bool [M]); and for which it did."""
        chosen, box, count = self._met(), self.crown.values[source], len(pays)
        assert chosen.met is not None
        weight = 1 / chosen.met[key].flatten(1).abs().clamp(min=_LEAST)
        costs, order = cost(self.crown, key, chosen).flatten(1).sort(dim=1, descending=True, stable=True)
        lower, upper = (end.flatten(1).expand(count, -1).clone() for end in (box.lower, box.upper))
        paid, goes_on = pays, pays
        for start in range(0, order.shape[1], _CHUNK):
            part = slice(start, start + _CHUNK)
            owner, taken = ((costs[:, part] > 0) & goes_on.unsqueeze(1)).nonzero().unbind(1)
            if not len(owner):
                break
            index = order[:, part][owner, taken]
            at = owner, index
            width = upper[at] - lower[at]
            found = self._lowest(source, *at, weight[at], torch.cat([lower[at], -upper[at]]), _NEAR * width)
            lower[at], upper[at] = found[: len(owner)], -found[len(owner) :]
            lost = (1 - (upper[at] - lower[at]) / width).nan_to_num(0.0, 0.0, 0.0)
            number = owner.bincount(minlength=count)
            goes_on = (
                torch.zeros(count, dtype=lost.dtype, device=lost.device).index_add(0, owner, lost) > _PAYS * number
            )
            paid = goes_on if start == 0 else paid
        shape = box.lower.shape[1:]
        return Box(lower.view(count, *shape), upper.view(count, *shape)), paid & pays

    def _lowest(self, source: str, owner: Tensor, index: Tensor, weight: Tensor, known: Tensor, near: Tensor) -> Tensor:
        """Lower bounds ``[2 P]`` of elements of ``source``, and of minus them, where the owners' rows are not positive.

        Never below the ``known`` ones.
        """
        signs = torch.ones_like(owner)
        owner, index, weight, near = (part.repeat(2) for part in (owner, index, weight, near))
        signs = torch.cat([signs, -signs])
        best, last, goes_on = known, known - near, torch.arange(len(owner), device=owner.device)
        for share in _WEIGHTS:
            found = torch.cat(
                [
                    self._joined(source, owner[part], index[part], share * weight[part], signs[part])
                    for part in (goes_on[piece] for piece in self.crown.parts(len(goes_on), self.crown.graph.output))
                ]
            )
            best = best.index_copy(0, goes_on, best[goes_on].maximum(found.to(best.dtype)))
            rises = found > last
            goes_on, last = goes_on[rises], found[rises]
            if not len(goes_on):
                break
        return best

    def _joined(self, source: str, owner: Tensor, index: Tensor, weight: Tensor, signs: Tensor) -> Tensor:
        """Lower bounds ``[P]`` of elements, times ``signs``, plus ``weight`` times the owners' rows."""
        crown, coeff = self.crown, self.rows.coeff[owner]
        weight = weight.to(crown.dtype)
        unit = unit_rows(owner, index, signs, crown.values[source].lower.shape[1:], crown.dtype)
        rows = Rows(owner, coeff * weight.view(-1, *[1] * (coeff.ndim - 1)))
        with torch.no_grad():
            return crown.lowest(self.name, rows, self.choices.of(owner, weight), {source: unit})

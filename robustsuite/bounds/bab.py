"""Branch and bound over the signs of unstable units, with the bounds of beta-CROWN over boxes of counterexamples alone.

Wang et al. 2021, arXiv:2103.06624. A domain is a set of assumptions on signs; its bound is that of the network under
these, each with a multiplier. A domain with a positive bound is closed, another one is split in two at a unit, and a
margin is proved when no domain is left open. Each domain has boxes of its own, of its points at which the function is
not positive (`robustsuite.bounds.invprop`); one without such points is closed as well. All that is float is bounded as
in `robustsuite.bounds.crown`.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from robustsuite.bounds.ascent import Choices
from robustsuite.bounds.crown import Crown
from robustsuite.bounds.invprop import Assumption, cost
from robustsuite.bounds.margins import margin_rows
from robustsuite.bounds.rounding import Box
from robustsuite.bounds.rows import Rows

_BEATEN = 8  # units tried at each split
_GAIN = 0.1  # share of a bound's distance to 0 that boxes must have won for another round of them


@dataclass(frozen=True)
class Limits:
    """When to give up and how much to do at once.

    ``domains`` bounded at the most for one margin; ``seconds`` for one margin (0: no limit; with a limit the outcome
    depends on the machine); ``steps`` of ascent for each domain; ``batch`` domains at once; ``rounds`` of smaller boxes
    for each domain, as long as they help.
    """

    domains: int = 2000
    seconds: float = 0.0
    steps: int = 5
    batch: int = 8
    rounds: int = 3


@dataclass
class _Domains:
    """Domains of one margin: bounds ``[D]``; by the operator's name splits, slopes and multipliers ``[D,*shape]``.

    And boxes ``[D,*shape]`` by the name of the activation.
    """

    bound: Tensor
    splits: dict[str, Tensor]
    slopes: dict[str, Tensor]
    betas: dict[str, Tensor]
    boxes: dict[str, Box] = field(default_factory=dict)

    def at(self, index: Tensor) -> "_Domains":
        """Some of them."""
        parts = ({k: v[index] for k, v in part.items()} for part in (self.splits, self.slopes, self.betas))
        boxes = {k: Box(v.lower[index], v.upper[index]) for k, v in self.boxes.items()}
        return _Domains(self.bound[index], *parts, boxes=boxes)

    def and_(self, other: "_Domains", known: Mapping[str, Any]) -> "_Domains":
        """These and others; where only some have a box of their own, the others have the ``known`` one."""
        pairs = ((self.splits, other.splits), (self.slopes, other.slopes), (self.betas, other.betas))
        joined = ({k: torch.cat([a[k], b[k]]) for k in a} for a, b in pairs)
        boxes: dict[str, Box] = {}
        for key in {**self.boxes, **other.boxes}:
            both = [part.boxes[key] if key in part.boxes else part.widened(known[key]) for part in (self, other)]
            boxes[key] = Box(torch.cat([box.lower for box in both]), torch.cat([box.upper for box in both]))
        return _Domains(torch.cat([self.bound, other.bound]), *joined, boxes=boxes)

    def widened(self, box: Box) -> Box:
        """One box for all of them."""
        shape = len(self.bound), *box.lower.shape[1:]
        return Box(box.lower.expand(shape), box.upper.expand(shape))

    def choices(self) -> Choices:
        """As a backward pass takes them."""
        split = [key for key, signs in self.splits.items() if bool(signs.any())]
        return Choices(dict(self.slopes), {k: self.splits[k] for k in split}, {k: self.betas[k] for k in split})


@dataclass(frozen=True)
class _Search:
    """Branch and bound for one linear function: ``row`` has one row over the activation ``name``."""

    crown: Crown
    name: str
    row: Rows
    limits: Limits

    def run(self) -> tuple[float, int]:
        """The bound and the number of domains, as `branch_and_bound` says."""
        start, bounded = time.monotonic(), 1
        open_ = self._root()
        while len(open_.bound) and bounded < self.limits.domains:
            if self.limits.seconds and time.monotonic() - start > self.limits.seconds:
                break
            order = open_.bound.argsort()
            worst, rest = open_.at(order[: self.limits.batch]), open_.at(order[self.limits.batch :])
            units = self._units(worst)
            if units is None:  # nothing is left to be split
                break
            children = _split(worst, *units)
            bounded += len(children.bound)
            children.bound = children.bound.maximum(self._lowest(children))
            open_ = self._joined(rest, self._bound(_open(children)))
        return (float(open_.bound.min()) if len(open_.bound) else float("inf")), bounded

    def _root(self) -> _Domains:
        """The whole region, nothing assumed; empty where that is enough."""
        choices = Choices(met={})
        with torch.no_grad():
            bound = self.crown.lowest(self.name, self.row, choices)
        assert choices.met is not None
        zeros = {key: torch.zeros_like(met) for key, met in choices.met.items()}
        splits = {key: zero.to(torch.int8) for key, zero in zeros.items()}
        domains = _Domains(bound, splits, choices.slopes, zeros)
        return self._bound(domains)

    def _parts(self, domains: _Domains) -> tuple[Crown, str, Rows]:
        """What is needed for a pass over each domain."""
        count = len(domains.bound)
        owner = torch.arange(count, device=domains.bound.device)
        rows = Rows(owner, self.row.coeff.expand(count, *self.row.coeff.shape[1:]))
        return self.crown.sharing(count, domains.boxes), self.name, rows

    def _lowest(self, domains: _Domains) -> Tensor:
        """Bounds of the domains as they are."""
        crown, name, rows = self._parts(domains)
        with torch.no_grad():
            return crown.lowest(name, rows, domains.choices())

    def _bound(self, domains: _Domains) -> _Domains:
        """Those domains that better slopes, multipliers and boxes do not close. A child is no worse than its parent."""
        open_ = _open(self._ascend(domains))
        done = open_.at(torch.arange(0, device=open_.bound.device))
        for _ in range(self.limits.rounds):
            if not len(open_.bound):
                break
            boxes, empty = Assumption(*self._parts(open_), open_.choices()).boxes()
            open_ = replace(open_, boxes={**open_.boxes, **boxes}).at((~empty).nonzero().squeeze(1))
            before = open_.bound
            open_ = self._ascend(open_)
            gained = open_.bound - before > -_GAIN * before
            done = self._joined(done, open_.at((~(open_.bound > 0) & ~gained).nonzero().squeeze(1)))
            open_ = open_.at((~(open_.bound > 0) & gained).nonzero().squeeze(1))
        return self._joined(done, open_)

    def _joined(self, some: _Domains, others: _Domains) -> _Domains:
        """Both lists of domains as one."""
        return some.and_(others, self.crown.values)

    def _ascend(self, domains: _Domains) -> _Domains:
        """The same domains with bounds, slopes and multipliers from an ascent."""
        if not len(domains.bound):
            return domains
        crown, name, rows = self._parts(domains)
        choices = domains.choices()
        found = crown.ascend(name, rows, choices, self.limits.steps)
        betas = {
            k: choices.betas[k] * domains.splits[k].abs() if k in choices.betas else v for k, v in domains.betas.items()
        }
        return replace(domains, bound=found.maximum(domains.bound), slopes=choices.slopes, betas=betas)

    def _units(self, domains: _Domains) -> tuple[list[str], Tensor] | None:
        """For each domain the unit to split, as (names of operators, index into all units ``[D]``); None for none.

        Of the units at which the relaxation costs most (by their coefficient and the lines' distance), the one whose
        worse half has the best bound, without an ascent: filtered smart branching (De Palma et al. 2021,
        arXiv:2104.06718).
        """
        count = len(domains.bound)
        crown, name, rows = self._parts(domains)
        choices = domains.choices()
        choices.met = {}
        with torch.no_grad():
            crown.lowest(name, rows, choices)
        keys = list(choices.met)
        if not keys:
            return None
        scores = torch.cat([cost(crown, key, choices).flatten(1) for key in keys], 1)
        best, units = scores.topk(min(_BEATEN, scores.shape[1]), dim=1)
        if bool((best[:, 0] <= 0).any()):
            return None
        tried = units.shape[1]
        parents = torch.arange(count, device=units.device).repeat_interleave(tried)
        children = _split(domains.at(parents), keys, units.flatten())
        worse = self._lowest(children).view(2, count, tried).amin(0).nan_to_num(float("-inf"))
        worse = worse.masked_fill(best <= 0, float("-inf"))
        return keys, units.gather(1, worse.argmax(1, keepdim=True)).squeeze(1)


def branch_and_bound(crown: Crown, name: str, row: Rows, limits: Limits) -> tuple[float, int]:
    """Lower bound of one linear function (``row``: one row over the activation ``name``), and the domains bounded.

    Infinite where the function is proved to be positive, by how much is not known then. Else, when ``limits`` say stop,
    the bound of the worst domain left. ``crown`` has one example.
    """
    return _Search(crown, name, row, limits).run()


def searched_margins(crown: Crown, margins: Tensor, y: Tensor, limits: Limits) -> Tensor:
    """Lower bounds ``[K]`` of the margins of one image, those that are open searched from the smallest on.

    Until one fails, as the image is then not proved. ``margins``: what is known of them; ``y`` ``[1]``.
    """
    margins = margins.clone()
    rows, others = margin_rows(y, len(margins), crown.dtype)
    for k in margins[others].argsort().tolist():
        if margins[others[k]] > 0:
            continue
        found, _ = branch_and_bound(crown, crown.graph.output.name, rows.part(slice(k, k + 1)), limits)
        margins[others[k]] = max(float(margins[others[k]]), found)
        if not found > 0:
            break
    return margins


def _open(domains: _Domains) -> _Domains:
    """Those that are not closed."""
    return domains.at((~(domains.bound > 0)).nonzero().squeeze(1))


def _split(domains: _Domains, keys: list[str], units: Tensor) -> _Domains:
    """Both halves of every domain at its unit: first all active ones, then all inactive ones."""
    index = torch.arange(len(domains.bound), device=units.device)
    halves = domains.at(torch.cat([index, index]))
    sign = torch.ones_like(index).to(torch.int8)
    signs, units = torch.cat([sign, -sign]), torch.cat([units, units])
    first = 0
    for key in keys:
        splits = halves.splits[key].flatten(1)
        here = ((units >= first) & (units < first + splits.shape[1])).nonzero().squeeze(1)
        splits[here, units[here] - first] = signs[here]
        first += splits.shape[1]
    return halves

"""Square attack: random search over square patches, without gradients."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from robustsuite.attacks.base import State, Stepper, settle
from robustsuite.attacks.slots import fresh, pick
from robustsuite.attacks.starts import within
from robustsuite.errors import UsageError
from robustsuite.models.classifier import Classifier, margins
from robustsuite.noise import ExampleNoise
from robustsuite.registry import register_attack
from robustsuite.threat import ThreatModel

_THRESHOLDS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # p halves after each, for 10,000 queries
_CHUNK = 32  # proposals drawn at once: drawing costs a hundred small operations however few numbers are wanted
_LANE = 1 << 20  # draws a lane has to itself


def shares(n_queries: int, p_init: float, rescale: bool) -> list[float]:
    """Share p of the image that proposal 0, 1, ... changes.

    ``rescale`` stretches the published schedule, made for 10,000 queries, to ``n_queries``.
    """
    published = [int(i / n_queries * 10_000) if rescale else i for i in range(n_queries)]
    return [p_init / 2 ** sum(i > threshold for threshold in _THRESHOLDS) for i in published]


class _Schedule(NamedTuple):
    """What each proposal looks like, as tensors on the device, so that slots look it up alone."""

    sides: Tensor  # int64 [n_queries], side of the square
    kinds: Tensor  # int64 [n_queries], index of that side in `patterns`
    patterns: Tensor  # [kinds, L, L], `bumps` of every side that occurs, padded with zeros
    extents: Tensor  # int64 [4], H, W, H, W
    grid: Tensor  # [max(H, W)], 0, 1, 2, ...


@lru_cache(maxsize=32)
def _schedule(attack: "Square", height: int, width: int, norm: str, device: torch.device) -> _Schedule:
    sides = []
    for share in shares(attack.n_queries, attack.p_init, attack.rescale_schedule):
        side = round(math.sqrt(share * height * width))
        side = max(side, 3) | 1 if norm == "L2" else max(side, 1)
        sides.append(min(side, height, width))
    distinct = sorted(set(sides))
    patterns = torch.zeros(len(distinct), distinct[-1], distinct[-1])
    for kind, side in enumerate(distinct):
        patterns[kind, :side, :side] = bumps(side)
    every = torch.tensor(sides)
    kinds = torch.searchsorted(torch.tensor(distinct), every)
    grid = torch.arange(max(height, width)).float()
    extents = torch.tensor([height, width, height, width])
    return _Schedule(*(t.to(device) for t in (every, kinds, patterns, extents, grid)))


@dataclass
class SquareState(State):
    """The best point so far, and the plans of the next proposals."""

    x_best: Tensor  # [S,C,H,W]
    best: Tensor  # [S], its margin
    plans: Tensor  # [S, _CHUNK, F], see `Square._plans`, of the proposals from `planned` on
    planned: Tensor  # int64 [S]

    # Steps that `plans` still covers, for every slot: a row refilled in between brings a whole chunk of its own, and
    # a new state object starts at 0 and plans afresh. Only when plans are made depends on this, never what they say.
    covered = 0


@register_attack(
    "square",
    norms=("Linf", "L2"),
    access="score",
    kind="bounded",
    min_classes=2,
    randomized=True,
    paper="Andriushchenko et al. 2020, arXiv:1912.00049",
)
@dataclass(frozen=True)
class Square(Stepper):
    """Random search: recolour a random square, keep it when the margin shrinks.

    Evaluates the start (vertical stripes for Linf, a grid of tiles for L2), then ``n_queries`` proposals. ``p_init``
    is the share of the image that the first squares cover. Every example has windows and colours of its own, and the
    windows reach the last row and column; images need not be square. Up to 32 channels. Source: Andriushchenko et al.
    2020, algorithms 1 to 3.
    """

    cost = (1, 0)

    n_queries: int = 5000
    p_init: float = 0.8
    restarts: int = 1
    rescale_schedule: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.n_queries < _LANE or self.restarts < 1:
            raise UsageError(
                f"square needs 1 <= n_queries < {_LANE} and restarts >= 1, got {self.n_queries} and {self.restarts}."
            )
        if not 0 < self.p_init <= 1:
            raise UsageError(f"square needs 0 < p_init <= 1, got {self.p_init}.")

    @property
    def budget(self) -> int:
        """The start and every proposal."""
        return self.n_queries + 1

    def lanes(self, num_classes: int) -> int:
        """The restarts."""
        return self.restarts

    def init(
        self, x: Tensor, y: Tensor, logits: Tensor, lane: Tensor, threat: ThreatModel, noise: ExampleNoise
    ) -> SquareState:
        """Slots at the start pattern, with plans for their first proposals."""
        threat = within(threat, x[0].numel())
        if x.shape[1] > 32:
            raise UsageError(f"square colours up to 32 channels, the images have {x.shape[1]}.")
        start = _stripes(x, lane, threat, noise) if threat.norm == "Linf" else _tiles(x, lane, threat, noise)
        return SquareState(
            **fresh(x, y, lane, noise, start),
            x_best=start.clone(),
            best=x.new_full((x.shape[0],), float("inf")),
            plans=self._plans(noise, x, lane, torch.zeros_like(y), threat),
            planned=torch.zeros_like(y),
        )

    def step(self, model: Classifier, state: State, threat: ThreatModel, noise: ExampleNoise) -> SquareState:
        """Evaluate `x_adv`, keep it if it is better, and propose the next point."""
        threat = within(threat, state.x[0].numel())
        assert isinstance(state, SquareState)
        logits = model.logits(state.x_adv)
        active = ~state.done
        move = settle(state, logits, self.budget)
        found = margins(logits, state.y)
        better = active & ((found < state.best) | state.fooled)
        state.best = found.where(better, state.best)
        state.x_best = pick(better, state.x_adv, state.x_best)
        schedule = self._schedule(state.x, threat)
        propose = _recolour if threat.norm == "Linf" else _move_mass
        proposed = propose(state, self._plan(state, threat, noise), schedule, threat)
        state.x_adv = pick(move, proposed, state.x_adv)
        return state

    def _schedule(self, x: Tensor, threat: ThreatModel) -> _Schedule:
        return _schedule(self, x.shape[2], x.shape[3], threat.norm, x.device)

    def _plan(self, state: SquareState, threat: ThreatModel, noise: ExampleNoise) -> Tensor:
        """The plan of each slot's next proposal, ``[S,F]``."""
        proposal = (state.it - 1).clamp_(0, self.n_queries - 1)
        if state.covered == 0:
            state.plans = self._plans(noise, state.x, state.lane, proposal, threat)
            state.planned, state.covered = proposal, _CHUNK
        state.covered -= 1
        offset = (proposal - state.planned).view(-1, 1, 1).expand(-1, 1, state.plans.shape[2])
        return state.plans.gather(1, offset).squeeze(1)

    def _plans(self, noise: ExampleNoise, x: Tensor, lane: Tensor, first: Tensor, threat: ThreatModel) -> Tensor:
        """Plans of the proposals ``first, first + 1, ...``, ``[S, _CHUNK, F]``, keyed by (lane, proposal).

        F columns, all float32: centre of the target window (row, column), centre of the source window (row, column),
        half the side, kind of pattern, whether it is turned, and a sign for each channel.
        """
        count, channels = x.shape[:2]
        schedule = self._schedule(x, threat)
        ahead = torch.arange(_CHUNK, device=x.device)
        proposal = (first.view(-1, 1) + ahead).clamp_(max=self.n_queries - 1)
        draw = (lane.view(-1, 1) * _LANE + proposal).flatten()
        source = noise.child("proposals").noise.at(noise.ids.repeat_interleave(_CHUNK))
        words = source.bits(6, draw).view(count, _CHUNK, 6)
        side = schedule.sides[proposal].unsqueeze(2)
        corners = (words[:, :, :4] * (schedule.extents - side + 1)) >> 32
        signs = ((words[:, :, 4:5] >> torch.arange(channels, device=x.device)) & 1) * 2 - 1
        kind, turned = schedule.kinds[proposal].unsqueeze(2), words[:, :, 5:] & 1
        return torch.cat([corners + (side - 1) / 2, side / 2, kind, turned, signs.float()], 2)


_HALF, _KIND, _TURNED, _SIGNS = 4, 5, 6, 7  # columns of a plan after the four of the centres


def _windows(plan: Tensor, schedule: _Schedule, height: int, width: int, count: int) -> list[Tensor]:
    """The pixels of the first ``count`` windows of a plan, 0 or 1, each float32 ``[S,1,H,W]``."""
    away = (schedule.grid - plan[:, : 2 * count, None]).abs_()
    covered = (away < plan[:, _HALF, None, None]).float()
    return [covered[:, 2 * i, None, :height, None] * covered[:, 2 * i + 1, None, None, :width] for i in range(count)]


def _recolour(state: SquareState, plan: Tensor, schedule: _Schedule, threat: ThreatModel) -> Tensor:
    """Linf: in the window, every channel goes to one face of the cube."""
    _, _, height, width = state.x.shape
    (window,) = _windows(plan, schedule, height, width, 1)
    face = torch.add(state.x, plan[:, _SIGNS:, None, None], alpha=threat.radius).clamp_(0, 1)
    return torch.lerp(state.x_best, face, window)


def _stripes(x: Tensor, lane: Tensor, threat: ThreatModel, noise: ExampleNoise) -> Tensor:
    """Linf start: every column of every channel goes to one face of the cube."""
    signs = noise.child("start").signs((x.shape[1], 1, x.shape[3]), lane)
    return (x + threat.radius * signs).clamp_(0, 1)


def _move_mass(state: SquareState, plan: Tensor, schedule: _Schedule, threat: ThreatModel) -> Tensor:
    """L2: empty one window, and put its mass and what is left of the budget into another, shaped as two bumps."""
    _, channels, height, width = state.x.shape
    to, taken = _windows(plan, schedule, height, width, 2)
    delta = state.x_best - state.x
    unspent = (threat.radius**2 - delta.square().sum((1, 2, 3), keepdim=True)).clamp_(min=0) / channels
    mass = (unspent + (delta * to.maximum(taken)).square_().sum((2, 3), keepdim=True)).sqrt_()
    here = delta * to
    new = here.div_(_length(here)).add_(_bumps_at(plan, schedule, height, width) * to * plan[:, _SIGNS:, None, None])
    new = new.mul_(mass / _length(new))
    delta = torch.lerp(delta.mul_(1 - taken), new, to)
    scale = threat.radius / delta.square().sum((1, 2, 3), keepdim=True).sqrt_().clamp_(min=1e-12)
    return delta.mul_(scale).add_(state.x).clamp_(0, 1)


def _length(delta: Tensor) -> Tensor:
    return delta.square().sum((2, 3), keepdim=True).sqrt_().clamp_(min=1e-12)


def _bumps_at(plan: Tensor, schedule: _Schedule, height: int, width: int) -> Tensor:
    """The pattern of each slot's side with its corner at the window's, ``[S,1,H,W]``; outside it means nothing."""
    corner = plan[:, :2] - plan[:, _HALF, None] + 0.5
    from_corner = (schedule.grid - corner[:, :, None]).long().clamp_(0, schedule.patterns.shape[1] - 1)
    row, column = from_corner[:, 0, :height, None], from_corner[:, 1, None, :width]
    kind, turned = plan[:, _KIND].long()[:, None, None], plan[:, _TURNED].bool()[:, None, None]
    return schedule.patterns[kind, row.where(~turned, column), column.where(~turned, row)].unsqueeze(1)


def bumps(side: int) -> Tensor:
    """A positive bump above a negative one of equal norm, together 1, ``[side, side]`` (section 3.3 of the paper)."""
    upper = side // 2
    pattern = torch.cat([_bump(upper, side), -_bump(side - upper, side)])
    return pattern / pattern.norm()


def _bump(height: int, width: int) -> Tensor:
    """Concentric rectangles, the k-th adding 1/k^2, so largest in the middle; norm 1 (nothing, if the height is 0)."""
    down = (torch.arange(height) - height // 2).abs().view(-1, 1)
    across = (torch.arange(width) - width // 2).abs().view(1, -1)
    rings = max(height, width) // 2 + 1
    tails = (1 / torch.arange(1, rings + 1).double().square()).flip(0).cumsum(0).flip(0)
    bump = tails[torch.maximum(down, across)]
    return (bump / bump.norm()).float()


def _tiles(x: Tensor, lane: Tensor, threat: ThreatModel, noise: ExampleNoise) -> Tensor:
    """L2 start: a centred grid of patterns, five to the shorter edge, each turned and signed at random."""
    count, channels, height, width = x.shape
    side = max(min(height, width) // 5, 1)
    down, across = height // side, width // side
    source = noise.child("start")
    signs = source.signs((channels, down, across), lane).view(count, channels, down, 1, across, 1)
    turned = source.child("turned").bits(down * across, lane).view(count, 1, down, 1, across, 1) >> 31
    pattern = bumps(side).to(x.device)
    upright, lying = pattern.view(1, 1, 1, side, 1, side), pattern.T.view(1, 1, 1, side, 1, side)
    grid = (torch.where(turned.bool(), lying, upright) * signs).reshape(count, channels, down * side, across * side)
    delta = torch.zeros_like(x)
    top, left = (height - down * side) // 2, (width - across * side) // 2
    delta[:, :, top : top + down * side, left : left + across * side] = grid
    return (x + threat.radius * threat.ascent(delta)).clamp_(0, 1)

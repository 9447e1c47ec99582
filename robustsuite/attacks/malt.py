"""MALT: targeted APGD on the classes whose boundaries are nearest where the model is linear around the image."""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from robustsuite.attacks.apgd import APGDT
from robustsuite.attacks.apgd_l1 import SparseState
from robustsuite.attacks.apgd_momentum import MomentumState
from robustsuite.attacks.apgd_rule import APGDState, Rule
from robustsuite.attacks.base import State, Stepper, rows, settle
from robustsuite.attacks.losses import dlr_targeted, gap, ranked
from robustsuite.attacks.slots import fresh
from robustsuite.attacks.starts import within
from robustsuite.errors import UsageError
from robustsuite.models.classifier import Classifier
from robustsuite.noise import ExampleNoise
from robustsuite.registry import register_attack
from robustsuite.threat import ThreatModel

_DUAL = {"Linf": 1.0, "L2": 2.0, "L1": math.inf}
_COURSE = {f.name for f in fields(State)} - {"x_adv"}  # what a new target does not reset


@dataclass
class Ranking(APGDState):
    """APGD's state, and how far the classes are away at the clean image."""

    candidates: Tensor  # int64 [S,K], by clean logit
    distance: Tensor  # [S,K], to their linearised boundaries; infinite before it is measured


@dataclass
class RankingMomentum(Ranking, MomentumState):
    """For Linf and L2."""


@dataclass
class RankingSparse(Ranking, SparseState):
    """For L1."""


@register_attack(
    "malt",
    norms=("Linf", "L2", "L1"),
    access="white-box",
    kind="bounded",
    min_classes=2,
    randomized=True,
    paper="Melamed et al. 2024, arXiv:2407.02240",
)
@dataclass(frozen=True)
class MALT(Stepper):
    """Targeted Auto-PGD, ``steps`` moves a target, with the ``n_targets`` classes nearest at the clean image.

    Near is a class t whose ``(z_y - z_t) / ||grad (z_t - z_y)||`` (dual norm) is small: its distance, were the model
    linear. A class without a gradient there comes last. The ``candidates`` with the largest clean logits are measured.
    A slot spends its first evaluations on the clean image, one candidate each, of which the distance alone is kept;
    then it runs its targets one after the other, move for move as `apgd-t` runs its own, each from a start of its own.
    Any misclassification counts.
    """

    steps: int = 100
    n_targets: int = 9
    candidates: int = 100

    def __post_init__(self) -> None:
        if min(self.steps, self.n_targets, self.candidates) < 1:
            raise UsageError(
                "malt needs steps, n_targets and candidates >= 1, got "
                f"{self.steps}, {self.n_targets} and {self.candidates}."
            )

    @property
    def budget(self) -> int:
        """With enough classes for all candidates."""
        return self._budget(self.candidates)

    def _budget(self, measured: int) -> int:
        return measured + min(self.n_targets, measured) * (self.steps + 1)

    def init(
        self, x: Tensor, y: Tensor, logits: Tensor, lane: Tensor, threat: ThreatModel, noise: ExampleNoise
    ) -> Ranking:
        """Slots at the clean image, with their candidates."""
        threat = within(threat, x[0].numel())
        order = ranked(logits, y)[:, : self.candidates].contiguous()
        plain = self._rule(threat).state(fresh(x, y, lane, noise, x.clone()), y.clone(), threat)
        kind = RankingSparse if isinstance(plain, SparseState) else RankingMomentum
        values = {f.name: getattr(plain, f.name) for f in fields(plain)}
        return kind(**values, candidates=order, distance=torch.full_like(order, math.inf, dtype=x.dtype))

    def step(self, model: Classifier, state: State, threat: ThreatModel, noise: ExampleNoise) -> Ranking:
        """Evaluate `x_adv`: measure a candidate, or move on with the target."""
        assert isinstance(state, Ranking)
        threat, measured = within(threat, state.x[0].numel()), state.candidates.shape[1]
        rule, measuring = self._rule(threat), state.it < measured
        at = state.it.clamp(max=measured - 1).view(-1, 1)
        target = torch.where(measuring, state.candidates.gather(1, at).squeeze(1), state.target)

        def losses(logits: Tensor) -> Tensor:
            return torch.where(measuring, gap(logits, state.y, target), dlr_targeted(logits, state.y, target))

        loss, logits, grad = model.loss_gradient(state.x_adv, losses)
        grad = grad.nan_to_num(0)
        size = torch.linalg.vector_norm(grad.flatten(1), ord=_DUAL[threat.norm], dim=1)
        distance = torch.where(size > 0, -loss / size, math.inf)
        kept = torch.where(measuring & ~state.done, distance, state.distance.gather(1, at).squeeze(1))
        state.distance.scatter_(1, at, kept.view(-1, 1))
        move = settle(state, logits, self._budget(measured))
        rule.advance(state, loss, grad, move & ~measuring & (state.moves < self.steps), threat)
        self._turn(state, rule, move, threat, noise)
        return state

    def _rule(self, threat: ThreatModel) -> Rule:
        return APGDT(steps=self.steps).rule(threat)

    def _turn(self, state: Ranking, rule: Rule, move: Tensor, threat: ThreatModel, noise: ExampleNoise) -> None:
        """Start the next target in slots that have measured all candidates or are through with a target."""
        since = state.it - state.candidates.shape[1]
        turn = move & (since >= 0) & (since % (self.steps + 1) == 0)
        if not turn.is_cuda and not bool(turn.any()):  # on a GPU looking costs more than the work
            return
        rank = (since // (self.steps + 1)).clamp(0, state.candidates.shape[1] - 1)
        nearest = state.distance.argsort(dim=1, stable=True).gather(1, rank.view(-1, 1))
        target = state.candidates.gather(1, nearest).squeeze(1)
        start = rule.start(state.x, threat, noise.child("start"), rank)
        new = rule.state(fresh(state.x, state.y, state.lane, noise, start), target, threat)
        for name in (f.name for f in fields(new) if f.name not in _COURSE):
            value, old = getattr(new, name), getattr(state, name)
            setattr(state, name, torch.where(rows(turn, old), value, old))

"""The part of APGD that hangs on the norm: where it starts, how it moves, when it changes its step."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from robustsuite.attacks.base import State, settle
from robustsuite.attacks.slots import Fresh, pick
from robustsuite.noise import ExampleNoise
from robustsuite.threat import ThreatModel


@dataclass
class APGDState(State):
    """What APGD remembers of a slot. Its schedule counts `moves`, which a refused candidate does not shift."""

    target: Tensor  # int64 [S], class to reach (untargeted losses ignore it)
    x_best: Tensor  # [S,C,H,W], where the loss was largest
    grad_best: Tensor  # [S,C,H,W], the gradient there
    best: Tensor  # [S], that loss
    eta: Tensor  # [S], step size
    moves: Tensor  # int64 [S]

    def keep(self, better: Tensor, loss: Tensor, grad: Tensor) -> None:
        """Where ``better`` (bool ``[S]``), the point evaluated is the best one."""
        self.best = loss.where(better, self.best)
        self.x_best = pick(better, self.x_adv, self.x_best)
        self.grad_best = pick(better, grad, self.grad_best)


class Rule(ABC):
    """A frozen dataclass; all it remembers of a slot is in the slot's row."""

    @property
    @abstractmethod
    def budget(self) -> int:
        """Evaluations that a slot may make."""

    @abstractmethod
    def start(self, x: Tensor, threat: ThreatModel, noise: ExampleNoise, draw: Tensor) -> Tensor:
        """Random points ``[S,C,H,W]`` to start from."""

    @abstractmethod
    def state(self, slots: Fresh, target: Tensor, threat: ThreatModel) -> APGDState:
        """The state of slots that stand at their start."""

    def settle(self, state: State, logits: Tensor) -> Tensor:
        """Book one evaluation; returns the slots that may move on, bool ``[S]``."""
        return settle(state, logits, self.budget)

    @abstractmethod
    def advance(self, state: State, loss: Tensor, grad: Tensor, move: Tensor, threat: ThreatModel) -> None:
        """Book loss ``[S]`` and gradient of `x_adv`, review the step where that is due, move where ``move``."""

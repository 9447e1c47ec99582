"""The two doors of an attack: `Attack.run`, one plain function, and `Stepper`, which the engine batches."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustsuite.models.classifier import Classifier, fooled
from robustsuite.noise import ExampleNoise
from robustsuite.threat import ThreatModel


class Attack(ABC):
    """A frozen dataclass of hyper-parameters; it holds no state and draws no global randomness."""

    @abstractmethod
    def run(self, model: Classifier, x: Tensor, y: Tensor, threat: ThreatModel, noise: ExampleNoise) -> Tensor:
        """Candidates ``x_adv`` shaped like ``x``. Whether they count is the evaluator's word, not the attack's."""


@dataclass
class State:
    """An iterative attack in flight: tensors with a leading slot dimension, each slot with its own counter.

    `x_adv` is the point that the next step evaluates; once `fooled` it stays where it fooled. `it` counts the
    evaluations made. `muted` is the index of the evaluation up to which fooling is ignored, because the evaluator has
    refused what was found there (-1: none yet).
    """

    x: Tensor  # [S,C,H,W]
    y: Tensor  # int64 [S]
    ids: Tensor  # int64 [S], keys of the randomness
    lane: Tensor  # int64 [S], which restart or target
    x_adv: Tensor  # [S,C,H,W]
    it: Tensor  # int64 [S]
    fooled: Tensor  # bool [S]
    done: Tensor  # bool [S]
    muted: Tensor  # int64 [S]


class Stepper(Attack):
    """An iterative attack as a state machine: one `step` is one evaluation of the model on every slot.

    A slot's course must depend on its own row alone. A step never moves a slot that is done. `cost` says what one
    evaluation costs in (forwards, backwards).
    """

    cost: tuple[int, int] = (1, 1)

    @property
    @abstractmethod
    def budget(self) -> int:
        """Evaluations that a slot may make."""

    def lanes(self, num_classes: int) -> int:
        """How many independent tries an example gets (restarts, targets); tried in order, first success counts."""
        del num_classes
        return 1

    @abstractmethod
    def init(
        self, x: Tensor, y: Tensor, logits: Tensor, lane: Tensor, threat: ThreatModel, noise: ExampleNoise
    ) -> State:
        """State of fresh slots, without a call of the model; ``logits`` are the clean ones ``[S,K]``."""

    @abstractmethod
    def step(self, model: Classifier, state: State, threat: ThreatModel, noise: ExampleNoise) -> State:
        """Evaluate every slot's `x_adv` once and move those that are not done; may write into ``state``."""

    def run(self, model: Classifier, x: Tensor, y: Tensor, threat: ThreatModel, noise: ExampleNoise) -> Tensor:
        """The same attack without the engine: every lane in turn, on what is not yet fooled in this batch."""
        logits = model.logits(x)
        result, open_ = x.clone(), torch.ones_like(y, dtype=torch.bool)
        for lane in range(self.lanes(model.num_classes)):
            state = self.init(x, y, logits, torch.full_like(y, lane), threat, noise)
            for _ in range(self.budget):
                state = self.step(model, state, threat, noise)
                if bool(state.done.all()):
                    break
            take = open_ & (state.fooled | (lane == 0))
            result[take] = state.x_adv[take]
            open_ &= ~state.fooled
        return result


def settle(state: State, logits: Tensor, budget: int) -> Tensor:
    """Book one evaluation: counters, `fooled`, `done`. Returns the slots that may move on, bool ``[S]``.

    A refused candidate (`muted`) is passed over, so that the attack goes on from there.
    """
    active = ~state.done
    state.fooled |= active & fooled(logits, state.y) & (state.it > state.muted)
    state.it += active
    state.done |= state.fooled | (state.it >= budget)
    return ~state.done


def rows(mask: Tensor, like: Tensor) -> Tensor:
    """``mask`` ``[S]`` shaped so that it broadcasts over ``like`` ``[S, ...]``."""
    return mask.view(-1, *[1] * (like.ndim - 1))


Losses = Callable[[Tensor, Tensor], Tensor]

"""What a training hands back, finished or stopped."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from robustsuite.errors import RobustsuiteError

State = dict[str, Tensor]


@dataclass(frozen=True)
class Epoch:
    """One epoch: mean loss terms, and accuracy in [0,1] on the held-out examples (None: not measured)."""

    number: int
    terms: dict[str, float]
    clean_accuracy: float | None = None
    robust_accuracy: float | None = None


@dataclass
class Trained:
    """A trained module in eval mode, with the weights of the selected epoch, and how it came about.

    `settings` are those of the loop and `params` those of the defense: with seed, data and threat they repeat the
    training bit for bit on one machine. `best` is the selected epoch's number, `last_state` the final weights.
    """

    module: nn.Module
    arch: str
    arch_params: dict[str, Any]
    num_classes: int
    input_shape: tuple[int, ...]
    defense: str
    params: dict[str, Any]
    settings: dict[str, Any]
    threat: str
    data: dict[str, Any]
    history: list[Epoch] = field(default_factory=list)
    best: int = 0
    best_state: State = field(default_factory=dict)
    last_state: State = field(default_factory=dict)
    forward: int = 0
    backward: int = 0
    seconds: float = 0.0


class DivergedError(RobustsuiteError):
    """The loss or the weights stopped being finite; `trained` holds the best epoch before that, if there was one."""

    def __init__(self, message: str, trained: Trained | None = None) -> None:
        super().__init__(message)
        self.trained = trained

"""What a training hands back, finished or stopped."""

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn

from robustsuite.defenses.services import Fitted
from robustsuite.errors import RobustsuiteError

State = dict[str, Tensor]
COLLAPSE = 0.2


@dataclass(frozen=True)
class Epoch:
    """One epoch: mean loss terms, and what the held-out examples say (None: not measured), accuracies in [0,1].

    Two monitors of catastrophic overfitting: FGSM's accuracy far above PGD's (`robust_accuracy`), and the share of
    `abnormal` examples, whose loss FGSM lowers. `ibp_tightness`: mean over some examples (`bounds.tightness`), for
    methods that train on bounds.
    """

    number: int
    terms: dict[str, float]
    clean_accuracy: float | None = None
    robust_accuracy: float | None = None
    fgsm_accuracy: float | None = None
    abnormal: float | None = None
    ibp_tightness: float | None = None

    def row(self) -> dict[str, Any]:
        """As plain data; what only some methods have measured is left out where it was not."""
        row = asdict(self)
        return row if self.ibp_tightness is not None else {k: v for k, v in row.items() if k != "ibp_tightness"}

    @property
    def collapsed(self) -> bool:
        """Whether FGSM's accuracy exceeds PGD's by more than `COLLAPSE`: the network has learnt to fool FGSM."""
        if self.fgsm_accuracy is None or self.robust_accuracy is None:
            return False
        return self.fgsm_accuracy - self.robust_accuracy > COLLAPSE


@dataclass
class Trained:
    """A trained module in eval mode, with the weights of the selected epoch, and how it came about.

    `settings` are those of the loop, `params` those of the base defense, and `modifiers` hold a name and params each:
    with seed, data and threat they repeat the training bit for bit on one machine. `best` is the selected epoch's
    number, `last_state` the final weights. Passes are those of the training, and `before` it those of networks that
    were trained for it. `fitted`: what `module` consists of, where it is more than the network.
    """

    module: nn.Module
    arch: str
    arch_params: dict[str, Any]
    num_classes: int
    input_shape: tuple[int, ...]
    defense: str
    params: dict[str, Any]
    modifiers: list[dict[str, Any]]
    settings: dict[str, Any]
    threat: str
    data: dict[str, Any]
    history: list[Epoch] = field(default_factory=list)
    best: int = 0
    best_state: State = field(default_factory=dict)
    last_state: State = field(default_factory=dict)
    forward: int = 0
    backward: int = 0
    forward_before: int = 0
    backward_before: int = 0
    fitted: Fitted | None = None
    seconds: float = 0.0
    rank: int = 0

    @property
    def passes(self) -> dict[str, Any]:
        """Example-passes of the training, and ``before`` it, where networks were trained for it."""
        own = {"forward": self.forward, "backward": self.backward}
        before = {"forward": self.forward_before, "backward": self.backward_before}
        return own | ({"before": before} if any(before.values()) else {})

    @property
    def overfitting(self) -> float | None:
        """Robust overfitting: the selected epoch's robust accuracy minus the last one's, where both were measured."""
        if not self.history or not self.best:
            return None
        best, last = self.history[self.best - 1].robust_accuracy, self.history[-1].robust_accuracy
        return None if best is None or last is None else best - last

    @property
    def collapsed_at(self) -> int | None:
        """The first epoch that shows catastrophic overfitting."""
        return next((epoch.number for epoch in self.history if epoch.collapsed), None)


class DivergedError(RobustsuiteError):
    """The loss or the weights stopped being finite; `trained` holds the best epoch before that, if there was one."""

    def __init__(self, message: str, trained: Trained | None = None) -> None:
        super().__init__(message)
        self.trained = trained

"""Everything about a training but method, model, data and threat."""

from dataclasses import dataclass

from robustsuite.errors import UsageError
from robustsuite.training.optim import OPTIMIZERS, SCHEDULES


@dataclass(frozen=True)
class Settings:
    """The recipe that methods are compared under. `clip` bounds the gradient's norm (0: off).

    `decay_all`: whether weight decay also moves biases and normalisation layers. `validation`: how many examples are
    held out to select the epoch by (None: a tenth, at most 200, where the method selects at all). `precision`:
    ``fp32``, or ``bf16`` in forward passes. `compile` and `channels_last` change speed and last bits.
    """

    epochs: int = 20
    batch_size: int = 128
    lr: float = 0.05
    optimizer: str = "sgd"
    schedule: str = "one_cycle"
    weight_decay: float = 5e-4
    clip: float = 0.0
    seed: int = 0
    validation: int | None = None
    momentum: float = 0.9
    nesterov: bool = False
    decay_all: bool = True
    precision: str = "fp32"
    compile: bool = False
    channels_last: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise UsageError(f"epochs and batch size must be at least 1, got {self.epochs} and {self.batch_size}.")
        if min(self.lr, self.weight_decay, self.clip) < 0 or not 0 <= self.momentum < 1:
            raise UsageError("lr, weight decay and clip must not be negative, and momentum lie in [0,1).")
        if self.optimizer not in OPTIMIZERS:
            raise UsageError(f"no optimizer '{self.optimizer}'; choose {', '.join(OPTIMIZERS)}.")
        if self.schedule not in SCHEDULES:
            raise UsageError(f"no schedule '{self.schedule}'; choose {', '.join(sorted(SCHEDULES))}.")

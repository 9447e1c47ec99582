"""What all training on bounds shares: a radius that grows, the clean share of the loss, penalties on weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from robustsuite.defenses.base import Step, StepMethod, Term
from robustsuite.defenses.context import Context
from robustsuite.defenses.fast_ibp_penalties import interval_weights, penalties
from robustsuite.defenses.losses import ce
from robustsuite.errors import UsageError

Schedule = Literal["linear", "smoothed"]
MNIST = {"warmup": 1 / 70, "ramp": 21 / 70}  # of the published recipes, as shares of the training
_TURN, _POWER = 0.25, 4.0  # where the smoothed schedule turns linear, and how it begins (auto_LiRPA's scheduler)


def smoothed(share: float) -> float:
    """From 0 at 0 to 1 at 1: ``share^4`` up to a quarter, then linear, without a kink."""
    scale = 1 / ((1 - _TURN) * _POWER * _TURN ** (_POWER - 1) + _TURN**_POWER)
    middle = scale * _TURN**_POWER
    if share < _TURN:
        return scale * share**_POWER
    return middle + (1 - middle) * (share - _TURN) / (1 - _TURN)


@dataclass(frozen=True)
class BoundTraining(StepMethod):
    """A loss on bounds over a box that grows; subclasses give the part of the loss that is `robust`.

    The radius grows from 0 to `eps` times the threat model's eps between the shares `warmup` and `ramp` of the
    training, linearly or `smoothed` (`schedule`); while it is 0 the loss is the clean cross-entropy. After that this
    has the weight kappa, which goes from `kappa_start` to `kappa_end` with the radius, and `robust` the rest. `l1`: of
    the weights of linear and convolutional layers, added to the loss. `penalty`: coefficient of the two penalties of
    Fast-IBP on the bounds (`fast_ibp_penalties`), which fade as the radius grows; `interval_init`: whether training
    begins from its weights, where the network has batch normalisation. The box is that of the Linf ball, clipped to
    [0,1]; it holds the L2 and L1 balls of that eps.
    """

    kappa_start: float = 0.0
    kappa_end: float = 0.0
    warmup: float = 0.05
    ramp: float = 0.6
    eps: float = 1.0
    schedule: Schedule = "linear"
    l1: float = 0.0
    penalty: float = 0.0
    interval_init: bool = False
    # An early epoch knows only small boxes: what PGD says of it does not rank it. The literature takes the last.
    select: ClassVar = "last"
    monitors: ClassVar[tuple[str, ...]] = ("ibp_tightness",)

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not 0 <= self.warmup <= self.ramp <= 1:
            raise UsageError(
                f"{name} needs 0 <= warmup <= ramp <= 1, got {self.warmup} and {self.ramp}: the eps schedule is in "
                "shares of the training, and must not be longer than it."
            )
        if not (0 <= self.kappa_start <= 1 and 0 <= self.kappa_end <= 1):
            raise UsageError(f"{name}'s kappa must lie in [0,1], got {self.kappa_start} to {self.kappa_end}.")
        if self.schedule not in ("linear", "smoothed"):
            raise UsageError(f"{name} has no schedule '{self.schedule}'; choose linear or smoothed.")
        if min(self.eps, self.l1, self.penalty) < 0:
            raise UsageError(f"{name} needs eps, l1 and penalty >= 0, got {self.eps}, {self.l1} and {self.penalty}.")

    def setup(self, context: Context) -> None:
        """Trace the network, so that an operator without bounds is named now; draw the weights anew if asked to."""
        context.trace()
        if self.interval_init:
            interval_weights(context.module, context.noise)

    def grown(self, progress: float) -> float:
        """Share of the radius reached at ``progress``, from 0 to 1."""
        if progress >= self.ramp:
            return 1.0
        if progress <= self.warmup:
            return 0.0
        share = (progress - self.warmup) / (self.ramp - self.warmup)
        return share if self.schedule == "linear" else smoothed(share)

    def kappa(self, share: float) -> float:
        """Weight of the clean cross-entropy when that share of the radius is reached."""
        return self.kappa_start + (self.kappa_end - self.kappa_start) * share if share > 0 else 1.0

    def box(self, step: Step, share: float) -> tuple[Tensor, Tensor]:
        """Lower and upper ends of the pixels, ``[B,C,H,W]``."""
        radius = share * self.eps * step.threat.radius
        return (step.x - radius).clamp(min=0), (step.x + radius).clamp(max=1)

    def robust(self, step: Step, share: float) -> Mapping[str, Term]:
        """The terms on bounds, at that share of the radius."""
        raise NotImplementedError

    def terms(self, step: Step) -> Mapping[str, Term]:
        """Clean cross-entropy times kappa, the robust terms times 1 - kappa, and the penalties."""
        share = self.grown(step.progress)
        kappa = self.kappa(share)
        terms = {"ce": Term(ce(step.logits("clean"), step.q), kappa)} if kappa > 0 else {}
        if kappa < 1:
            robust = self.robust(step, share)
            terms |= {name: Term(term.values, term.weight * (1 - kappa)) for name, term in robust.items()}
            if self.penalty > 0 and share < 1 and step.boxes is not None:
                tight, stable = penalties(step.boxes)
                terms |= {"tightness": Term(tight, self.penalty * (1 - share))}
                terms |= {"stability": Term(stable, self.penalty * (1 - share))}
        if self.l1 > 0:
            terms["l1"] = Term(_size(step.module).expand(len(step.y)), self.l1)
        return terms


def _size(module: nn.Module) -> Tensor:
    """Sum of the absolute values of all weights of linear and convolutional layers."""
    layers = (part for part in module.modules() if isinstance(part, nn.Linear | nn.Conv2d))
    return sum((part.weight.abs().sum() for part in layers), next(module.parameters()).new_zeros(()))


def worst(step: Step, margins: Tensor) -> Tensor:
    """Cross-entropy ``[B]`` at the worst logits that the lower bounds ``margins`` allow: 0 at the label."""
    return ce(-margins, step.q)

"""Interval bounds for the first part of a network, attacks within them for the rest."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from robustsuite.bounds.ibp import Boxes
from robustsuite.bounds.latent import middle, onward
from robustsuite.bounds.rounding import Box
from robustsuite.defenses.base import Step, Term
from robustsuite.defenses.bound_training import MNIST, BoundTraining, Schedule, worst
from robustsuite.defenses.context import Context
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense

PAPER = "Mao et al. 2023, arXiv:2305.04574"
_DECAYS = (0.5, 0.7)  # shares of the steps after which their size falls to a tenth


@register_defense(
    "taps",
    kind="step",
    paper=f"{PAPER}, eq. 5 and section 3",
    cost="2 passes, and (classes - 1) restarts (steps + 1) of the last operators",
    fidelity="reconstructed",
    defaults={
        "mnist": MNIST | {"last": 8, "eps": 4 / 3},
        "mnist-0.1": MNIST | {"last": 11, "eps": 2.0},
        "mnist-0.3": MNIST | {"last": 8, "eps": 4 / 3},
        "cifar10": {"warmup": 1 / 180, "ramp": 81 / 180, "last": 4},
        "cifar10-2/255": {"warmup": 1 / 160, "ramp": 81 / 160, "last": 17},
        "cifar10-8/255": {"warmup": 1 / 180, "ramp": 81 / 180, "last": 4},
    },
)
@dataclass(frozen=True)
class TAPS(BoundTraining):
    """``L_taps L_ibp``: a loss at attacked margins between a box in the middle and the logits, times that of IBP.

    Mao, Mueller, Fischer, Vechev, "Connecting Certified and Adversarial Training" (NeurIPS 2023). Interval bounds go
    up to the `last` so many operators; within the box there, each margin ``f_y - f_k`` is attacked by itself, in
    `steps` signed steps of `alpha` times the half width (a tenth after half of them, and again after 70 %) from
    `restarts` uniform starts. L_taps is the cross-entropy at these margins. The gradient reaches the box through the
    point by the rectified linear connector: an end of an interval has the share ``max(0, 1 - distance / (c width))`` of
    it, c being `connector`, 0.5. In the product's gradient the part of L_taps weighs `weight` times that of L_ibp, both
    summing to 2 (4 in the paper's later settings, 2 to 5). Step size and its decay are reconstructed. Radius (`warmup`,
    `ramp`, `eps`, `schedule`), kappa (`kappa_start`, `kappa_end`: 0 in the paper), `l1`, `penalty` and `interval_init`:
    as `ibp`'s; the paper starts from the weights and with the penalty of Fast-IBP.
    """

    last: int = 2
    steps: int = 10
    alpha: float = 0.5
    restarts: int = 3
    connector: float = 0.5
    weight: float = 4.0
    schedule: Schedule = "smoothed"
    penalty: float = 0.5
    interval_init: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.steps, self.alpha, self.weight) < 0 or self.restarts < 1 or not 0 < self.connector <= 0.5:
            raise UsageError(
                "taps needs steps, alpha and weight >= 0, restarts >= 1 and connector in (0,0.5], got "
                f"{self.steps}, {self.alpha}, {self.weight}, {self.restarts} and {self.connector}."
            )

    def setup(self, context: Context) -> None:
        """As all training on bounds; a network that cannot be split there is refused now."""
        super().setup(context)
        middle(context.trace(), self.last)

    def robust(self, step: Step, share: float) -> Mapping[str, Term]:
        """The product of the two losses."""
        return self.product(step, *self.box(step, share))

    def product(self, step: Step, lower: Tensor, upper: Tensor) -> Mapping[str, Term]:
        """The same over a box of the image."""
        ibp = worst(step, step.margins(lower, upper))
        boxes = step.boxes
        assert boxes is not None
        with step.normalised("clean"):
            taps = worst(step, self.margins(step, boxes))
        share = self.weight / (1 + self.weight)
        value = taps * ibp
        scaled = 2 * share * taps * ibp.detach() + 2 * (1 - share) * taps.detach() * ibp
        return {"taps": Term(scaled - (scaled - value).detach())}

    def margins(self, step: Step, boxes: Boxes) -> Tensor:
        """Attacked margins ``[B,K]``, 0 at the label; differentiable in the weights of both parts."""
        name = middle(boxes.graph, self.last)
        box, classes = boxes.values[name], step.num_classes
        others = (step.y.view(-1, 1) + torch.arange(1, classes, device=step.y.device)) % classes
        label, other = step.y.repeat_interleave(classes - 1), others.flatten()

        # Passes are those of whole networks.
        part = max(1, round((classes - 1) * self.last / len(boxes.graph.nodes)))

        def margin(point: Tensor) -> Tensor:
            step.passes.forward += part * len(step.y)
            logits = onward(boxes, name, point)
            return (logits.gather(1, label.view(-1, 1)) - logits.gather(1, other.view(-1, 1))).squeeze(1)

        each = Box(*(end.repeat_interleave(classes - 1, 0) for end in (box.lower, box.upper)))
        point = self.attack(step, Box(each.lower.detach(), each.upper.detach()), margin)
        step.passes.backward += part * self.restarts * self.steps * len(step.y)
        step.graphed += part * len(step.y)
        found = margin(connected(point, each, self.connector)).view(-1, classes - 1)
        return torch.zeros_like(found[:, :1]).expand(-1, classes).scatter(1, others, found)

    def attack(self, step: Step, box: Box, margin: Callable[[Tensor], Tensor]) -> Tensor:
        """For each row of ``box`` the point with the smallest margin that was met at the end of a restart."""
        best, least = box.center, torch.full((len(box.lower),), float("inf"), device=box.lower.device)
        shape, rows = box.lower.shape[1:], len(box.lower) // len(step.y)
        for restart in range(self.restarts):
            noise = step.noise.child("taps").uniform((rows, *shape), draw=restart).flatten(0, 1).to(box.lower.dtype)
            point, size = box.lower + noise * (box.upper - box.lower), self.alpha
            for number in range(self.steps):
                size *= 0.1 ** sum(number == int(at * self.steps) for at in _DECAYS)
                leaf = point.detach().requires_grad_()
                with torch.enable_grad():
                    (grad,) = torch.autograd.grad(margin(leaf).sum(), leaf)
                point = (point - size * box.radius * grad.sign()).maximum(box.lower).minimum(box.upper)
            with torch.no_grad():
                value = margin(point)
            better = value < least
            best, least = point.where(better.view(-1, *[1] * len(shape)), best), value.where(better, least)
        return best.detach()


def connected(point: Tensor, box: Box, reach: float) -> Tensor:
    """``point``, with the gradient of the ends of ``box`` by the rectified linear connector.

    An end has the share ``max(0, 1 - distance / (reach width))``, so that what lies in the middle has none. In a box
    of no width both ends have half of it.
    """
    lower, upper = box.lower, box.upper
    width = (upper - lower).detach() * reach
    flat = width <= 0
    safe = width.masked_fill(flat, 1.0)
    ends = torch.zeros_like(point)
    for end in (lower, upper):
        share = (1 - (point - end.detach()).abs() / safe).clamp(min=0).masked_fill(flat, 0.5)
        ends = ends + share * (end - end.detach())
    return point + ends

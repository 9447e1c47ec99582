"""IFIA: iterative attacks that keep a model's answer and turn its explanation."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustsuite.attacks.base import Attack
from robustsuite.attacks.slots import pick
from robustsuite.attacks.starts import inside, within
from robustsuite.errors import ContractError, UsageError
from robustsuite.models.attributions import LabelGradient, integrated_gradients, label_gradient
from robustsuite.models.classifier import MARGIN_SLACK, Classifier, margins
from robustsuite.models.precision import exact_arithmetic
from robustsuite.models.saliency import centre, overlap, saliency, top_pixels
from robustsuite.models.softplus import SoftplusForReLU
from robustsuite.noise import ExampleNoise
from robustsuite.threat import Eps, ThreatModel

ATTRIBUTIONS = ("gradient", "integrated")
LOSSES = ("topk", "mass_centre", "targeted")
_EUCLIDEAN = ThreatModel("L2", Eps.parse(1))

MapLoss = Callable[[Tensor], Tensor]
"""Maps ``[N,P]`` to what the attack maximises of them, ``[N]``."""


@dataclass(frozen=True)
class IFIA(Attack):
    """Ascent on a loss of the saliency map, from random points of the ball, with projection after every step.

    Ghorbani, Abid, Zou, "Interpretation of Neural Networks is Fragile" (AAAI 2019), algorithm 1. ``loss``: ``topk``
    takes mass off the k pixels that the clean map puts first, ``mass_centre`` moves its centre of mass, ``targeted``
    brings mass into ``region`` (top, left, bottom, right; the last two beyond it). Maps are those of the simple
    ``gradient``, or of ``integrated`` gradients over ``points``. Kept is the iterate with the smallest top-k
    intersection, of equals the one with the largest loss, among those that are predicted as ``y`` by more than rounding
    can explain; the clean image where there is none. Which iterate is kept is judged on the network as it is; the
    gradient of the loss is that of the network with softplus (``beta``) for ReLU, whose own second derivative is 0.

    ``k``: a tenth of the pixels if not said. ``alpha``: eps/16 if not said, as 0.5/255 is of 8/255 in the paper. Steps
    go along the steepest direction of the norm: signs for Linf. The losses have many local maxima, against which
    ``restarts`` help. It breaks no prediction, so it is no registered attack.
    """

    loss: str = "topk"
    attribution: str = "gradient"
    k: int | None = None
    steps: int = 300
    restarts: int = 1
    alpha: float | None = None
    points: int = 50
    beta: float = 10.0
    region: tuple[int, int, int, int] | None = None

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise UsageError(f"no loss '{self.loss}' of attributions; choose {', '.join(LOSSES)}.")
        if self.attribution not in ATTRIBUTIONS:
            raise UsageError(f"no attribution '{self.attribution}'; choose {', '.join(ATTRIBUTIONS)}.")
        if (self.region is not None) != (self.loss == "targeted"):
            raise UsageError("the loss targeted needs a region (top, left, bottom, right), and it alone takes one.")
        counts = {"steps": self.steps, "restarts": self.restarts, "points": self.points, "k": self.k}
        for name, count in counts.items():
            if count is not None and count < 1:
                raise UsageError(f"ifia needs {name} >= 1, got {count}.")
        if not self.beta > 0 or (self.alpha is not None and not self.alpha > 0):
            raise UsageError(f"ifia needs beta and alpha > 0, got {self.beta} and {self.alpha}.")

    def run(self, model: Classifier, x: Tensor, y: Tensor, threat: ThreatModel, noise: ExampleNoise) -> Tensor:
        """Images ``[N,C,H,W]`` in ball and box that are predicted as ``y``, wherever ``x`` is.

        Raises `UsageError` for images with fewer than k pixels or a region that they do not have, and `ContractError`
        for a network that cannot be differentiated twice.
        """
        threat = within(threat, x[0].numel())
        along = _EUCLIDEAN if threat.norm == "L1" else threat
        alpha = threat.radius / 16 if self.alpha is None else self.alpha
        project = threat.projector(x)
        _, clean = self.look(model, x, y)
        loss, top = self._loss(clean, x), top_pixels(clean, self.top(x))
        best, lowest, highest = x, overlap(top, top), loss(clean)
        for restart in range(self.restarts):
            point = self.start(x, threat, noise, restart)
            for step in range(self.steps + 1):
                logits, maps = self.look(model, point, y)
                found, value = overlap(top, top_pixels(maps, self.top(x))), loss(maps)
                better = (found < lowest) | ((found == lowest) & (value > highest))
                better &= margins(logits, y) > MARGIN_SLACK * logits.abs().amax(1)
                best = pick(better, point, best)
                lowest, highest = found.where(better, lowest), value.where(better, highest)
                if step == self.steps:
                    break
                delta = point - x + alpha * along.ascent(self._slope(model, point, y, loss))
                point = x + project(delta)
        return best

    def look(self, model: Classifier, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[N,K]``, and the saliency map of each row's logit ``y``, ``[N,H*W]``, of the network as it is."""

        def gradient(at: Tensor, labels: Tensor) -> Tensor:
            return model.gradient(at, lambda z: z.gather(1, labels.unsqueeze(1)).squeeze(1))[1]

        if self.attribution == "integrated":
            return model.logits(x), saliency(integrated_gradients(gradient, x, y, self.points))
        logits, grad = model.gradient(x, lambda z: z.gather(1, y.unsqueeze(1)).squeeze(1))
        return logits, saliency(grad)

    def start(self, x: Tensor, threat: ThreatModel, noise: ExampleNoise, restart: int = 0) -> Tensor:
        """Where the attack starts; at the clean image the loss ``mass_centre`` has no gradient."""
        return inside(x, threat, noise.child("start"), torch.full_like(noise.ids, restart))

    def slope(self, model: Classifier, x: Tensor, y: Tensor, at: Tensor) -> Tensor:
        """The gradient at ``at`` that an attack on ``x`` follows, of the network with softplus; 0 leaves it blind."""
        return self._slope(model, at, y, self._loss(self.look(model, x, y)[1], x))

    def top(self, x: Tensor) -> int:
        """How many pixels are compared; raises `UsageError` for more than there are."""
        pixels = x[0, 0].numel()
        if self.k is not None and self.k > pixels:
            raise UsageError(f"k = {self.k} is more than the {pixels} pixels of an image; give a smaller k.")
        return self.k or max(1, pixels // 10)

    def _loss(self, clean: Tensor, x: Tensor) -> MapLoss:
        height, width = x.shape[-2:]
        if self.loss == "mass_centre":
            origin = centre(clean, height, width)
            return lambda maps: (centre(maps, height, width) - origin).pow(2).sum(1)
        if self.loss == "topk":
            top = top_pixels(clean, self.top(x))
            return lambda maps: -(maps * top).sum(1)
        inner = self._target(height, width).to(x.device)
        return lambda maps: (maps * inner).sum(1)

    def _target(self, height: int, width: int) -> Tensor:
        """The region as a bool ``[H*W]``."""
        assert self.region is not None
        above, left, below, right = self.region
        if not (0 <= above < below <= height and 0 <= left < right <= width):
            raise UsageError(
                f"the region {self.region} (top, left, bottom, right) is none of an image of {height}x{width} pixels."
            )
        mask = torch.zeros(height, width, dtype=torch.bool)
        mask[above:below, left:right] = True
        return mask.flatten()

    def _slope(self, model: Classifier, point: Tensor, y: Tensor, loss: MapLoss) -> Tensor:
        leaf, smooth = point.detach().requires_grad_(True), SoftplusForReLU(self.beta)

        def gradient(at: Tensor, labels: Tensor) -> Tensor:
            model.passes.forward += len(at)
            model.passes.backward += 2 * len(at)
            with smooth:
                return label_gradient(model.module, at, labels)

        with torch.enable_grad(), exact_arithmetic():
            try:
                value = loss(saliency(self._attributions(gradient, leaf, y))).sum()
                if not value.requires_grad:  # a linear network: its gradient is the same everywhere
                    return torch.zeros_like(point)
                (grad,) = torch.autograd.grad(value, leaf, materialize_grads=True)
            except RuntimeError as error:
                if "is not implemented" not in str(error):
                    raise
                reason = str(error).splitlines()[0]
                raise ContractError(f"attacks on attributions differentiate the model twice: {reason}.") from error
        return grad.nan_to_num(0)

    def _attributions(self, gradient: LabelGradient, x: Tensor, y: Tensor) -> Tensor:
        if self.attribution == "integrated":
            return integrated_gradients(gradient, x, y, self.points)
        return gradient(x, y)

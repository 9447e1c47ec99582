"""Total variation minimisation: images rebuilt from some of their pixels."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustsuite.defenses.base import WrapMethod
from robustsuite.errors import UsageError
from robustsuite.models.bpda import check_surrogate, transformed
from robustsuite.models.classifier import Classifier
from robustsuite.models.keyed import Draws, KeyedClassifier
from robustsuite.registry import register_defense


@register_defense("tv_min", kind="wrap", paper="Guo et al. 2018, arXiv:1711.00117", cost="1 pass")
@dataclass(frozen=True)
class TVMin(WrapMethod):
    """Keep every pixel with probability ``keep`` and rebuild the image of least total variation that fits them.

    Guo, Rana, Cisse, van der Maaten, "Countering Adversarial Images Using Input Transformations" (ICLR 2018), with
    ``keep`` 0.5 and ``weight`` 0.03: the z that minimises ``sum_kept (z - x)^2 + weight TV(z)``, by ``n_iter`` steps
    of `denoised`. Broken by Athalye, Carlini, Wagner (ICML 2018). ``surrogate`` is what the gradient goes through:
    ``identity``, or ``exact``, the steps themselves. ``eot`` draws of the pixels make an evaluation by an attack,
    ``draws`` a verdict.
    """

    keep: float = 0.5
    weight: float = 0.03
    n_iter: int = 100
    surrogate: str = "identity"
    eot: int = 20
    draws: int = 50

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise UsageError(f"keep must lie in (0,1], got {self.keep}.")
        if self.weight < 0 or self.n_iter < 1:
            raise UsageError(f"tv_min needs weight >= 0 and n_iter >= 1, got {self.weight} and {self.n_iter}.")
        check_surrogate(self.surrogate, soft=False)

    def wrap(self, model: Classifier) -> Classifier:
        """A randomised classifier; raises `UsageError` for inputs that are no images ``[C,H,W]``."""
        if len(model.input_shape) != 3:
            raise UsageError(f"tv_min is for images [C,H,W], got {list(model.input_shape)}.")
        source = Draws()
        module = Rebuilt(self.keep, self.weight, self.n_iter, source)
        return KeyedClassifier(transformed(model, module, self.surrogate), source, eot=self.eot, draws=self.draws)


class Rebuilt(nn.Module):
    """Images rebuilt from random pixels; all channels of a pixel are kept or not."""

    def __init__(self, keep: float, weight: float, n_iter: int, source: Draws) -> None:
        super().__init__()
        self.keep, self.weight, self.n_iter, self.source = keep, weight, n_iter, source

    def forward(self, x: Tensor) -> Tensor:
        """``[N,C,H,W]``, the same shape."""
        kept = self.source.rows(x).child("kept").uniform((1, *x.shape[2:])) < self.keep
        return denoised(x, kept.to(x.dtype), self.weight, self.n_iter)


def denoised(x: Tensor, kept: Tensor, weight: float, n_iter: int) -> Tensor:
    """Minimises ``sum kept (z - x)^2 + weight sum |grad z|`` over z, ``[N,C,H,W]``; ``kept`` is 0 or 1.

    The gradient is forward differences, its norm Euclidean for each pixel and channel. Chambolle and Pock (2011),
    algorithm 1, from the mean of the kept pixels; the dual ball has the radius ``weight``, so that the primal steps
    are the longer ones.
    """
    ratio = 0.3 / max(weight, 1e-6)  # of the distances that the primal and the dual variable have to go
    tau, sigma = ratio / math.sqrt(8), 1 / (ratio * math.sqrt(8))
    counted = kept.expand_as(x)
    mean = (counted * x).sum((2, 3), keepdim=True) / counted.sum((2, 3), keepdim=True).clamp(min=1)
    z = torch.where(counted > 0, x, mean)
    ahead, down, across = z, torch.zeros_like(x), torch.zeros_like(x)
    for _ in range(n_iter):
        down = down + sigma * F.pad(ahead.diff(dim=2), (0, 0, 0, 1))
        across = across + sigma * F.pad(ahead.diff(dim=3), (0, 1))
        length = torch.sqrt(down**2 + across**2 + 1e-20)
        shrink = weight / length.clamp(min=max(weight, 1e-12))
        down, across = down * shrink, across * shrink
        force = _adjoint(down[:, :, :-1], 2) + _adjoint(across[:, :, :, :-1], 3)
        moved = (z - tau * force + 2 * tau * kept * x) / (1 + 2 * tau * kept)
        ahead, z = 2 * moved - z, moved
    return z


def _adjoint(p: Tensor, dim: int) -> Tensor:
    """The adjoint of ``diff`` along an axis of an image."""
    ends = (0, 0, 1, 1) if dim == 2 else (1, 1)
    return -F.pad(p, ends).diff(dim=dim)

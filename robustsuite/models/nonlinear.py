"""MixedNUTS: a robust network's logits sharpened by a power of a GELU before they are mixed with an accurate one's."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustsuite.errors import UsageError
from robustsuite.models.bpda import substituted

Grid = tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]


def normalised(z: Tensor, k: int = 250) -> Tensor:
    """Logits minus the mean of their ``k`` largest, over the standard deviation of these (divisor k - 1)."""
    top = z if k >= z.shape[1] else z.topk(k, 1).values
    return (z - top.mean(1, keepdim=True)) / (top.var(1, keepdim=True) + 1e-8).sqrt()


def sharpened(z: Tensor, s: float, c: float, p: float, k: int = 250) -> Tensor:
    """``s sign(a) |a|^p`` with ``a = GELU(normalised(z) + c)``, ``[N,K]``.

    The GELU dips at -0.75: it may change the order of low logits, but never the first where its own a is positive.
    """
    a = F.gelu(normalised(z, k) + c)
    return s * a.sign() * (a.abs() + 1e-30) ** p


class NonlinearMixture(nn.Module):
    """``log((1 - alpha) softmax(standard(x)) + alpha softmax(sharpened(robust(x))))``, ``[N,K]``.

    With ``hard`` the accurate network's probabilities are 1 for its answer and 0 for the others. Where
    ``surrogate_alpha`` is given, the gradient is that of a mixture in which the accurate network's softmax has the
    weight ``1 - surrogate_alpha``, the robust one's own 0.9 and its sharpened one 0.1 of the rest.
    """

    def __init__(
        self,
        standard: nn.Module,
        robust: nn.Module,
        *,
        s: float,
        c: float,
        p: float,
        alpha: float,
        k: int = 250,
        hard: bool = False,
        surrogate_alpha: float | None = None,
    ) -> None:
        super().__init__()
        self.standard, self.robust, self.hard = standard, robust, hard
        self.s, self.c, self.p, self.alpha, self.k = s, c, p, alpha, k
        self.surrogate_alpha = surrogate_alpha

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities of the mixture."""
        standard, robust = self.standard(x).float().double(), self.robust(x).float().double()
        own, soft = sharpened(robust, self.s, self.c, self.p, self.k).softmax(1), standard.softmax(1)
        first = soft if not self.hard else F.one_hot(standard.argmax(1), standard.shape[1]).to(soft)
        real = _log((1 - self.alpha) * first + self.alpha * own)
        if self.surrogate_alpha is None or not torch.is_grad_enabled():
            return real.float()
        blend = 0.9 * robust.softmax(1) + 0.1 * own
        mixed = (1 - self.surrogate_alpha) * soft + self.surrogate_alpha * blend
        return substituted(real, _log(mixed)).float()


def _log(probabilities: Tensor) -> Tensor:
    return probabilities.clamp(min=1e-30).log()


@dataclass(frozen=True)
class Calibration:
    """What a search over the grid found: the parameters, and the share of errors that stay confident."""

    s: float
    c: float
    p: float
    alpha: float
    surrogate_alpha: float
    confident_errors: float


def default_grid() -> Grid:
    """8 values each of s (0.05 to 5, logarithmic), c (-2 to 0) and p (1 to 4.5)."""
    s = tuple(0.05 * 100 ** (i / 7) for i in range(8))
    return s, tuple(-2 + 2 * i / 7 for i in range(8)), tuple(1 + 3.5 * i / 7 for i in range(8))


def calibrate(held: Tensor, wrong: Tensor, beta: float, grid: Grid | None = None, k: int = 250) -> Calibration:
    """The s, c and p with which the fewest errors are as confident as attacked images that are right; alpha for these.

    ``held`` are the robust network's logits of attacked images that it still gets right, ``wrong`` those of clean
    images that it gets wrong, ``[N,K]``. A margin is the gap of the two largest probabilities. Of the attacked margins,
    ``beta`` percent are above the cutoff, and ``alpha = 1 / (1 + cutoff)``, so that those answers stand whatever the
    accurate network says (Bai et al. 2024, algorithm 1). `surrogate_alpha` is the same for the logits as they are. Of
    equally good points the one with the least alpha, the most accurate mixture. Raises `UsageError` without examples
    of both kinds.
    """
    if not len(held) or not len(wrong):
        raise UsageError("a calibration needs attacked images that are right and clean images that are wrong.")
    if not 0 < beta < 100:
        raise UsageError(f"beta, a share in percent, must lie between 0 and 100, got {beta}.")
    held, wrong = held.double(), wrong.double()
    ss, cs, ps = grid or default_grid()
    raw = _cutoff(_margins(held), beta)
    found = []
    for s in ss:
        for c in cs:
            for p in ps:
                cutoff = _cutoff(_margins(sharpened(held, s, c, p, k)), beta)
                errors = float((_margins(sharpened(wrong, s, c, p, k)) >= cutoff).double().mean())
                found.append(Calibration(s, c, p, 1 / (1 + cutoff), 1 / (1 + raw), errors))
    return min(found, key=lambda point: (point.confident_errors, point.alpha))


def _margins(z: Tensor) -> Tensor:
    top = z.softmax(1).topk(2, 1).values
    return top[:, 0] - top[:, 1]


def _cutoff(margins: Tensor, beta: float) -> float:
    return min(float(margins.quantile(1 - beta / 100)), math.nextafter(1, 0))

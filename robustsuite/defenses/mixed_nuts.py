"""MixedNUTS: a training-free mixture of an accurate and a robust network."""

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from robustsuite.defenses.base import WrapMethod
from robustsuite.errors import UsageError
from robustsuite.models.averaged import plain_network
from robustsuite.models.bpda import around, check_surrogate
from robustsuite.models.classifier import Classifier
from robustsuite.models.companion import load_companion, pin
from robustsuite.models.nonlinear import Grid, NonlinearMixture, calibrate
from robustsuite.registry import register_defense


@register_defense("mixed_nuts", kind="wrap", paper="Bai et al. 2024, arXiv:2402.02263", cost="2 passes")
@dataclass(frozen=True)
class MixedNUTS(WrapMethod):
    """Mix the model, robust, with the network ``standard``, accurate, after a nonlinear map of the robust logits.

    Bai, Zhou, Patel, Sojoudi, "MixedNUTS: Training-Free Accuracy-Robustness Balance via Nonlinearly Mixed Classifiers"
    (TMLR 2024). ``standard`` is a checkpoint with a sidecar or ``py:file.py:factory`` (empty: the model itself), and
    ``standard_sha256`` is filled in. ``s``, ``c``, ``p`` are scale, bias and power of the map (`sharpened`, with the
    ``k`` largest logits normalised), ``alpha`` the robust network's weight; the defaults are the paper's for CIFAR-10,
    `calibrated` finds those of other networks. ``standard_map``: ``softmax`` (the paper) or ``hardmax`` (the released
    code). ``surrogate``: ``soft``, the gradient of a mixture that largely leaves the map out, with the weight
    ``surrogate_alpha`` (the paper's adaptive attack); or ``exact``. Evaluate both; the lower accuracy counts.
    """

    standard: str = ""
    s: float = 5.0
    c: float = -1.1
    p: float = 4.0
    alpha: float = 0.99875
    k: int = 250
    standard_map: str = "softmax"
    surrogate: str = "soft"
    surrogate_alpha: float = 0.9
    standard_sha256: str = ""

    def __post_init__(self) -> None:
        for name, value in (("alpha", self.alpha), ("surrogate_alpha", self.surrogate_alpha)):
            if not 0 <= value <= 1:
                raise UsageError(f"{name}, a weight, must lie in [0,1], got {value}.")
        if self.s <= 0 or self.p <= 0 or self.k < 2:
            raise UsageError(f"mixed_nuts needs s > 0, p > 0 and k >= 2, got {self.s}, {self.p} and {self.k}.")
        if self.standard_map not in ("softmax", "hardmax"):
            raise UsageError(f"standard_map must be softmax or hardmax, got '{self.standard_map}'.")
        if self.surrogate == "identity":
            raise UsageError("mixed_nuts has no identity to put in its place; surrogate must be soft or exact.")
        check_surrogate(self.surrogate, soft=True)
        object.__setattr__(self, "standard_sha256", pin(self.standard, self.standard_sha256))

    def wrap(self, model: Classifier) -> Classifier:
        """A plain classifier of both networks; raises `InputError` as `load_companion` does."""
        plain_network(model)
        standard = load_companion(self.standard, model) if self.standard else model
        soft = self.surrogate == "soft"
        module = NonlinearMixture(
            standard.module,
            model.module,
            s=self.s,
            c=self.c,
            p=self.p,
            alpha=self.alpha,
            k=self.k,
            hard=self.standard_map == "hardmax",
            surrogate_alpha=self.surrogate_alpha if soft else None,
        )
        return around(model, module, "surrogate" if soft else "full")

    def calibrated(
        self, model: Classifier, x: Tensor, y: Tensor, x_adv: Tensor, *, beta: float = 98.5, grid: Grid | None = None
    ) -> Self:
        """The same with s, c, p and both weights fitted to the robust ``model``; write its fields into a sidecar.

        ``x_adv`` ``[N,C,H,W]`` are the images ``x`` as a strong attack on ``model`` left them. Of those that it still
        gets right, ``beta`` percent keep their answer against any accurate network. Raises `UsageError` where no
        attacked image is right, or no clean one wrong.
        """
        clean, attacked = model.logits(x), model.logits(x_adv)
        found = calibrate(attacked[attacked.argmax(1) == y], clean[clean.argmax(1) != y], beta, grid, self.k)
        values = {"s": found.s, "c": found.c, "p": found.p}
        return replace(self, **values, alpha=found.alpha, surrogate_alpha=found.surrogate_alpha)

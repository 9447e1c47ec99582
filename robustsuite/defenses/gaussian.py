"""Gaussian noise augmentation: the base classifier of randomized smoothing."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustsuite.defenses.base import Step, StepMethod, Term
from robustsuite.defenses.losses import ce
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense


def by_sigma(data: str, rows: Mapping[float, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Published hyper-parameters as ``DATA-SIGMA``, with the sigma among them; those of the first also as ``DATA``."""
    found = {f"{data}-{sigma:g}": {"sigma": sigma, **params} for sigma, params in rows.items()}
    return {data: next(iter(found.values())), **found}


@register_defense(
    "gaussian",
    kind="step",
    paper="Cohen et al. 2019, arXiv:1902.02918",
    cost="m passes",
    defaults=by_sigma("cifar10", {0.25: {}, 0.12: {}, 0.5: {}, 1.0: {}})
    | by_sigma("mnist", {0.25: {}, 0.5: {}, 1.0: {}})
    | by_sigma("imagenet", {0.25: {}, 0.5: {}, 1.0: {}}),
)
@dataclass(frozen=True)
class Gaussian(StepMethod):
    """Cross-entropy on ``x + N(0, sigma^2)``, so that the network knows the noise it will be smoothed with.

    Cohen, Rosenfeld, Kolter, "Certified Adversarial Robustness via Randomized Smoothing" (ICML 2019), section 4. The
    noisy image is not clipped to [0,1]: the smoothed classifier does not clip either. `sigma` is in pixel units; the
    paper uses 0.12, 0.25, 0.5 and 1. `m`: draws of the noise for every example and step, 1 in the paper; all of them go
    through the network in one batch, and the loss is their mean.
    """

    sigma: float = 0.25
    m: int = 1
    # Accuracy on clean images does not rank networks that are made for noise, so the last epoch is taken.
    select: ClassVar = "last"

    def __post_init__(self) -> None:
        check_noise("gaussian", self.sigma, self.m)
        together(self, self.m)

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """``noisy``, ``noisy1``, ...: the draws of the noise for every example and step."""
        return noisy_views(step.x, draw_noise(step, self.sigma, self.m))

    def terms(self, step: Step) -> Mapping[str, Term]:
        """``CE(f(x + noise), y)``, the mean over the draws."""
        return {"ce_noisy": Term(mean_ce(step, self.m))}


def check_noise(method: str, sigma: float, m: int) -> None:
    """Raise `UsageError` unless sigma > 0 and m >= 1."""
    if not 0 < sigma < math.inf:
        raise UsageError(
            f"{method} needs sigma > 0, got {sigma}: without noise there is nothing to smooth with. "
            "CIFAR-10 is usually smoothed with 0.25 or 0.5; give the sigma that will be certified with."
        )
    if m < 1:
        raise UsageError(f"{method} needs at least one draw of the noise for every example, got m={m}.")


def together(method: StepMethod, m: int) -> None:
    """Let ``m`` noisy views share one batch of the network, as every published code has it."""
    if m > 1:
        object.__setattr__(method, "joint", view_names(m))


def view_names(m: int, stem: str = "noisy") -> tuple[str, ...]:
    """``noisy``, ``noisy1``, ``noisy2``, ..."""
    return (stem, *(f"{stem}{draw}" for draw in range(1, m)))


def draw_noise(step: Step, sigma: float, m: int, first: int = 0) -> list[Tensor]:
    """``m`` draws of ``N(0, sigma^2)`` shaped like the images, of the stream that all methods for smoothing share."""
    stream = step.noise.child("gaussian")
    return [sigma * stream.normal(step.x.shape[1:], first + draw) for draw in range(m)]


def noisy_views(x: Tensor, noise: list[Tensor], stem: str = "noisy") -> dict[str, Tensor]:
    """``x`` plus each draw of the noise, by the names of `view_names`."""
    return {name: x + draw for name, draw in zip(view_names(len(noise), stem), noise, strict=True)}


def noisy_logits(step: Step, m: int) -> list[Tensor]:
    """Logits ``[B,K]`` of each of the ``m`` noisy views."""
    return [step.logits(name) for name in view_names(m)]


def mean_ce(step: Step, m: int) -> Tensor:
    """Cross-entropy ``[B]`` of the noisy views to the step's labels, the mean over the draws."""
    return torch.stack([ce(logits, step.q) for logits in noisy_logits(step, m)]).mean(0)

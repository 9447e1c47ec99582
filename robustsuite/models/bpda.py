"""Backward pass differentiable approximation: a transformation goes forward, and a substitute for it backward."""

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from robustsuite.errors import ContractError, UsageError
from robustsuite.models.averaged import plain_network
from robustsuite.models.classifier import Classifier, Facts

Differentiable = Literal["full", "surrogate", "none"]
_WORST = ("full", "surrogate", "none")


class BPDA(nn.Module):
    """``transform(x)``, bit for bit, with the gradient of ``substitute(x)`` (Athalye, Carlini, Wagner, ICML 2018).

    Raises `ContractError` when the two have different shapes.
    """

    def __init__(self, transform: nn.Module, substitute: nn.Module) -> None:
        super().__init__()
        self.transform, self.substitute = transform, substitute

    def forward(self, x: Tensor) -> Tensor:
        """What ``transform`` returns; the substitute is run only where a gradient may be asked for."""
        if not (torch.is_grad_enabled() and x.requires_grad):
            return self.transform(x)
        with torch.no_grad():
            real = self.transform(x)
        return substituted(real, self.substitute(x))


def substituted(real: Tensor, substitute: Tensor) -> Tensor:
    """The values of ``real`` with the gradient of ``substitute``."""
    if real.shape != substitute.shape:
        raise ContractError(
            f"a substitute must have the shape of what it stands for, {list(real.shape)}, not {list(substitute.shape)}."
        )
    return cast(Tensor, _Substituted.apply(real.detach(), substitute))


class _Substituted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, real: Tensor, substitute: Tensor) -> Tensor:
        return real.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, grads[0]


class Transformed(nn.Module):
    """``network(front(x))``."""

    def __init__(self, front: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.front, self.network = front, network

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N,K]``."""
        return self.network(self.front(x))


def check_surrogate(surrogate: str, *, soft: bool) -> None:
    """Raise `UsageError` unless ``surrogate`` is identity, exact or, where there is such a version, soft."""
    known = ("identity", "soft", "exact") if soft else ("identity", "exact")
    if surrogate not in known:
        raise UsageError(f"surrogate, what the gradient goes through, must be {' or '.join(known)}, got '{surrogate}'.")


def transformed(
    model: Classifier,
    transform: nn.Module,
    surrogate: str,
    *,
    soft: nn.Module | None = None,
    exact: Differentiable = "full",
) -> Classifier:
    """``model`` behind ``transform``, with the gradient of ``surrogate``: identity, ``soft``, or the exact one.

    ``exact`` says what the transformation's own gradient is worth: ``none`` for one that is constant in pieces. Passes
    are counted on ``model``. Raises `UsageError` when ``model`` is wrapped already.
    """
    plain_network(model)
    check_surrogate(surrogate, soft=soft is not None)
    front, fact = transform, exact
    if surrogate != "exact":
        front, fact = BPDA(transform, soft if surrogate == "soft" and soft is not None else nn.Identity()), "surrogate"
    return around(model, Transformed(front, model.module), fact)


def around(model: Classifier, module: nn.Module, differentiable: Differentiable) -> Classifier:
    """A plain classifier of ``module``, which has ``model`` inside: no better differentiable, and as random."""
    worse = max(_WORST.index(differentiable), _WORST.index(model.facts.differentiable))
    made = Classifier(
        module,
        num_classes=model.num_classes,
        input_shape=model.input_shape,
        device=model.device,
        facts=Facts(model.facts.randomized, cast(Differentiable, _WORST[worse])),
    )
    made.passes = model.passes
    return made

"""What the suite sees of a model: float32 logits in eval mode, input gradients, counters, declared facts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustsuite.errors import ContractError
from robustsuite.models.strided import Strided
from robustsuite.noise import ExampleNoise, Noise

# A float32 network answers a little differently at another batch shape or on another device. A break closer to the
# boundary than this share of the largest logit could not be re-checked by a stranger, so it does not count as one.
MARGIN_SLACK = 2e-6


def margins(logits: Tensor, y: Tensor) -> Tensor:
    """Logit of the label minus the largest other logit, ``[N]``; positive where the model is right."""
    label = logits.gather(1, y.view(-1, 1))
    others = logits.scatter(1, y.view(-1, 1), float("-inf")).amax(1)
    return label.squeeze(1) - others


def fooled(logits: Tensor, y: Tensor) -> Tensor:
    """Whether each row is misclassified by more than rounding can explain, bool ``[N]``; never for NaN logits."""
    return margins(logits, y) < -MARGIN_SLACK * logits.abs().amax(1)


@dataclass(frozen=True)
class Facts:
    """What a model declares about itself; `evaluation.checks` tests it, nothing believes it."""

    randomized: bool = False
    differentiable: Literal["full", "surrogate", "none"] = "full"


@dataclass
class Passes:
    """Example-forwards and example-backwards that the model has really made, padding included."""

    forward: int = 0
    backward: int = 0


class Classifier:
    """A module as the suite uses it: ``x`` float32 ``[N,C,H,W]`` in [0,1] to float32 logits ``[N,K]``.

    The module is put into eval mode and its parameters stop requiring gradients. TF32 and autocast are off for every
    pass, because verdicts are made here. Raises `ContractError` when the output is not a ``[N,K]`` float tensor with
    K >= 2. `per_decision` and `per_evaluation` say how many passes of the network one verdict and one evaluation by
    an attack cost for each example: more than one for classifiers that sample.
    """

    per_decision: int = 1
    per_evaluation: int = 1

    def __init__(
        self,
        module: nn.Module,
        *,
        num_classes: int,
        input_shape: tuple[int, ...],
        device: str | torch.device = "cpu",
        facts: Facts = Facts(),
    ) -> None:
        self.module = module.to(device).eval().requires_grad_(False)
        self.num_classes = num_classes
        self.input_shape = tuple(input_shape)
        self.device = torch.device(device)
        self.facts = facts
        self.passes = Passes()
        self._faster = Strided() if self.device.type == "cpu" else nullcontext()

    def restart(self, noise: Noise) -> None:
        """Key what follows anew: for networks that draw as they predict; others draw nothing."""
        del noise

    def logits(self, x: Tensor) -> Tensor:
        """Logits ``[N,K]`` without a graph."""
        with torch.no_grad():
            return self._forward(x)

    def gradient(self, x: Tensor, losses: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Logits ``[N,K]`` and the gradient at ``x`` of the sum of ``losses(logits)`` (per-example losses ``[N]``).

        The sum keeps rows apart: row i of the gradient is that of loss i. No parameter gradient is computed. A
        classifier that draws may call ``losses`` several times; both answers are then means over its draws.
        """
        leaf = x.detach().requires_grad_(True)
        with torch.enable_grad(), exact_arithmetic():
            with self._faster:
                logits = self._forward(leaf)
            (grad,) = torch.autograd.grad(losses(logits).sum(), leaf)
        self.passes.backward += x.shape[0]
        return logits.detach(), grad.contiguous()  # autograd may hand out an expanded view

    def loss_gradient(self, x: Tensor, losses: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """`gradient`, and before it the losses themselves, ``[N]`` without a graph: the mean where there are draws."""
        values: list[Tensor] = []

        def noted(logits: Tensor) -> Tensor:
            value = losses(logits)
            values.append(value.detach())
            return value

        logits, grad = self.gradient(x, noted)
        return values[0] if len(values) == 1 else torch.stack(values).mean(0), logits, grad

    def decide(self, x: Tensor, noise: ExampleNoise) -> tuple[Tensor, Tensor]:
        """The verdict on ``x``: predicted label int64 ``[N]`` (-1 abstains) and logits ``[N,K]``.

        ``noise`` is for classifiers that sample (smoothing); a plain network ignores it.
        """
        del noise
        logits = self.logits(x)
        return logits.argmax(1), logits

    def _forward(self, x: Tensor) -> Tensor:
        self.passes.forward += x.shape[0]
        with torch.autocast(self.device.type, enabled=False), exact_arithmetic():
            out = self.module(x)
        if not isinstance(out, Tensor) or out.ndim != 2 or out.shape[0] != x.shape[0] or not out.is_floating_point():
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ContractError(
                f"the model must return float logits of shape [{x.shape[0]}, K] for {x.shape[0]} images, got {got}. "
                "Wrap it in a module that returns the logits alone."
            )
        if out.shape[1] != self.num_classes:
            raise ContractError(
                f"the model returns {out.shape[1]} logits, but {self.num_classes} classes are declared. "
                "Give the architecture the right number of classes (-M num_classes=...)."
            )
        return out.float()


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Full float32 inside, whatever global switches say, and these as they were after: verdicts are made here.

    Off are TF32, cudnn's choice of algorithms by timing, and bfloat16 inside of float32 products, which
    `torch.set_float32_matmul_precision` allows on a CPU too.
    """
    precision, cuda = _overall(), torch.cuda.is_initialized()
    if precision == "highest" and not cuda and all(map(_plain, _PARTS[:1])):
        yield  # nothing to switch (the overall setting covers all but convolutions), and this is an inner loop
        return
    if precision not in (None, "highest"):
        torch.set_float32_matmul_precision("highest")
    parts = {part: part.fp32_precision for part in _PARTS if not _plain(part)}
    try:
        for part in parts:
            part.fp32_precision = "ieee"
        with _deterministic() if cuda else nullcontext():
            yield
    finally:
        for part, value in parts.items():
            part.fp32_precision = value
        if precision not in (None, "highest"):
            torch.set_float32_matmul_precision(precision)


def _plain(part: Any) -> bool:
    """Whether a backend multiplies float32 as float32."""
    return part.fp32_precision not in ("bf16", "tf32")


# Before torch 2.9 single backends cannot be told anything.
_PARTS: list[Any] = [
    part
    for backend, name in (("mkldnn", "conv"), ("mkldnn", "matmul"), ("cuda", "matmul"))
    if hasattr(part := getattr(getattr(torch.backends, backend), name, None), "fp32_precision")
]


def _overall() -> str | None:
    """torch's one setting for all; None where single backends have been set, which it then refuses to summarise."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _deterministic() -> Any:
    cudnn = torch.backends.cudnn
    return cudnn.flags(enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False)

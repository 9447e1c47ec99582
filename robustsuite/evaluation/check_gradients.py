"""Checks of a model's gradients: are there any, are they those of the function, does forward make its own?"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from robustsuite.evaluation.check_sample import Sample, flag
from robustsuite.models.classifier import margins
from robustsuite.results.schema import Flag


def gradients(s: Sample) -> list[Flag]:
    """Zero and NaN gradients of cross-entropy and margin, and finite differences against autograd."""
    try:
        _, grad = s.model.gradient(s.x, lambda z: F.cross_entropy(z, s.y, reduction="none"))
        s.redraw()
        _, slope = s.model.gradient(s.x, lambda z: margins(z, s.y))
    except RuntimeError as error:
        evidence = f"no gradient reaches the input ({str(error).splitlines()[0]})"
        return [flag("zero_gradients", True, evidence, "Declare a surrogate, or rely on score-based attacks.")]
    n = len(s.y)
    nan = int((~torch.isfinite(grad)).flatten(1).any(1).sum())
    blind, dead = ((g.flatten(1) == 0).all(1) for g in (grad, slope))
    zero, saturated = int(dead.sum()), int((blind & ~dead).sum())
    return [
        flag(
            "nan_gradients",
            nan > 0,
            f"cross-entropy gradients are not finite on {nan} of {n} images",
            "Gradient attacks fail there: look for square roots and logs of zero.",
        ),
        flag(
            "zero_gradients",
            zero > 0.01 * n,
            f"the margin's gradients are exactly zero on {zero} of {n} images",
            "No loss gives gradient attacks a direction there: score-based attacks or a surrogate are needed.",
        ),
        flag(
            "saturated_gradients",
            saturated > 0.01 * n,
            f"cross-entropy gradients are exactly zero on {saturated} of {n} images where the margin's are not",
            "The logits are so large that cross-entropy saturates: margin and DLR attacks are needed.",
        ),
        _finite_differences(s, slope.nan_to_num(0.0)),
    ]


def _finite_differences(s: Sample, slope: Tensor) -> Flag:
    """Directional derivative of the margin along its own gradient and a keyed direction mixed in.

    Measured with a central difference over a step that is large enough for float32 and small against the data, and
    with the same draws where the model is random. A network that is piecewise linear may have a kink in between, so
    the median decides.
    """
    signs = s.noise("direction").signs(s.x.shape[1:])
    direction = slope.sign() + 0.5 * signs
    step = 1e-3
    sides: list[Tensor] = []
    for sign in (1, -1):
        s.redraw()
        sides.append(margins(s.model.logits(s.x + sign * step * direction), s.y))
    measured = ((sides[0] - sides[1]) / (2 * step)).double()
    claimed = (slope.double() * direction).flatten(1).sum(1)
    scale = torch.maximum(measured.abs(), claimed.abs())
    usable = scale > 1e-4 * (1 + s.logits.abs().amax(1).double())
    if int(usable.sum()) < max(min(4, len(s.y)), len(s.y) // 8):
        flat = "the margin is flat along its gradient on almost every image"
        return flag("gradient_mismatch", True, flat, "A sign of quantised inputs or saturation.")
    ratio = ((measured - claimed).abs() / scale)[usable]
    median = float(ratio.median())
    return flag(
        "gradient_mismatch",
        median > 0.5,
        f"finite differences and autograd differ by {median:.0%} (median over {int(usable.sum())} images)",
        "Gradients are masked or substituted: a backward-pass substitute or score-based attacks are needed.",
    )


def quantised_input(s: Sample) -> Flag:
    """A model that rounds its input answers bit for bit the same on a slightly other image.

    Images on the model's own grid may move by half a cell: 1e-4 is far below that of 8-bit pixels. Images on the edge
    between two cells are first moved off it, and then so little that hardly a pixel crosses the next edge.
    """
    moved = s.nudged("quantised", 0.01)
    same = max(_unchanged(s, s.x, s.logits, 1e-4), _unchanged(s, moved, s.model.logits(moved), 1e-6))
    return flag(
        "quantised_input",
        same > len(s.y) / 2,
        f"logits stay bit for bit the same on {same} of {len(s.y)} images when every pixel moves a little",
        "Inputs are rounded, so that true gradients are zero: attack through a backward-pass substitute.",
    )


def _unchanged(s: Sample, x: Tensor, logits: Tensor, size: float) -> int:
    """Images whose logits a keyed move of every pixel by ``size`` leaves as they are."""
    nudge = size * s.noise("rounding").signs(x.shape[1:])
    return int((s.model.logits((x + nudge).clamp(0, 1)) == logits).all(1).sum())


class _GradientWatch(TorchFunctionMode):
    """Names what is called with gradients switched on, in this thread and inside the context alone."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.is_grad_enabled():
            self.seen.add(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))


def forward_effects(s: Sample) -> list[Flag]:
    """A prediction that switches gradients on adapts to its input; one that writes weights adapts to its past."""
    before = _weights(s.model.module)
    with torch.no_grad(), _GradientWatch() as watch:
        s.model.logits(s.x)
    changed = [name for name, value in _weights(s.model.module).items() if value != before.get(name)]
    passes = sorted(watch.seen & {"grad", "backward"})
    evidence = f"forward computes with gradients of its own ({', '.join(passes) or 'gradient mode is switched on'})"
    return [
        flag(
            "test_time_optimisation",
            bool(watch.seen),
            evidence if watch.seen else "forward computes no gradients of its own",
            "Gradients through such a defense mislead: attack the network without it and transfer, or unroll it.",
        ),
        flag(
            "stateful",
            bool(changed),
            f"forward writes {', '.join(changed[:5])}" if changed else "forward leaves weights and statistics alone",
            "A prediction must not depend on what was predicted before: freeze weights and statistics.",
        ),
    ]


def _weights(module: nn.Module) -> dict[str, str]:
    """A checksum for each floating-point parameter and buffer, as text so that NaN equals itself."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {k: repr(float(t.detach().double().sum())) for k, t in tensors.items() if t.is_floating_point()}

"""VNN-LIB, the language in which verifiers are asked about a network, for one question: can this image be fooled?

The subset of VNN-COMP 2021 and later (vnnlib.org): ``X_i`` are the inputs in row-major order, ``Y_j`` the logits.
"""

import re
from decimal import Decimal

import torch
from torch import Tensor

from robustsuite.bounds.region import above, below, region

_VALUE = re.compile(r"\(\s*X_(\d+)\s+([^\s()]+)\s*\)")


def float32_box(x: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """The Linf ball around ``x`` ``[N,...]`` within [0,1], rounded outwards to float32 numbers.

    Verifiers read decimals into float32, to the nearest: ends that are float32 numbers already lose nothing there. It
    holds everything that `ThreatModel.contains` lets pass, its slack for rounding included.
    """
    box = region(x, radius, "Linf").box
    return below(box.lower, torch.float32), above(box.upper, torch.float32)


def robustness_property(lower: Tensor, upper: Tensor, label: int, classes: int) -> str:
    """The question whether some image in the box (of any shape, one image) has a logit at least that of ``label``.

    ``unsat`` is the proof that it has none. The ends are written to the last digit, so that the box that is read is the
    box that was given.
    """
    ends = list(zip(_decimals(lower), _decimals(upper), strict=True))
    lines = [f"(declare-const X_{i} Real)" for i in range(len(ends))]
    lines += [f"(declare-const Y_{j} Real)" for j in range(classes)]
    for i, (low, high) in enumerate(ends):
        lines += [f"(assert (>= X_{i} {low}))", f"(assert (<= X_{i} {high}))"]
    others = "".join(f"(and (>= Y_{j} Y_{label}))" for j in range(classes) if j != label)
    return "\n".join([*lines, f"(assert (or {others}))", ""])


def counterexample(text: str, shape: tuple[int, ...]) -> Tensor | None:
    """The input in an answer, ``((X_0 0.5) (X_1 0.25) ... (Y_0 ...))``, float64 of ``shape``; None where not whole."""
    size = torch.Size(shape).numel()
    found = {int(index): value for index, value in _VALUE.findall(text)}
    if sorted(found) != list(range(size)):
        return None
    try:
        values = torch.tensor([float(found[i]) for i in range(size)], dtype=torch.float64)
    except ValueError:
        return None
    return values.view(shape) if bool(torch.isfinite(values).all()) else None


def _decimals(values: Tensor) -> list[str]:
    return [format(Decimal(value), "f") for value in values.flatten().tolist()]

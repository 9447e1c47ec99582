"""One step of a backward pass through what is not affine: activations between two lines, and maxima over windows."""

import torch
from torch import Tensor

from robustsuite.bounds.ascent import Choices
from robustsuite.bounds.pooling import PoolLines
from robustsuite.bounds.relaxation import Lines
from robustsuite.bounds.rounding import UNIT_FLOAT32
from robustsuite.bounds.rows import Rows, mixed, total

_SLOPED = 8  # roundings of a coefficient by a slope, with room


def through_lines(rows: Rows, lines: Lines, name: str, choices: Choices | None) -> tuple[Rows, Tensor]:
    """Rows over an activation's result as rows over its argument, and the constants ``[M]`` that this adds.

    A positive coefficient takes the lower line, a negative one the upper. A unit that is assumed to be active or
    inactive (`Choices.splits`) is exact, and its multiplier enters with the sign of the assumption.
    """
    if choices is None:
        return _as_they_are(rows, lines)
    lower, upper, offset = rows.at(lines.lower_slope), rows.at(lines.upper_slope), rows.at(lines.upper_offset)
    below = None if lines.level else rows.at(lines.lower_offset)
    split = beta = None
    if choices is not None and lines.free is not None:
        chosen = choices.slopes.setdefault(name, lower.expand_as(rows.coeff))
        choices.least[name] = lines.least
        lower = torch.where(rows.at(lines.free), chosen, lower)
        split, beta = choices.splits.get(name), choices.betas.get(name)
        if choices.met is not None:
            choices.met[name] = rows.coeff
    if split is not None:
        slope = (split > 0) + (split < 0) * lines.least
        lower, upper = torch.where(split == 0, lower, slope), torch.where(split == 0, upper, slope)
        # What rounding may add is all that is left.
        offset = torch.where(split == 0, offset, torch.zeros_like(offset) if below is None else -below)
    positive, negative = rows.signs()
    constant = negative * offset
    constant = total(constant if below is None else torch.addcmul(constant, positive, below))
    coeff = torch.addcmul(positive * lower, negative, upper)
    if split is not None and beta is not None:
        coeff = coeff - beta * split
    return rows.over(coeff), constant


def _as_they_are(rows: Rows, lines: Lines) -> tuple[Rows, Tensor]:
    """`through_lines` where nothing is chosen."""
    positive, negative = rows.signs()
    constant = negative * rows.along(lines.upper_offset)
    if not lines.level:
        constant = torch.addcmul(constant, positive, rows.along(lines.lower_offset))
    constant = rows.total(constant)
    return rows.over(mixed(positive, negative, rows.along(lines.lower_slope), rows.along(lines.upper_slope))), constant


def through_pool(rows: Rows, lines: PoolLines, shape: torch.Size) -> tuple[Rows, Tensor]:
    """Rows over maxima as rows over what they are taken of (of ``shape``), and the constants ``[M]`` that this adds."""
    rows = rows.dense()
    flat = Rows(rows.owner, rows.coeff.flatten(2))
    positive, negative = flat.signs()
    sloped = negative * flat.at(lines.upper_slope.flatten(2))
    # An element may be the one chosen in many windows; in float64 their sum is rounded once.
    canvas = torch.zeros(len(rows.owner), shape[0], shape[1:].numel(), dtype=torch.float64, device=rows.coeff.device)
    for index, part in ((lines.lower_index, positive), (lines.upper_index, sloped)):
        canvas = canvas.scatter_add(2, flat.at(index.flatten(2)).expand_as(part), part.double())
    constant = total(negative * flat.at(lines.upper_offset.flatten(2)))
    return rows.onto(canvas.to(rows.coeff.dtype).view(-1, *shape)), constant


def cancelled(one: Rows, other: Rows, magnitude: Tensor) -> Tensor | float:
    """What the roundings of two coefficients by slopes may come to (``[M]``), where they meet and may cancel.

    ``magnitude`` ``[N or 1, *shape]`` bounds what they are coefficients of. Their sum is charged in proportion to
    itself only, further up.
    """
    if one.coeff.dtype != torch.float32:
        return 0.0
    one, other = (one, other) if one.alike(other) else (one.dense(), other.dense())
    both = one.over(one.coeff.detach().abs().minimum(other.coeff.detach().abs()))
    return total(both.coeff * both.at(magnitude)) * (2 * _SLOPED * UNIT_FLOAT32)

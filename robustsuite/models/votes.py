"""Votes of a classifier under noise: every pass has the same number of rows, whoever they belong to."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustsuite.errors import ContractError
from robustsuite.models.classifier import Classifier
from robustsuite.models.smoothing_noises import GAUSSIAN, SmoothingNoise
from robustsuite.noise import ExampleNoise

Ints = NDArray[np.int64]
_CHECKED = 8  # rows of the check at the door


def answers(
    base: Classifier, x: Tensor, noise: ExampleNoise, sigma: float, example: Tensor, draw: Tensor, kind: SmoothingNoise
) -> Tensor:
    """The class of ``x[example] + noise`` for every (example, draw), int64 ``[rows]``; -1 where a logit is NaN."""
    keyed = ExampleNoise(noise.noise, noise.ids.to(x.device)[example])
    logits = base.logits(torch.add(x[example], kind.sample(keyed, x.shape[1:], draw), alpha=sigma))
    top, answer = logits.max(1)  # NaN is the largest of all
    return answer.masked_fill_(top.isnan(), -1)


def count_votes(
    base: Classifier,
    x: Tensor,
    noise: ExampleNoise,
    sigma: float,
    n: int,
    batch: int,
    *,
    kind: SmoothingNoise = GAUSSIAN,
) -> Tensor:
    """How often the base classifier answers each class on ``x`` plus noise of size ``sigma``, int64 ``[N,K]``.

    Sample d of an example depends on its id and d alone. Samples of all examples share chunks of exactly ``batch``
    rows (the last one is filled up), so that votes depend neither on how examples are batched nor, but for the last
    bits that another chunk size changes in float kernels, on ``batch``. NaN logits vote for no class.
    """
    rows, cells = x.shape[0] * n, x.shape[0] * (base.num_classes + 1)  # the first cell of an example is for NaN
    counts = torch.zeros(cells, dtype=torch.int64, device=x.device)
    for start in range(0, rows, batch):
        flat = torch.arange(start, start + batch, device=x.device).clamp(max=rows - 1)
        example = flat // n
        answer = answers(base, x, noise, sigma, example, flat % n, kind)
        cell = example * (base.num_classes + 1) + answer + 1
        counts += torch.bincount(cell[: rows - start], minlength=cells)
    return counts.view(x.shape[0], -1)[:, 1:]


def poll(
    base: Classifier,
    x: Tensor,
    noise: ExampleNoise,
    sigma: float,
    chosen: Tensor,
    times: Ints,
    stop: Callable[[Ints, int, Ints], NDArray[np.bool_]],
    batch: int,
    *,
    kind: SmoothingNoise = GAUSSIAN,
) -> Ints:
    """Count the votes for one class an example until ``stop`` has heard enough; the samples used, int64 ``[N]``.

    ``chosen`` int64 ``[N]`` are the classes, ``times`` the ascending sample counts at which to look. ``stop(examples,
    look, votes)`` is told the votes of some examples among their first ``times[look]`` samples and says whose count
    ends there; the last look ends every one. Rows come from one queue over the examples: first what each needs for its
    next look, then samples ahead of it, so that early ends do not shrink a batch and no outcome depends on it.
    """
    examples, looks = x.shape[0], len(times)
    hits = np.zeros((examples, looks), np.int64)  # those between a look and the one before
    taken, look = np.zeros(examples, np.int64), np.zeros(examples, np.int64)
    active = np.arange(examples)
    while len(active):
        example, draw = _rows(active, taken, times[look[active]], int(times[-1]), batch)
        padding = batch - len(example)
        rows = torch.from_numpy(np.pad(np.stack([example, draw]), ((0, 0), (0, padding)), mode="edge")).to(x.device)
        answer = answers(base, x, noise, sigma, rows[0], rows[1], kind)
        hit = (answer == chosen[rows[0]])[: len(example)].cpu().numpy()
        np.add.at(hits, (example[hit], np.searchsorted(times, draw[hit], side="right")), 1)
        taken += np.bincount(example, minlength=examples)
        active = _judge(active, taken, look, times, hits, stop)
    return times[look]


def _rows(active: Ints, taken: Ints, wanted: Ints, most: int, batch: int) -> tuple[Ints, Ints]:
    """Up to ``batch`` rows as (example, draw): each example's samples before ``wanted``, then those up to ``most``."""
    start = np.concatenate([taken[active], np.maximum(taken[active], wanted)])
    end = np.concatenate([wanted, np.full_like(active, most)])
    room = np.maximum(end - start, 0)
    room = np.diff(np.minimum(np.cumsum(room), batch), prepend=0)
    first = np.repeat(start - np.cumsum(room) + room, room)
    return np.repeat(np.concatenate([active, active]), room), first + np.arange(room.sum())


def _judge(
    active: Ints, taken: Ints, look: Ints, times: Ints, hits: Ints, stop: Callable[..., NDArray[np.bool_]]
) -> Ints:
    """Ask ``stop`` about every look that is complete, in order, and return who goes on."""
    ended = np.zeros(len(taken), bool)
    while len(ready := active[~ended[active] & (taken[active] >= times[look[active]])]):
        at = int(look[ready].min())
        ready = ready[look[ready] == at]
        enough = stop(ready, at, hits[ready, : at + 1].sum(1)) | (at == len(times) - 1)
        ended[ready[enough]] = True
        look[ready[~enough]] += 1
    return active[~ended[active]]


def check_independence(base: Classifier, x: Tensor) -> None:
    """Raise `ContractError` unless rows keep their logits whatever else is in the batch: votes must be independent.

    Two small passes of one shape: half of the rows are the same images, the others black, then grey.
    """
    rows = x[torch.arange(_CHECKED // 2, device=x.device) % x.shape[0]]
    one, two = (base.logits(torch.cat([rows, torch.full_like(rows, grey)]))[: len(rows)] for grey in (0.0, 0.5))
    if not torch.allclose(one, two, rtol=1e-3, atol=1e-4, equal_nan=True):
        gap = float((one - two).abs().max())
        raise ContractError(
            f"the network's logits of an image change by {gap:.2g} with the other images of its batch, or from pass to "
            "pass; smoothing counts votes that must be independent. Use stored statistics (eval mode), and no dropout."
        )

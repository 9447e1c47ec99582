"""Keyed samples of examples, and which decided examples a stage is to try all the same: the audit's."""

from collections.abc import Sequence

import numpy as np
import torch

from robustsuite.evaluation.protocol import Stage
from robustsuite.evaluation.stages import Bench
from robustsuite.noise import Noise

_SHARE, _LEAST = 0.05, 20


def sample(bench: Bench, among: np.ndarray, count: int, purpose: str) -> np.ndarray:
    """``count`` of the examples in ``among`` (bool ``[N]``), or all if fewer: those with the smallest keyed numbers."""
    chosen = np.zeros(len(among), bool)
    candidates = np.flatnonzero(among)
    ids = bench.data.ids[torch.from_numpy(candidates)]
    keys = Noise(bench.seed, purpose).at(ids).bits(1)[:, 0].numpy()
    chosen[candidates[np.lexsort((candidates, keys))[:count]]] = True
    return chosen


def audited(bench: Bench, decided: np.ndarray) -> np.ndarray:
    """5 % of the examples in ``decided`` (bool ``[N]``), at least 20."""
    return sample(bench, decided, max(_LEAST, round(_SHARE * int(decided.sum()))), "audit")


def auditing(stages: Sequence[Stage], suspicious: bool) -> list[Stage]:
    """The stages that audit: all certifiers, and all attacks but those of the tail.

    The tail costs more than the rest of the attacks together and seldom breaks what they leave: of a certificate that
    is not sound it shows nothing that they do not. It audits too where they may be blind, which is what a suspicion
    says, and where it is all there is.
    """
    blunt = suspicious or all(s.plan.tail for s in stages if s.attacks)
    return [s for s in stages if blunt or not (s.attacks and s.plan.tail)]

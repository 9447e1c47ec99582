"""The words against the published test vector, the tensor version, and a stream of their own for every key part."""

import numpy as np
import pytest
import torch
from scipy import stats

from robustsuite.models.wide_philox import philox64, words
from robustsuite.noise import Noise

LEAST_P = 1e-6
KNOWN = (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B)


def at(ids, seed=0, stage="wide"):
    return Noise(seed, stage).at(torch.as_tensor(ids))


def drawn(noise, count, draw=0):
    return torch.cat([part for _, part in words(noise, count, draw)])


def test_philox_known_answer():
    """Random123's kat_vectors for philox4x64 with ten rounds."""
    zero = torch.zeros(1, dtype=torch.int64)
    assert tuple(int(w) % 2**64 for w in philox64((zero, zero), 0)) == KNOWN


@pytest.mark.parametrize("stage", ["a", "b", "c", "d"])
def test_both_versions_give_the_same_words(stage):
    ids, draws = torch.tensor([5, 5, 5, 2**40, 7, 0, -3, 2**62]), torch.tensor([2, 3, 4, 0, 2**32 - 1, 0, 1, 2**31])
    noise = at(ids, stage=stage)
    key = noise.noise.key[0] | noise.noise.key[1] << 32
    block = torch.arange(4)
    expected = philox64((draws.view(-1, 1) * 4 + block + 1, ids.view(-1, 1)), key)
    assert torch.equal(drawn(noise, 30, draws), torch.stack(expected, 2).view(torch.int32).view(8, 32))


@pytest.mark.parametrize("count", [1, 8, 64, 3072])
def test_rows_depend_neither_on_each_other_nor_on_their_place(count):
    ids, draws = torch.tensor([0] * 30 + [1] * 30 + [9, 4, 9, 4]), torch.arange(64) % 31
    whole = drawn(at(ids), count, draws)
    assert whole.shape == (64, -(-count // 8) * 8)
    alone = [drawn(at(ids[i : i + 1]), count, int(draws[i])) for i in range(64)]
    assert torch.equal(whole, torch.cat(alone))
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn(at(ids[order]), count, draws[order]), whole[order])


def test_every_part_of_the_key_matters():
    base = drawn(at([5]), 64, 3)
    others = [(at([6]), 3), (at([5]), 4), (at([5], 1), 3), (at([5], stage="other"), 3), (at([5 + 2**32]), 3)]
    for noise, draw in others:
        assert int((drawn(noise, 64, draw) == base).sum()) == 0


def test_bits_are_fair_and_neighbours_unrelated():
    bits = drawn(at(torch.arange(500)), 400, torch.arange(500) % 7)
    flat = bits.flatten().numpy().view(np.uint32)
    for position in range(32):
        assert stats.binomtest(int(((flat >> position) & 1).sum()), len(flat)).pvalue > LEAST_P
    assert stats.chisquare(np.bincount(flat >> 24, minlength=256)).pvalue > LEAST_P
    unit = flat.astype(np.float64) / 2**32 - 0.5
    for lag in (1, 2, 4, 8, 200, 400):
        correlation = float(np.corrcoef(unit[:-lag], unit[lag:])[0, 1])
        assert abs(correlation) * np.sqrt(len(unit)) < 5

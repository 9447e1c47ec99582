"""Random words for smoothing, many and cheap: Philox4x64-10, which NumPy has compiled.

Keyed as all of the suite's noise and like it a pure function of key and counter (Salmon et al., SC 2011): nothing
depends on what was drawn before, on the batch, or on the device. Smoothing draws thousands of samples of every pixel,
and on a CPU a word costs a fifth of what it costs in `robustsuite.noise`.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustsuite.noise import ExampleNoise

_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_ROUNDS = 10
_LOW, _ALL = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
WORDS = 8
"""Words of 32 bits for every counter: rows are rounded up to a multiple."""
_CACHED = 1 << 17  # words at a time on a CPU, whose cache then holds them


def words(noise: ExampleNoise, count: int, draw: int | Tensor = 0) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the rows and their words of 32 random bits, int32 ``[rows, count]`` rounded up to a multiple of 8.

    ``draw``: an int or int64 ``[N]``, 0 <= draw < 2^32. Row i depends on ids[i], its draw and ``count`` alone. Rows of
    one example with consecutive draws are consecutive counters, and cheapest.
    """
    blocks = max(-(-count // WORDS), 1)
    draws = draw if isinstance(draw, Tensor) else torch.full_like(noise.ids, draw)
    low, high = noise.noise.key
    key = low | high << 32
    if noise.ids.device.type != "cpu":
        block = torch.arange(blocks, device=noise.ids.device)
        made = philox64((draws.view(-1, 1) * blocks + block + 1, noise.ids.view(-1, 1)), key)
        yield slice(0, len(draws)), torch.stack(made, 2).view(torch.int32).view(len(draws), -1)
        return
    yield from _compiled(noise.ids.numpy(), draws.numpy(), blocks, key)


def _compiled(
    ids: NDArray[np.int64], draws: NDArray[np.int64], blocks: int, key: int
) -> Iterator[tuple[slice, Tensor]]:
    generator = np.random.Philox(key=np.array([key, 0], np.uint64))
    state = generator.state
    state["buffer_pos"], counter = 4, state["state"]["counter"]  # nothing is left over
    first = np.stack([draws * blocks, ids], 1).view(np.uint64)
    apart = np.flatnonzero((np.diff(ids) != 0) | (np.diff(draws) != 1)) + 1
    step = max(_CACHED // (WORDS * blocks), 1)
    for start in range(0, len(ids), step):
        end = min(start + step, len(ids))
        edges = [start, *apart[(apart > start) & (apart < end)].tolist(), end]
        made = []
        for begin, stop in itertools.pairwise(edges):
            counter[:2] = first[begin]
            generator.state = state
            made.append(generator.random_raw((stop - begin) * blocks * 4))
        raw = made[0] if len(made) == 1 else np.concatenate(made)
        yield slice(start, end), torch.from_numpy(raw.view(np.int32)).view(end - start, -1)


def philox64(counter: tuple[Tensor, Tensor], key: int) -> tuple[Tensor, ...]:
    """Four int64 words for the counters ``(c0, c1, 0, 0)`` and the key ``(key, 0)``; the counters broadcast."""
    c0, c1 = torch.broadcast_tensors(*counter)
    c2 = c3 = torch.zeros_like(c0)
    k0, k1 = key, 0
    for _ in range(_ROUNDS):
        high0, high1 = _high(c0, _MULTIPLIERS[0]), _high(c2, _MULTIPLIERS[1])
        low0, low1 = c0 * _signed(_MULTIPLIERS[0]), c2 * _signed(_MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ _signed(k0), low1, high0 ^ c3 ^ _signed(k1), low0
        k0, k1 = (k0 + _WEYL[0]) & _ALL, (k1 + _WEYL[1]) & _ALL
    return c0, c1, c2, c3


def _high(a: Tensor, b: int) -> Tensor:
    """The upper 64 bits of an unsigned product, from four products of halves."""
    low, high = a & _LOW, _upper(a)
    first, second, third = low * (b & _LOW), low * (b >> 32), high * (b & _LOW)
    carry = _upper(_upper(first) + (second & _LOW) + (third & _LOW))
    return high * (b >> 32) + _upper(second) + _upper(third) + carry


def _upper(a: Tensor) -> Tensor:
    return (a >> 32) & _LOW


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value

"""Randomness keyed by (seed, stage, example, draw): the same numbers whatever the batch, order or device.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a pure
function of a 64-bit key (from seed and stage) and a 128-bit counter (element, draw, example). There is no state, so
nothing can depend on what was drawn before.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_CACHED = 1 << 14  # counters at a time on a CPU, whose cache then holds them


def philox(counter: tuple[Any, ...], key: tuple[int, int]) -> tuple[Any, ...]:
    """Four words of 32 random bits for every counter; the counters broadcast against each other.

    int64 tensors, or uint64 arrays: on a CPU, NumPy is quicker at so many small steps.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # The product wraps around at 64 bits, which keeps all its bits. Whatever lies above 32 bits, of the sign or of
        # a low word, is dropped once, before the next product.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = (p1 >> 32) ^ c1, (p0 >> 32) ^ c3
        c0 ^= k0
        c0 &= _MASK
        c2 ^= k1
        c2 &= _MASK
        c1, c3 = p1, p0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1 & _MASK, c2, c3 & _MASK


@dataclass(frozen=True)
class Noise:
    """The random numbers of one stage of a run; `at` binds it to examples."""

    seed: int
    stage: str

    @property
    def key(self) -> tuple[int, int]:
        """The 64-bit Philox key as two words."""
        digest = hashlib.blake2b(f"{self.seed}\0{self.stage}".encode(), digest_size=8).digest()
        return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")

    def child(self, name: str) -> "Noise":
        """An independent stream for a part of the stage."""
        return Noise(self.seed, f"{self.stage}/{name}")

    def at(self, ids: Tensor) -> "ExampleNoise":
        """Bind to examples: ``ids`` int64 ``[N]``, the examples' ids in their data set."""
        return ExampleNoise(self, ids)


@dataclass(frozen=True)
class ExampleNoise:
    """Random tensors with one row for each example; row i depends on ids[i] and the draw alone."""

    noise: Noise
    ids: Tensor

    def child(self, name: str) -> "ExampleNoise":
        """An independent stream for the same examples."""
        return ExampleNoise(self.noise.child(name), self.ids)

    def bits(self, count: int, draw: int | Tensor = 0) -> Tensor:
        """int64 ``[N, count]`` holding uniform 32-bit words. ``draw``: an int or int64 ``[N]``, 0 <= draw < 2^32."""
        out = torch.empty(self.ids.shape[0], (count + 3) // 4, 4, dtype=torch.int64, device=self.ids.device)
        for part, words in self._words(out.shape[1], draw):
            torch.stack(words, 2, out=out[part])
        return out.flatten(1)[:, :count]

    def order(self, draw: int = 0) -> Tensor:
        """Positions of the examples in a random order, int64 ``[N]``, by keys that ids and draw alone decide."""
        words = self.bits(2, draw)
        return (words[:, 0] << 31 | words[:, 1] >> 1).argsort(stable=True)

    def _words(self, blocks: int, draw: int | Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
        """Four words of every counter, each ``[rows, blocks]``, for some rows at a time."""
        rows, device = self.ids.shape[0], self.ids.device
        draws = draw if isinstance(draw, Tensor) else torch.full_like(self.ids, draw)
        counter = [draws.view(-1, 1), self.ids.view(-1, 1) & _MASK, (self.ids.view(-1, 1) >> 32) & _MASK]
        if device.type != "cpu":
            words = philox((torch.arange(blocks, device=device).view(1, -1), *counter), self.noise.key)
            yield slice(0, rows), [word.expand(rows, blocks) for word in words]
            return
        arrays = [part.numpy().astype(np.uint64) for part in counter]
        block, step = np.arange(blocks, dtype=np.uint64).reshape(1, -1), max(_CACHED // max(blocks, 1), 1)
        for start in range(0, rows, step):
            part = slice(start, start + step)
            words = philox((block, *(array[part] for array in arrays)), self.noise.key)
            yield part, [torch.from_numpy(word.astype(np.int64)).expand(-1, blocks) for word in words]

    def uniform(self, shape: Sequence[int], draw: int | Tensor = 0) -> Tensor:
        """float32 ``[N, *shape]``, uniform on [0,1) in steps of 2^-24: exact on every device."""
        bits = self.bits(math.prod(shape), draw) >> 8
        return (bits.float() * 2.0**-24).view(-1, *shape)

    def normal(self, shape: Sequence[int], draw: int | Tensor = 0) -> Tensor:
        """float32 ``[N, *shape]``, standard normal.

        Box-Muller in float64, rounded once, so that the last-bit differences of log and cos between devices and
        vector widths practically never reach the float32 result. 32-bit radii bound |z| by 6.7.
        """
        count = math.prod(shape)
        out = torch.empty(self.ids.shape[0], (count + 3) // 4, 4, device=self.ids.device)
        for part, words in self._words(out.shape[1], draw):
            for first in (0, 2):
                radius = words[first].double().add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
                angle = words[first + 1].double().add_(0.5).mul_(2 * math.pi * 2.0**-32)
                out[part, :, first] = radius * angle.cos()
                out[part, :, first + 1] = radius.mul_(angle.sin_())
        return out.flatten(1)[:, :count].contiguous().view(-1, *shape)

    def integers(self, high: int | Tensor, shape: Sequence[int] = (), draw: int | Tensor = 0) -> Tensor:
        """int64 ``[N, *shape]``, uniform on [0, high); ``high`` an int or a tensor that broadcasts, below 2^31.

        The multiply-shift map has a bias below high / 2^32.
        """
        bits = self.bits(max(math.prod(shape), 1), draw).view(-1, *shape)
        return (bits * high) >> 32

    def signs(self, shape: Sequence[int], draw: int | Tensor = 0) -> Tensor:
        """float32 ``[N, *shape]`` of -1 and +1 with equal probability."""
        bits = self.bits(math.prod(shape), draw) >> 31
        return (2.0 * bits.float() - 1).view(-1, *shape)


def generator_seed(seed: int, purpose: str) -> int:
    """A 63-bit seed for a library that insists on a generator of its own, derived from (seed, purpose)."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{purpose}".encode(), digest_size=8).digest(), "little") >> 1


def fork_global(seed: int, purpose: str) -> Any:
    """Context in which torch's global generator is seeded from (seed, purpose), and restored after.

    Only for code that draws from it and cannot be told otherwise (module initialisation, third-party packages).
    """
    return _Forked(generator_seed(seed, purpose))


class _Forked:
    """By the generators themselves: torch's own way takes a stack trace each time, a millisecond in every step."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __enter__(self) -> None:
        devices = torch.cuda.default_generators if torch.cuda.is_initialized() else ()
        self.generators = [torch.default_generator, *devices]
        self.states = [generator.get_state() for generator in self.generators]
        for generator in self.generators:
            generator.manual_seed(self.seed)

    def __exit__(self, *exc: Any) -> None:
        for generator, state in zip(self.generators, self.states, strict=True):
            generator.set_state(state)

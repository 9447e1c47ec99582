"""AugMix and RandAugment: operations with known results, and randomness that belongs to the example."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import robustsuite.defenses.augmix as module
from robustsuite.defenses.augmix import augmix, operate, randaugment
from robustsuite.noise import Noise

NAMES = [operation.__name__.strip("_") for operation in module.OPERATIONS]


def images(n: int = 6, channels: int = 3, size: int = 8) -> Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(1))


def do(name: str, x: Tensor, strength: float) -> Tensor:
    return operate(x, torch.full((len(x),), NAMES.index(name)), torch.full((len(x),), strength))


def test_operations_with_known_results():
    x = images()
    assert torch.allclose(do("brightness", x, -1.0), 0.1 * x)
    assert torch.allclose(do("solarize", x, 0.25), torch.where(x < 0.75, x, 1 - x))
    assert set((16 * (do("posterize", x, 1.0) * 255 / 256)).flatten().tolist()) <= set(map(float, range(16)))
    assert torch.allclose(do("posterize", x, 0.0), (255 * x).round() / 255)
    stretched = do("autocontrast", 0.3 + 0.4 * x, 1.0)
    assert stretched.amin((2, 3)).tolist() == torch.zeros(6, 3).tolist()
    assert torch.allclose(stretched.amax((2, 3)), torch.ones(6, 3))
    flat = torch.full((1, 1, 4, 4), 0.4)
    assert torch.equal(do("autocontrast", flat, 1.0), flat)
    gray = do("contrast", 0.3 + 0.4 * x, -1.0)
    assert torch.allclose(gray.std((1, 2, 3)), 0.1 * 0.4 * x.std((1, 2, 3)), rtol=1e-4)


@pytest.mark.parametrize("name", ["shear_x", "shear_y", "translate_x", "translate_y", "rotate"])
def test_warps_of_strength_zero_change_nothing(name: str):
    assert torch.equal(do(name, images(), 0.0), images())


def test_warps_move_pixels():
    x = images(size=8)
    pixels = 2 / (8 * module.SHIFT)  # two of eight
    assert torch.equal(do("translate_x", x, pixels)[..., :6], x[..., 2:])
    assert not do("translate_x", x, pixels)[..., 6:].any()
    assert torch.equal(do("translate_y", x, -pixels)[:, :, 2:], x[:, :, :6])


def test_a_quarter_turn(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "DEGREES", 90.0)
    x = images()
    assert torch.equal(do("rotate", x, 1.0), x.rot90(1, (2, 3)))


@pytest.mark.parametrize("mixer", [augmix, randaugment])
def test_they_belong_to_the_example(mixer: Callable):
    x, ids = images(), torch.tensor([5, 9, 2, 40, 7, 1])
    noise = Noise(0, "test").at(ids)
    found = mixer(x, noise)
    assert found.shape == x.shape
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert torch.equal(found, mixer(x, noise))
    assert not torch.equal(found, mixer(x, noise, 1))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert torch.allclose(mixer(x[order], Noise(0, "test").at(ids[order])), found[order], atol=1e-6)


def test_augmix_stays_nearer_than_randaugment():
    x = images(n=200)
    noise = Noise(0, "test").at(torch.arange(200))
    mixed, hard = ((f(x, noise) - x).abs().mean().item() for f in (augmix, randaugment))
    assert 0.01 < mixed < hard

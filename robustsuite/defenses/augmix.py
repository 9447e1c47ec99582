"""AugMix and RandAugment on float images in [0,1], keyed by example.

Hendrycks, Mu, Cubuk, Zoph, Gilmer, Lakshminarayanan, "AugMix" (ICLR 2020), and Cubuk, Zoph, Shlens, Le, "RandAugment"
(2020), with ten of their operations; equalise, colour and sharpness are left out. Strengths are shares of the largest:
torchvision's defaults are 0.1 to 0.3 for AugMix and 0.3 for RandAugment.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from robustsuite.noise import ExampleNoise

WIDTH, DEPTH = 3, 3
STRENGTH = 0.3
SHEAR, SHIFT, DEGREES, BRIGHTNESS, BITS = 0.3, 150 / 331, 30.0, 0.9, 4.0  # at strength 1


def augmix(x: Tensor, noise: ExampleNoise, draw: int = 0) -> Tensor:
    """Images ``[B,C,H,W]`` mixed with three chains of one to three operations each, ``[B,C,H,W]``."""
    noise = noise.child("augmix")
    kinds, strengths, signs = _operations(noise, WIDTH * DEPTH, draw)
    strengths = STRENGTH * (1 + (3 * strengths).floor()) / 3
    depths = 1 + noise.child("depth").integers(DEPTH, (WIDTH,), draw)
    shares = -torch.log1p(-noise.child("share").uniform((WIDTH,), draw))
    shares = shares / shares.sum(1, keepdim=True).clamp(min=1e-12)
    mixed = torch.zeros_like(x)
    for chain in range(WIDTH):
        image = x
        for link in range(DEPTH):
            place = chain * DEPTH + link
            changed = operate(image, kinds[:, place], strengths[:, place] * signs[:, place])
            image = changed.where(_wide(depths[:, chain] > link, x), image)
        mixed = mixed + _wide(shares[:, chain], x).to(x.dtype) * image
    share = _wide(noise.child("mix").uniform((), draw), x).to(x.dtype)
    return torch.lerp(x, mixed, share).clamp(0, 1)


def randaugment(x: Tensor, noise: ExampleNoise, draw: int = 0) -> Tensor:
    """Images ``[B,C,H,W]`` after two random operations, ``[B,C,H,W]``."""
    kinds, _, signs = _operations(noise.child("randaugment"), 2, draw)
    for place in range(2):
        x = operate(x, kinds[:, place], STRENGTH * signs[:, place])
    return x


def _operations(noise: ExampleNoise, count: int, draw: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which ones int64, how strong in [0,1), and in which direction, ``[B,count]`` each."""
    kinds = noise.integers(len(OPERATIONS), (count,), draw)
    return kinds, noise.child("strength").uniform((count,), draw), noise.child("sign").signs((count,), draw)


def operate(x: Tensor, kinds: Tensor, strengths: Tensor) -> Tensor:
    """Each image by its own operation, of signed strength in [-1,1]."""
    out = x.clone()
    for kind, operation in enumerate(OPERATIONS):
        mine = kinds == kind
        if bool(mine.any()):
            out[mine] = operation(x[mine], strengths[mine].to(x.dtype)).clamp(0, 1)
    return out


def _wide(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.ndim - 1))


def _warp(x: Tensor, rows: tuple[tuple[Tensor, ...], tuple[Tensor, ...]]) -> Tensor:
    """The image at the points that the matrix ``rows`` (2x3) sends each pixel to; black outside."""
    matrix = torch.stack([torch.stack(row, 1) for row in rows], 1)
    grid = nn.functional.affine_grid(matrix, list(x.shape), align_corners=False)
    return nn.functional.grid_sample(x, grid, mode="nearest", align_corners=False)


def _shear_x(x: Tensor, s: Tensor) -> Tensor:
    one, zero = torch.ones_like(s), torch.zeros_like(s)
    return _warp(x, ((one, SHEAR * s, zero), (zero, one, zero)))


def _shear_y(x: Tensor, s: Tensor) -> Tensor:
    one, zero = torch.ones_like(s), torch.zeros_like(s)
    return _warp(x, ((one, zero, zero), (SHEAR * s, one, zero)))


def _translate_x(x: Tensor, s: Tensor) -> Tensor:
    one, zero = torch.ones_like(s), torch.zeros_like(s)
    return _warp(x, ((one, zero, 2 * SHIFT * s), (zero, one, zero)))  # the grid is 2 wide


def _translate_y(x: Tensor, s: Tensor) -> Tensor:
    one, zero = torch.ones_like(s), torch.zeros_like(s)
    return _warp(x, ((one, zero, zero), (zero, one, 2 * SHIFT * s)))


def _rotate(x: Tensor, s: Tensor) -> Tensor:
    angle, zero = torch.deg2rad(DEGREES * s), torch.zeros_like(s)
    ratio = x.shape[2] / x.shape[3]  # the grid is square, the image need not be
    return _warp(x, ((angle.cos(), -ratio * angle.sin(), zero), (angle.sin() / ratio, angle.cos(), zero)))


def _brightness(x: Tensor, s: Tensor) -> Tensor:
    return x * _wide(1 + BRIGHTNESS * s, x)


def _contrast(x: Tensor, s: Tensor) -> Tensor:
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * _wide(1 + BRIGHTNESS * s, x)


def _posterize(x: Tensor, s: Tensor) -> Tensor:
    levels = _wide(2 ** (8 - (BITS * s.abs()).round()), x)
    return (255 * x).round().div(256 / levels).floor() * (256 / levels) / 255


def _solarize(x: Tensor, s: Tensor) -> Tensor:
    return x.where(x < _wide(1 - s.abs(), x), 1 - x)


def _autocontrast(x: Tensor, s: Tensor) -> Tensor:
    del s
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return x.where(high <= low, (x - low) / (high - low).clamp(min=1e-12))


OPERATIONS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    _shear_x, _shear_y, _translate_x, _translate_y, _rotate, _brightness, _contrast, _posterize, _solarize,
    _autocontrast,
)  # fmt: skip

"""Example pictures as PNG data: clean, adversarial, and their difference made visible."""

import base64
import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from robustsuite.leaderboard.display import visible
from robustsuite.leaderboard.row import Picture


@dataclass(frozen=True)
class Shown:
    """One broken example as the page shows it; ``*_uri`` are PNG data."""

    position: int
    label: int
    before: int
    after: int
    stage: str
    distance: str
    clean_uri: str
    adversarial_uri: str
    difference_uri: str
    gain: str
    """The factor of the difference."""
    width: int
    height: int


def shown(picture: Picture) -> Shown:
    """Three images of one example; the difference is grey where nothing changed, and scaled to its largest change."""
    clean, adversarial = _image(picture.x), _image(picture.x_adv)
    change = adversarial - clean
    gain = _gain(float(np.abs(change).max(initial=0.0)))
    height, width = clean.shape[:2]
    return Shown(
        picture.position,
        picture.label,
        picture.before,
        picture.after,
        visible(picture.stage, 60),
        f"{picture.distance:.3g}",
        _png(clean),
        _png(adversarial),
        _png(0.5 + gain * change),
        f"{gain:g}",
        width,
        height,
    )


def _image(x: Any) -> np.ndarray:
    """``[C,H,W]`` to ``[H,W,3]`` or ``[H,W]``: of other than 1 or 3 channels the mean is shown."""
    array = np.asarray(x, dtype=np.float64)
    if array.shape[0] == 3:
        return array.transpose(1, 2, 0)
    return array.mean(axis=0)


def _gain(largest: float) -> float:
    """The factor, to two digits and rounded down, that makes the largest change span half of the scale."""
    if largest < 1e-6:
        return 1.0
    exact = 0.5 / largest
    unit = 10.0 ** (math.floor(math.log10(exact)) - 1)
    return math.floor(exact / unit + 1e-9) * unit


def _png(image: np.ndarray) -> str:
    from PIL import Image

    pixels = np.rint(np.clip(image, 0.0, 1.0) * 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()

"""A dataset as a plugin: images in [0,1], integer labels, and an id for every example."""

import torch

from robustsuite.data.dataset import Dataset
from robustsuite.errors import InputError
from robustsuite.noise import Noise
from robustsuite.registry import register_dataset

PLACES = {"train": range(400), "test": range(400, 500)}


@register_dataset("my_stripes")
def my_stripes(split):
    """Grey 8x8 images of horizontal (0) or vertical (1) stripes under noise; splits train (400) and test (100)."""
    if split not in PLACES:
        raise InputError(f"my_stripes has no split '{split}'; there are {', '.join(PLACES)}.")
    ids = torch.tensor(PLACES[split])
    y = ids % 2
    stripe = (torch.arange(8) // 2 % 2).float()
    across, down = stripe.view(1, 1, 8, 1).expand(-1, -1, 8, 8), stripe.view(1, 1, 1, 8).expand(-1, -1, 8, 8)
    clean = torch.where(y.view(-1, 1, 1, 1) == 0, across, down)
    x = 0.5 * clean + 0.5 * Noise(0, "my_stripes").at(ids).uniform((1, 8, 8))
    return Dataset("my_stripes", x, y, ids, num_classes=2, split=split)

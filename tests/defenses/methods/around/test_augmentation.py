"""Crops, flips and masks: pixel by pixel, who draws them, and what stays."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from robustsuite.data.dataset import Dataset
from robustsuite.defenses import Step
from robustsuite.defenses.composed import compose
from robustsuite.defenses.crop_flip import CropFlip
from robustsuite.defenses.cutout import Cutout
from robustsuite.defenses.free_at import FreeAT
from robustsuite.defenses.pgd_at import PGDAT
from robustsuite.defenses.standard import Standard
from robustsuite.errors import UsageError
from robustsuite.noise import Noise


def batch(toy: Step, n: int = 64, shape: tuple[int, ...] = (3, 6, 5), epoch: int = 1) -> Step:
    x = 0.1 + 0.9 * torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))  # never black
    y = torch.arange(n) % 3
    toy.rebatch(x=x, y=y, q=torch.nn.functional.one_hot(y, 3).float(), ids=torch.arange(n) + 5)
    toy.epoch = epoch
    return toy


def windows(image: Tensor, pad: int) -> list[Tensor]:
    """All crops of the padded image, then all of them mirrored."""
    _, height, width = image.shape
    padded = torch.zeros(image.shape[0], height + 2 * pad, width + 2 * pad)
    padded[:, pad : pad + height, pad : pad + width] = image
    crops = [
        padded[:, top : top + height, left : left + width]
        for top in range(2 * pad + 1)
        for left in range(2 * pad + 1)
    ]  # fmt: skip
    return crops + [crop.flip(2) for crop in crops]


@pytest.mark.parametrize("pad", [0, 1, 3])
@pytest.mark.parametrize("flip", [True, False])
def test_every_image_is_one_of_its_windows_and_all_occur(pad: int, flip: bool, toy: Step):
    step = batch(toy, n=400 if pad == 1 else 40)
    before = step.x
    CropFlip(pad, flip).data(step)
    used = set()
    for old, new in zip(before, step.x, strict=True):
        places = [place for place, window in enumerate(windows(old, pad)) if torch.equal(window, new)]
        assert len(places) == 1
        used.add(places[0])
    count = (2 * pad + 1) ** 2
    if pad == 1:
        assert used == set(range(count * (2 if flip else 1)))
    if not flip:
        assert max(used) < count


def test_half_of_the_images_are_flipped(toy: Step):
    step = batch(toy, n=2000, shape=(1, 1, 2))
    before = step.x
    CropFlip(pad=0).data(step)
    flipped = (step.x == before.flip(3)).flatten(1).all(1)
    assert float(flipped.float().mean()) == pytest.approx(0.5, abs=0.04)
    assert torch.equal(step.x[~flipped], before[~flipped])


@pytest.mark.parametrize("method", [CropFlip(2), Cutout(3, fill="zero")])
def test_draws_belong_to_example_and_epoch_alone(method: Any, toy: Step):
    first = batch(toy)
    method.data(first)
    found = first.x
    again = batch(toy)
    again.noise = type(again.noise)(Noise(0, "another step"), again.noise.ids)
    method.data(again)
    assert torch.equal(again.x, found)
    other = batch(toy)
    order = torch.arange(64).flip(0)
    other.rebatch(x=other.x[order], y=other.y[order], q=other.q[order], ids=other.noise.ids[order])
    method.data(other)
    assert torch.equal(other.x, found[order])
    later = batch(toy, epoch=2)
    method.data(later)
    assert not torch.equal(later.x, found)
    assert torch.equal(later.views["clean"], later.x)


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5])
def test_one_square_is_masked(size: int, toy: Step):
    step = batch(toy, n=300)
    before = step.x
    Cutout(size, fill="zero").data(step)
    black = (step.x == 0).all(1)
    assert torch.equal(step.x.masked_select(~black.unsqueeze(1)), before.masked_select(~black.unsqueeze(1)))
    areas = black.flatten(1).sum(1)
    assert int(areas.max()) <= size**2
    if size:
        assert int(areas.min()) >= max(1, (size // 2) ** 2)
    for mask in black:
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        if len(rows):  # one box, no holes
            assert bool(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all())
            assert len(rows) <= size
            assert len(columns) <= size
            assert int(mask.sum()) == len(rows) * len(columns)
    if size == 1:  # centres are uniform over the pixels
        assert int(black.sum(0).min()) >= 2
        assert int(black.sum(0).max()) <= 25


def test_the_mask_is_the_mean_of_the_training_data(toy: Step, digits: Dataset, quick: Callable, same: Callable):
    method = Cutout(2)

    class Context:
        data, device, memory = digits, torch.device("cpu"), toy.memory

    context: Any = Context()
    method.setup(context)
    assert toy.memory["mean"].flatten().tolist() == pytest.approx([float(digits.x.mean())])
    step = batch(toy, shape=(1, 6, 6))
    before = step.x
    method.data(step)
    changed = step.x[step.x != before]
    assert len(changed) > 64
    assert changed.unique().tolist() == pytest.approx([float(digits.x.mean())])
    base = ("standard", Standard())
    black, grey = (quick(compose(base, ("cutout", Cutout(3, fill=fill)))) for fill in ("zero", "mean"))
    assert not same(black, grey)


def test_channels_last_batches_stay_so(toy: Step):
    step = batch(toy)
    plain = step.x
    for method in (CropFlip(2), Cutout(2, fill="zero")):
        step.rebatch(x=plain.contiguous(memory_format=torch.channels_last))
        method.data(step)
        last = step.x
        assert last.is_contiguous(memory_format=torch.channels_last)
        step.rebatch(x=plain)
        method.data(step)
        assert step.x.is_contiguous()
        assert torch.equal(step.x, last)


@pytest.mark.parametrize("modifier", [("crop_flip", CropFlip(1)), ("cutout", Cutout(3))])
@pytest.mark.parametrize("base", [("standard", Standard()), ("pgd_at", PGDAT(steps=1))])
def test_they_change_a_training_and_nothing_else_does(modifier: Any, base: Any, quick: Callable, same: Callable):
    augmented = quick(compose(base, modifier))
    assert same(augmented, quick(compose(base, modifier)))
    assert not same(augmented, quick(compose(base)))
    assert (augmented.forward, augmented.backward) == (quick(compose(base)).forward, quick(compose(base)).backward)


@pytest.mark.parametrize("modifier", [("crop_flip", CropFlip(0, flip=False)), ("cutout", Cutout(0))])
def test_nothing_to_do_is_nothing_done(modifier: Any, quick: Callable, same: Callable):
    assert same(quick(compose(("standard", Standard()), modifier)), quick(Standard()))


def test_replays_see_the_same_images(quick: Callable):
    seen: list[Tensor] = []

    class Watched(FreeAT):
        def views(self, step: Step):
            seen.append(step.x.clone())
            return super().views(step)

    base = ("free_at", Watched(replays=2))
    quick(compose(base, ("crop_flip", CropFlip(2)), ("cutout", Cutout(2))), epochs=1)
    assert len(seen) == 6
    assert all(torch.equal(seen[i], seen[i + 1]) for i in (0, 2, 4))
    assert not torch.equal(seen[0], seen[2])


def test_a_killed_run_goes_on(survives: Callable):
    assert survives(compose(("standard", Standard()), ("crop_flip", CropFlip(1)), ("cutout", Cutout(2))))


def test_bad_parameters_and_shapes(toy: Step):
    with pytest.raises(UsageError, match="pad >= 0"):
        CropFlip(pad=-1)
    with pytest.raises(UsageError, match="size >= 0"):
        Cutout(size=-1)
    with pytest.raises(UsageError, match="mean or zero"):
        Cutout(fill="grey")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"16 pixels masks whole images of \[6, 5\]"):
        Cutout().data(batch(toy))
    toy.rebatch(x=torch.zeros(64, 3))
    for method in (CropFlip(), Cutout()):
        with pytest.raises(UsageError, match=r"images \[B,C,H,W\], got a batch \[64, 3\]"):
            method.data(toy)

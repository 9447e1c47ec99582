"""Random resizing and crops: the resampling against torch's own, places and sizes, the defenses."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustsuite.defenses.crop_ensemble import CropEnsemble, RandomCrops
from robustsuite.defenses.resize_pad import RandomResizePad, ResizePad
from robustsuite.errors import UsageError
from robustsuite.models.classifier import Classifier
from robustsuite.models.keyed import Draws
from robustsuite.models.resampling import resample, whole
from robustsuite.noise import Noise

X = torch.rand(3, 2, 9, 11, generator=torch.Generator().manual_seed(0))


def windows(*one: int, n: int = 3) -> torch.Tensor:
    return torch.tensor([one]).expand(n, 4)


def keyed(seed: int = 0) -> Draws:
    source = Draws()
    source.noise = Noise(seed, "test")
    return source


def test_the_whole_image_onto_itself_is_the_image_bit_for_bit():
    assert torch.equal(resample(X, whole(X), whole(X), (9, 11)), X)


@pytest.mark.parametrize("size", [(5, 7), (9, 11), (14, 20), (3, 30)])
def test_resizing_is_torchs_bilinear(size):
    want = F.interpolate(X, size, mode="bilinear", align_corners=False)
    got = resample(X, whole(X), windows(2, 1, *size), (size[0] + 4, size[1] + 5))
    torch.testing.assert_close(got[:, :, 2 : 2 + size[0], 1 : 1 + size[1]], want, atol=1e-6, rtol=0)
    torch.testing.assert_close(got, F.pad(want, (1, 4, 2, 2)), atol=1e-6, rtol=0)


def test_a_window_is_resized_as_if_it_were_an_image_and_rows_have_their_own():
    source = torch.tensor([[1, 2, 5, 6], [0, 0, 9, 11], [4, 5, 1, 3]])
    got = resample(X, source, whole(X), (9, 11))
    for i, (top, left, height, width) in enumerate(source.tolist()):
        part = X[i : i + 1, :, top : top + height, left : left + width]
        want = F.interpolate(part, (9, 11), mode="bilinear", align_corners=False)
        torch.testing.assert_close(got[i : i + 1], want, atol=1e-6, rtol=0)


def test_its_gradient_is_that_of_the_linear_map():
    x = X.double().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: resample(x, windows(1, 2, 5, 6), windows(2, 1, 4, 9), (8, 11)), (x,))


def test_sizes_and_places_are_uniform_and_every_image_is_whole():
    """An image of ones: its trace on the canvas is the window."""
    module = RandomResizePad(0.75, 1.25, keyed())
    canvas = module(torch.ones(4000, 1, 8, 8))
    assert canvas.shape == (4000, 1, 10, 10)
    rows, columns = canvas.sum((1, 3)) > 0.5, canvas.sum((1, 2)) > 0.5
    heights, widths = rows.sum(1), columns.sum(1)
    assert torch.equal(heights, widths)
    shares = torch.bincount(heights, minlength=11)[6:] / 4000
    torch.testing.assert_close(shares, torch.full((5,), 0.2), atol=0.03, rtol=0)
    starts = rows.int().argmax(1)[heights == 8]
    torch.testing.assert_close(
        torch.bincount(starts, minlength=3) / len(starts), torch.full((3,), 1 / 3), atol=0.06, rtol=0
    )
    assert torch.equal(canvas.sum((1, 2, 3)).round().long(), heights * widths)


def test_a_size_of_one_is_the_identity(net, images):
    base = net.classifier()
    same = ResizePad(1.0, 1.0, eot=1, draws=1).wrap(base)
    assert torch.equal(same.logits(images.x), base.logits(images.x))
    crops = CropEnsemble(1.0, crops=1, eot=1, draws=1).wrap(base)
    torch.testing.assert_close(crops.logits(images.x), base.logits(images.x).log_softmax(1))


def test_the_papers_setting_is_for_networks_that_take_larger_images():
    assert RandomResizePad(1.0, 330.5 / 299, Draws()).sizes(299) == (299, 330)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = Classifier(network, num_classes=4, input_shape=(1, 32, 32))
    wrapped = ResizePad(33 / 32, 36 / 32, eot=2, draws=2).wrap(model)
    assert wrapped.logits(torch.rand(2, 1, 32, 32)).shape == (2, 4)
    assert model.passes.forward == 4


def test_crops_are_windows_of_the_image():
    module = RandomCrops(0.5, 200, keyed())
    ramp = torch.arange(8.0).view(1, 1, 1, 8).expand(1, 1, 8, 8)
    crops = module(ramp)
    assert crops.shape == (200, 1, 8, 8)
    first, last = crops[:, 0, 0, 0], crops[:, 0, 0, -1]
    torch.testing.assert_close(last - first, torch.full((200,), 3.0))
    assert set(first.round().long().tolist()) == {0, 1, 2, 3, 4}


def test_the_ensemble_is_the_mean_probability_of_its_crops_and_counts_its_passes(net, images):
    base = net.classifier()
    model = CropEnsemble(0.8, crops=6, eot=3, draws=4).wrap(base)
    assert (model.per_evaluation, model.per_decision) == (18, 24)
    x = images.x[:5]
    with model._drawing(Noise(0, "test"), 0):
        crops = model.module.crop(x)
        got = Classifier.logits(model, x)
    want = base.logits(crops).softmax(1).view(5, 6, 10).mean(1)
    torch.testing.assert_close(got.exp(), want, atol=1e-6, rtol=1e-5)
    base.passes.forward = 0
    model.gradient(x, lambda z: z[:, 0])
    assert (base.passes.forward, base.passes.backward) == (5 * 18, 5 * 18)


@pytest.mark.parametrize("surrogate", ["exact", "identity"])
def test_expectation_over_transformation_brings_them_down(net, images, clean, attacked, surrogate):
    base = net.classifier()
    bare = attacked(base, images)
    for defense in (ResizePad(surrogate=surrogate, eot=5, draws=20), CropEnsemble(0.9, 5, surrogate, 2, 8)):
        model = defense.wrap(base)
        assert model.facts.randomized
        before, after = clean(model, images), attacked(model, images)
        assert before > 0.55
        assert after < before - 0.15
        assert after <= bare + 0.2


@pytest.mark.parametrize(
    "bad",
    [
        {"low": 0.0},
        {"low": 1.1},
        {"surrogate": "soft"},
        {"high": 1.2, "surrogate": "identity"},
        {"eot": 0},
    ],
)
def test_bad_parameters_of_resizing_are_refused(bad, net):
    with pytest.raises(UsageError):
        ResizePad(**bad).wrap(net.classifier())


def test_a_range_without_a_whole_size_is_refused(net):
    with pytest.raises(UsageError, match="no whole size"):
        ResizePad(0.9, 0.95).wrap(net.classifier())
    assert math.ceil(0.9 * 8) == 8


@pytest.mark.parametrize("bad", [{"share": 0.0}, {"share": 1.5}, {"crops": 0}, {"surrogate": "soft"}, {"draws": 0}])
def test_bad_parameters_of_crops_are_refused(bad, net):
    with pytest.raises(UsageError):
        CropEnsemble(**bad).wrap(net.classifier())

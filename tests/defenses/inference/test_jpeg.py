"""JPEG: the real codec forward, and a differentiable one that agrees with it."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from robustsuite.defenses.jpeg import JPEG, Codec
from robustsuite.errors import UsageError
from robustsuite.models.classifier import Classifier, margins
from robustsuite.models.soft_jpeg import _CHROMA, _LUMA, SoftJPEG, quantisation


def smooth_images(n: int, channels: int, height: int = 37, width: int = 45) -> torch.Tensor:
    coarse = torch.rand(n, channels, 5, 7, generator=torch.Generator().manual_seed(0))
    x = nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (255 * x).round() / 255


def test_the_forward_pass_is_a_file_that_pillow_wrote_and_read():
    x = smooth_images(2, 3)
    for quality in (25, 75):
        got = Codec(quality, "4:2:0")(x)
        for image, coded in zip(x, got, strict=True):
            file = io.BytesIO()
            pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(file, "JPEG", quality=quality)
            want = np.asarray(Image.open(file)).astype(np.float32) / 255
            assert np.array_equal(coded.permute(1, 2, 0).numpy(), want)


def test_the_best_quality_changes_grey_images_by_at_most_one_level():
    x = smooth_images(4, 1)
    assert float((Codec(100, "4:2:0")(x) - x).abs().max()) <= 1.01 / 255
    colours = smooth_images(4, 3)
    assert float((Codec(100, "4:4:4")(colours) - colours).abs().max()) <= 4.01 / 255


@pytest.mark.parametrize("quality", [1, 10, 49, 50, 75, 99, 100])
def test_the_tables_are_those_that_libjpeg_writes_into_its_files(quality):
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file, "JPEG", quality=quality)
    written = Image.open(file).quantization
    for number, base in enumerate((_LUMA, _CHROMA)):
        assert quantisation(quality, base).flatten().long().tolist() == list(written[number])


@pytest.mark.parametrize(("channels", "chroma"), [(1, "4:2:0"), (3, "4:4:4"), (3, "4:2:0")])
def test_the_soft_codec_is_close_to_the_real_one(channels, chroma):
    """Closer than the image itself, at sizes that are no multiple of a block; clearly so where much is lost."""
    x = smooth_images(4, channels)
    for quality, share in ((10, 0.25), (25, 0.25), (75, 0.4)):
        real, soft = Codec(quality, chroma)(x), SoftJPEG(quality, chroma)(x).clamp(0, 1)
        assert soft.shape == x.shape
        assert float((soft - real).abs().mean()) < share * float((x - real).abs().mean())


def test_without_quantisation_the_soft_codec_is_the_identity():
    x = smooth_images(2, 3).double()
    codec = SoftJPEG(100, "4:4:4").double()
    codec.tables.fill_(1e-9)  # what is rounded is then lost far behind the point
    torch.testing.assert_close(codec(x), x, atol=1e-6, rtol=0)


def test_the_soft_gradient_is_that_of_the_soft_codec():
    codec = SoftJPEG(50, "4:2:0").double()
    x = smooth_images(1, 3, 9, 10).double().requires_grad_(True)
    assert torch.autograd.gradcheck(codec, (x,), eps=1e-7, atol=1e-4)


def test_plain_pgd_is_blind_and_with_a_substitute_the_defense_is_gone(net, images, clean, attacked):
    base = net.classifier()
    bare = attacked(base, images)
    plain = JPEG(75, surrogate="exact").wrap(base)
    _, grad = plain.gradient(images.x, lambda z: margins(z, images.y))
    assert not grad.any()
    assert clean(plain, images) > clean(base, images) - 0.1
    assert attacked(plain, images) > bare + 0.25
    for surrogate in ("identity", "soft"):
        model = JPEG(75, surrogate=surrogate).wrap(base)
        assert torch.equal(model.logits(images.x), plain.logits(images.x))
        assert attacked(model, images) <= bare + 0.15


@pytest.mark.parametrize("bad", [{"quality": 0}, {"quality": 101}, {"chroma": "4:1:1"}, {"surrogate": "none"}])
def test_bad_parameters_are_refused(bad):
    with pytest.raises(UsageError):
        JPEG(**bad)


def test_images_with_other_channels_are_refused():
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(2 * 64, 3)), num_classes=3, input_shape=(2, 8, 8))
    with pytest.raises(UsageError, match="grey or RGB"):
        JPEG().wrap(model)

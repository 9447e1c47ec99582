"""Median blur against SciPy's filter, and its three gradients."""

import pytest
import torch
from scipy import ndimage

from robustsuite.defenses.median_blur import Mean, Median, MedianBlur
from robustsuite.errors import UsageError
from robustsuite.models.classifier import margins


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_it_is_scipys_filter(size):
    x = torch.rand(2, 3, 7, 6, generator=torch.Generator().manual_seed(0))
    want = ndimage.median_filter(x.numpy(), (1, 1, size, size), mode="reflect")
    assert torch.equal(Median(size)(x), torch.from_numpy(want))
    mean = ndimage.uniform_filter(x.double().numpy(), (1, 1, size, size), mode="reflect")
    torch.testing.assert_close(Mean(size)(x.double()), torch.from_numpy(mean))


def test_a_window_of_one_pixel_is_the_identity_and_an_outlier_vanishes(net, images):
    base = net.classifier()
    assert torch.equal(MedianBlur(1).wrap(base).logits(images.x), base.logits(images.x))
    x = torch.full((1, 1, 8, 8), 0.3)
    x[0, 0, 4, 4] = 1.0
    assert torch.equal(Median(3)(x), torch.full_like(x, 0.3))


def test_every_gradient_brings_the_defense_down(net, images, clean, attacked):
    base = net.classifier()
    values = {s: MedianBlur(3, s).wrap(base) for s in ("exact", "soft", "identity")}
    assert [m.facts.differentiable for m in values.values()] == ["full", "surrogate", "surrogate"]
    before = clean(values["exact"], images)
    after = {name: attacked(model, images) for name, model in values.items()}
    assert before > 0.4
    assert max(after.values()) < before - 0.2
    assert after["exact"] <= after["identity"]
    grads = [m.gradient(images.x, lambda z: margins(z, images.y))[1] for m in values.values()]
    assert not torch.equal(grads[0], grads[1])


def test_bad_parameters_are_refused(net):
    for bad in ({"size": 0}, {"surrogate": "none"}):
        with pytest.raises(UsageError):
            MedianBlur(**bad)
    with pytest.raises(UsageError, match="9x9"):
        MedianBlur(9).wrap(net.classifier())

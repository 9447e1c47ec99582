"""Bit-depth reduction: exact identities, and a defense that only hides its gradient."""

import pytest
import torch

from robustsuite.data.dataset import Dataset
from robustsuite.defenses.bit_depth import BitDepth, Rounding, SoftRounding
from robustsuite.errors import UsageError
from robustsuite.evaluation.checks import check_model
from robustsuite.models.classifier import margins


@pytest.mark.parametrize("bits", [1, 3, 5, 8])
def test_rounding_twice_changes_nothing_and_no_pixel_moves_more_than_half_a_level(bits):
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    levels = 2**bits - 1
    once = Rounding(levels)(x)
    assert torch.equal(Rounding(levels)(once), once)
    assert float((once - x).abs().max()) <= 0.5 / levels + 1e-6
    assert set((once * levels).round().flatten().tolist()) <= set(range(levels + 1))


def test_eight_bit_images_are_left_as_they_are():
    x = torch.arange(256).view(1, 1, 16, 16) / 255
    assert torch.equal(Rounding(255)(x), x)


def test_the_soft_staircase_meets_the_levels_and_the_steps_and_always_rises():
    levels = 7
    v = torch.linspace(0, 1, 2801).double()
    soft = SoftRounding(levels)(v)
    on = v[::400]
    torch.testing.assert_close(SoftRounding(levels)(on), on)
    middle = (on[:-1] + on[1:]) / 2
    torch.testing.assert_close(SoftRounding(levels)(middle), middle)
    assert bool((soft.diff() > 0).all())
    away = (v * levels - (v * levels).floor() - 0.5).abs() > 0.2
    assert float((soft - Rounding(levels)(v)).abs()[away].max()) < 0.25 / levels


def test_the_true_gradient_is_zero_and_with_a_substitute_the_defense_is_gone(net, images, clean, attacked):
    """Athalye et al. 2018: what plain PGD cannot move falls to the base model's level through the substitute."""
    base = net.classifier()
    bare = attacked(base, images)
    plain = BitDepth(3, "exact").wrap(base)
    _, grad = plain.gradient(images.x, lambda z: margins(z, images.y))
    assert not grad.any()
    assert plain.facts.differentiable == "none"
    assert clean(plain, images) > clean(base, images) - 0.1
    assert attacked(plain, images) > bare + 0.25
    for surrogate in ("identity", "soft"):
        model = BitDepth(3, surrogate).wrap(base)
        assert model.facts.differentiable == "surrogate"
        assert torch.equal(model.logits(images.x), plain.logits(images.x))
        assert attacked(model, images) <= bare + 0.1


def test_the_identity_substitute_gives_the_base_models_gradient_at_the_rounded_image(net, images):
    base = net.classifier()
    model = BitDepth(3).wrap(base)
    rounded = Rounding(7)(images.x)
    for got, want in zip(
        model.gradient(images.x, lambda z: margins(z, images.y)),
        base.gradient(rounded, lambda z: margins(z, images.y)),
        strict=True,
    ):
        assert torch.equal(got, want)


def test_the_evaluators_checks_say_that_inputs_are_rounded(net, images):
    data = Dataset("digits", images.x, images.y, images.ids, 10)
    raised = {f.name for f in check_model(BitDepth(3).wrap(net.classifier()), data) if f.raised}
    assert "quantised_input" in raised


@pytest.mark.parametrize("bad", [{"bits": 0}, {"bits": 17}, {"surrogate": "no"}])
def test_bad_parameters_are_refused(bad):
    with pytest.raises(UsageError):
        BitDepth(**bad)


def test_a_model_is_wrapped_once(net):
    from robustsuite.defenses.smoothing import Smoothing

    with pytest.raises(UsageError, match="already"):
        BitDepth().wrap(Smoothing().wrap(net.classifier()))

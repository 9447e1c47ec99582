import pytest
import torch
from scipy import stats

from robustsuite.attacks.slots import pick
from robustsuite.attacks.starts import inside, on_surface, within
from robustsuite.noise import Noise
from robustsuite.threat import ThreatModel

IDS = torch.arange(3000)
MIDDLE = torch.full((3000, 1, 2, 2), 0.5)


def drawn(start, text: str) -> tuple[ThreatModel, torch.Tensor]:
    threat = ThreatModel.parse(text)
    return threat, start(MIDDLE, threat, Noise(0, "start").at(IDS), torch.zeros_like(IDS)) - MIDDLE


def test_linf_starts_fill_the_cube():
    _, delta = drawn(inside, "Linf:0.3")
    for pixel in delta.flatten(1).T:
        assert stats.kstest(pixel.numpy(), stats.uniform(-0.3, 0.6).cdf).pvalue > 1e-6


def test_l2_starts_have_uniform_radius_and_direction():
    threat, delta = drawn(inside, "L2:0.3")
    sizes = threat.norms(delta)
    assert stats.kstest(sizes.numpy(), stats.uniform(0, 0.3).cdf).pvalue > 1e-6
    # a coordinate of a uniform direction in four dimensions: (1 + u) / 2 ~ Beta(3/2, 3/2)
    unit = delta.flatten(1)[:, 0].double() / sizes
    assert stats.kstest((1 + unit).numpy() / 2, stats.beta(1.5, 1.5).cdf).pvalue > 1e-6


def test_l1_starts_fill_the_cross_polytope():
    threat, delta = drawn(inside, "L1:0.3")
    # uniform in d dimensions: the norm is eps u^(1/d)
    assert stats.kstest((threat.norms(delta).numpy() / 0.3) ** 4, "uniform").pvalue > 1e-6
    assert abs(float((delta > 0).float().mean()) - 0.5) < 0.03


@pytest.mark.parametrize("text", ["Linf:0.3", "L2:0.3", "L1:0.03"])  # noise of a smaller norm is left as it is
def test_surface_starts_touch_the_sphere(text):
    threat, delta = drawn(on_surface, text)
    assert torch.allclose(threat.norms(delta), torch.full((3000,), threat.radius, dtype=torch.float64), atol=1e-6)
    assert (delta.flatten(1).mean(0).abs() < 0.02).all()


@pytest.mark.parametrize("text", ["L2:0.5", "L2:0.001", "L1:12", "L1:0.7", "Linf:8/255"])
def test_rounding_cannot_leave_the_shrunken_ball(text):
    """Flat images push every pixel's rounding error the same way; the exact ball would be left."""
    threat = ThreatModel.parse(text)
    x = torch.linspace(0.3, 0.7, 64).view(-1, 1, 1, 1).expand(-1, 3, 32, 32).contiguous()
    ball = within(threat, x[0].numel())
    assert ball.radius <= threat.radius
    assert ball.radius >= 0.999 * threat.radius
    candidates = x + ball.project(x, torch.full_like(x, 5.0))
    assert threat.contains(x, candidates).all()


def test_pick_is_exact():
    generator = torch.Generator().manual_seed(0)
    new, old = torch.randn(2, 50, 3, 4, 4, generator=generator) * 10.0 ** torch.arange(-6, 4).repeat(5).view(
        50, 1, 1, 1
    )
    mask = torch.rand(50, generator=generator) > 0.5
    assert torch.equal(pick(mask, new, old), torch.where(mask.view(-1, 1, 1, 1), new, old))

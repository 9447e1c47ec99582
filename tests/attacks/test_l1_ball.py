"""The projection of the inner loop against that of the threat model, a certificate, and the reference."""

import pytest
import torch
from torch import Tensor

from robustsuite.attacks import l1_ball
from robustsuite.attacks.l1_ball import largest, project
from robustsuite.threat import Eps, ThreatModel

COUNT = 40
RADII = (0.01, 0.3, 2.0, 10.0)


def cases() -> list[tuple[Tensor, Tensor]]:
    """Images with many pixels on the box; noise, a sparse step, hardly any room, ties."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(COUNT, 1, 9, 7, generator=generator) * 1.4 - 0.2).clamp(0, 1)
    noise = torch.randn(x.shape, generator=generator)
    few = torch.rand(x.shape, generator=generator) < 0.1
    flat = x.clone()  # hardly any room, so that the norm does not change with the threshold for long
    flat[:, :, :, 1:] = (noise[:, :, :, 1:] > 0).float()
    return [(x, noise), (flat, noise), (x, noise * few), (x, noise * 1e-3), (x, few * 0.7), (x, torch.zeros_like(x))]


@pytest.mark.parametrize("radius", RADII)
def test_it_is_the_projection_of_the_threat_model(radius):
    threat = ThreatModel("L1", Eps.parse(radius))
    for x, delta in cases():
        found, exact = project(x, delta, torch.full((COUNT,), radius)), threat.project(x, delta)
        assert torch.allclose(found, exact, atol=1e-7)
        assert torch.equal(found == 0, exact == 0)
        assert (threat.norms(found) <= radius * (1 + 1e-6)).all()


@pytest.mark.parametrize("radius", RADII)
def test_no_point_of_ball_and_box_lies_nearer(radius):
    """P is the projection of a point d onto a convex set where no member z has ``<d - P, z - P> > 0``.

    The best z has a closed form: the budget goes to the pixels with the largest ``|d - P|``, each up to its room.
    """
    for x, delta in cases():
        found = project(x, delta, torch.full((COUNT,), radius)).double()
        normal = (delta.double() - found).flatten(1)
        room = torch.where(normal > 0, 1 - x.flatten(1), x.flatten(1)).double()
        size, order = normal.abs().sort(1, descending=True)
        room = room.gather(1, order)
        spent = (radius - (room.cumsum(1) - room)).clamp(min=0).minimum(room)
        best, reached = (size * spent).sum(1), (normal * found.flatten(1)).sum(1)
        assert (best - reached <= 1e-5 * radius).all()


def test_each_row_has_its_radius_and_does_not_see_the_others():
    radius = torch.tensor(RADII).repeat(COUNT // 4)
    for x, delta in cases():
        found = project(x, delta, radius)
        for i in range(COUNT):
            assert torch.equal(found[i], project(x[i : i + 1], delta[i : i + 1], radius[i : i + 1])[0])


@pytest.mark.parametrize("radius", RADII)
def test_the_rounds_of_a_gpu_are_enough(radius, monkeypatch):
    for x, delta in cases():
        exact = project(x, delta, torch.full((COUNT,), radius))
        with monkeypatch.context() as patched:
            patched.setattr(l1_ball, "_ROUNDS", {False: l1_ball._ROUNDS[True]})
            assert torch.equal(project(x, delta, torch.full((COUNT,), radius)), exact)


@pytest.mark.reference
@pytest.mark.parametrize("radius", RADII)
def test_the_reference_projects_to_the_same_point_but_for_rounding(radius):
    """Both project onto ball and box together. The reference sums in float32 and returns a correction to be added."""
    package = pytest.importorskip("pyautoattack.autopgd_base")
    for x, delta in cases():
        found = project(x, delta, torch.full((COUNT,), radius))
        assert torch.allclose(found, delta + package.L1_projection(x, delta, radius), atol=2e-5)


@pytest.mark.reference
def test_the_reference_leaves_pixels_that_are_cut_off_a_little_beside_the_image():
    """``x + delta - delta`` is not x in float32, so that its count of moved pixels is too large; here it is exact."""
    package = pytest.importorskip("pyautoattack.autopgd_base")
    x, delta = cases()[0]
    found = x + project(x, delta, torch.full((COUNT,), 2.0))
    other = x + delta + package.L1_projection(x, delta, 2.0)
    moved = (found != x).sum()
    assert (other != x).sum() > 2 * moved
    assert abs(((other - x).abs() > 1e-5).sum() - moved) < 0.01 * moved


def test_largest_is_what_sorting_finds():
    size = torch.rand(30, 50, generator=torch.Generator().manual_seed(1))
    count = torch.randint(1, 51, (30,), generator=torch.Generator().manual_seed(2))
    expected = [row.sort(descending=True).values[k - 1] for row, k in zip(size, count, strict=True)]
    assert torch.equal(largest(size, count).flatten(), torch.stack(expected))

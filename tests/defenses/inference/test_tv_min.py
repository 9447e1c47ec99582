"""Total variation: closed forms, an independent solver, and the defense."""

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear, minimize

from robustsuite.defenses.tv_min import TVMin, denoised
from robustsuite.errors import UsageError
from robustsuite.noise import Noise


def row(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).view(1, 1, 1, -1)


def exact_row(x: np.ndarray, weight: float) -> np.ndarray:
    """The minimiser for a row with all pixels kept, from the dual: a least-squares problem in a box."""
    gradient = np.diff(np.eye(len(x)), axis=0)
    dual = lsq_linear(gradient.T / 2, x, bounds=(-weight, weight), tol=1e-14).x
    return x - gradient.T @ dual / 2


def objective(z: torch.Tensor, x: torch.Tensor, kept: torch.Tensor, weight: float) -> torch.Tensor:
    down, across = torch.zeros_like(z), torch.zeros_like(z)
    down[:, :, :-1], across[..., :-1] = z.diff(dim=2), z.diff(dim=3)
    return (kept * (z - x) ** 2).sum((1, 2, 3)) + weight * (down**2 + across**2).sqrt().sum((1, 2, 3))


def test_two_pixels_move_towards_each_other_by_half_the_weight():
    kept = torch.ones(1, 1, 1, 2, dtype=torch.float64)
    torch.testing.assert_close(denoised(row(0.2, 0.8), kept, 0.1, 2000), row(0.25, 0.75), atol=1e-6, rtol=0)
    torch.testing.assert_close(denoised(row(0.2, 0.8), kept, 0.7, 2000), row(0.5, 0.5), atol=1e-6, rtol=0)


def test_without_weight_kept_pixels_stay_and_with_much_the_image_is_their_mean():
    x = torch.rand(3, 2, 6, 5, generator=torch.Generator().manual_seed(0)).double()
    kept = (torch.rand(3, 1, 6, 5, generator=torch.Generator().manual_seed(1)) < 0.5).double()
    torch.testing.assert_close(kept * denoised(x, kept, 0.0, 5), kept * x, atol=1e-12, rtol=0)
    mean = (kept * x).sum((2, 3), keepdim=True) / kept.sum((2, 3), keepdim=True)
    torch.testing.assert_close(denoised(x, kept, 100.0, 4000), mean.expand_as(x), atol=1e-3, rtol=0)


@pytest.mark.parametrize("weight", [0.03, 0.2, 0.6])
def test_rows_agree_with_the_dual_solved_by_scipy_also_where_pixels_are_missing(weight):
    """A missing pixel between two kept ones is free: the kept ones are a shorter row."""
    x = torch.rand(12, generator=torch.Generator().manual_seed(2)).double()
    kept = torch.tensor([1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 1, 1]).double()
    got = denoised(x.view(1, 1, 1, -1), kept.view(1, 1, 1, -1), weight, 3000).flatten()
    want = exact_row(x[kept > 0].numpy(), weight)
    np.testing.assert_allclose(got[kept > 0].numpy(), want, atol=1e-3)


def test_images_are_within_a_thousandth_of_the_best_that_a_general_solver_finds():
    shape, weight = (1, 1, 6, 6), 0.05
    x = torch.rand(shape, generator=torch.Generator().manual_seed(3)).double()
    kept = (torch.rand(shape, generator=torch.Generator().manual_seed(4)) < 0.5).double()

    def smoothed(flat: np.ndarray) -> tuple[float, np.ndarray]:
        z = torch.from_numpy(flat).view(shape).requires_grad_(True)
        down, across = torch.zeros(shape).double(), torch.zeros(shape).double()
        down[:, :, :-1], across[..., :-1] = z.diff(dim=2), z.diff(dim=3)
        value = (kept * (z - x) ** 2).sum() + weight * (down**2 + across**2 + 1e-10).sqrt().sum()
        value.backward()
        assert z.grad is not None
        return float(value.detach()), z.grad.flatten().numpy()

    best = minimize(smoothed, np.full(36, 0.5), jac=True, method="L-BFGS-B", options={"maxiter": 5000, "maxfun": 50000})
    reached = [float(objective(denoised(x, kept, weight, n), x, kept, weight)) for n in (100, 2000)]
    assert reached[1] <= best.fun * 1.001
    assert reached[0] <= best.fun * 1.02


def test_unkept_pixels_leave_no_trace_and_rows_do_not_mix():
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    kept = (torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    other = x * kept + 0.9 * (1 - kept)
    assert torch.equal(denoised(x, kept, 0.03, 30), denoised(other, kept, 0.03, 30))
    torch.testing.assert_close(denoised(x, kept, 0.03, 30)[:1], denoised(x[:1], kept[:1], 0.03, 30))


def test_the_mask_is_random_keyed_and_of_the_share_that_was_asked_for(net, images):
    wrapped = TVMin(n_iter=5, eot=1, draws=1).wrap(net.classifier())
    front = wrapped.module.front.transform
    front.source.noise = Noise(0, "test")
    one, two = front(images.x), front(images.x)
    assert torch.equal(one, two)
    front.source.noise = Noise(1, "test")
    assert not torch.equal(one, front(images.x))
    kept = front.source.rows(images.x).child("kept").uniform((1, 8, 8)) < 0.5
    assert float(kept.float().mean()) == pytest.approx(0.5, abs=0.03)


def test_attacks_through_the_identity_and_through_the_solver(net, images, clean, attacked):
    base = net.classifier()
    few = images.take(torch.arange(32), "first 32")
    for surrogate, fact in (("identity", "surrogate"), ("exact", "full")):
        model = TVMin(0.7, 0.03, 20, surrogate, eot=2, draws=8).wrap(base)
        assert (model.facts.randomized, model.facts.differentiable) == (True, fact)
        before = clean(model, few)
        assert before > 0.5
        assert attacked(model, few, 5) < before - 0.1


@pytest.mark.parametrize("bad", [{"keep": 0.0}, {"keep": 1.1}, {"weight": -1.0}, {"n_iter": 0}, {"surrogate": "soft"}])
def test_bad_parameters_are_refused(bad):
    with pytest.raises(UsageError):
        TVMin(**bad)

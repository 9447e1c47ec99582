"""The error bound of float32 execution against float32 itself."""

import torch

from robustsuite.bounds.rounding import EXACT, FLOAT32, Box


def test_dot_products_of_every_order_stay_within_the_bound():
    generator = torch.Generator().manual_seed(0)
    for terms in (3, 100, 5000):
        scale = torch.logspace(-6, 6, terms)
        w, x = (torch.randn(50, terms, generator=generator) * s for s in (scale, 1 / scale.flip(0)))
        exact = (w.double() * x.double()).sum(1)
        magnitude = (w.double() * x.double()).abs().sum(1)
        bound = FLOAT32.error(terms + 2, magnitude)
        orders = [torch.arange(terms), torch.arange(terms).flip(0), torch.randperm(terms, generator=generator)]
        for order in orders:
            products = (w * x)[:, order]
            serial = torch.zeros(50)
            for term in products.unbind(1):
                serial = serial + term
            for executed in (serial, products.sum(1), torch.einsum("nd,nd->n", w[:, order], x[:, order])):
                assert bool(((executed.double() - exact).abs() <= bound).all())


def test_gamma_is_the_textbook_constant():
    u = 2.0**-24
    error = FLOAT32.error(1000, torch.tensor([1.0], dtype=torch.float64))
    assert 1000 * u / (1 - 1000 * u) <= float(error) <= 1000 * u / (1 - 1000 * u) + 1.1e-9


def test_underflow_and_overflow_are_covered():
    tiny, huge = torch.tensor([1e-45, 3e38]).double()
    assert float(FLOAT32.error(3, tiny)) >= 1e-38
    assert float(FLOAT32.error(3, huge)) == float("inf")
    assert float(FLOAT32.error(2**24, torch.tensor(1.0).double())) == float("inf")


def test_without_rounding_nothing_is_widened():
    box = Box(torch.zeros(3), torch.ones(3))
    assert EXACT.widen(box, 5, torch.ones(3)) is box

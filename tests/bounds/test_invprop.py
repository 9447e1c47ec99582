"""Boxes of counterexamples alone: exact ones lie inside, a closed form, float32 execution, what they are good for."""

import itertools

import pytest
import torch
from torch import nn

from robustsuite.bounds.ascent import Choices
from robustsuite.bounds.bab import Limits, branch_and_bound
from robustsuite.bounds.backward import cancelled
from robustsuite.bounds.crown import Crown
from robustsuite.bounds.graph import trace
from robustsuite.bounds.invprop import Assumption
from robustsuite.bounds.margins import crown_margins, margin_rows
from robustsuite.bounds.region import region
from robustsuite.bounds.rows import Rows, unit_rows

EPS = 0.25


def net(seed, widths=(3, 4, 4), scale=1.0):
    """A chain whose units bend within the image."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(widths[-1], 2))
    with torch.no_grad():
        for layer in (m for m in model if isinstance(m, nn.Linear)):
            layer.weight.normal_().mul_(scale * (3 / layer.in_features) ** 0.5)
            layer.bias.copy_(-layer.weight.sum(1) * 0.5 + 0.3 * scale * torch.randn(layer.out_features))
    return model.eval().requires_grad_(False)


def image(seed, size=3):
    return torch.rand(1, 1, 1, size, generator=torch.Generator().manual_seed(seed)) * 0.4 + 0.3


def assumed(model, x, y, eps=EPS, steps=10, **options):
    """Bounds, the margin's row, boxes where it is not positive, and whether no point is left."""
    crown = Crown(trace(model, tuple(x.shape[1:])), region(x, eps, "Linf"), **options)
    row, _ = margin_rows(torch.tensor([y]), 2, crown.dtype)
    choices = Choices()
    with torch.no_grad():
        crown.lowest(crown.graph.output.name, row, choices)
    crown.ascend(crown.graph.output.name, row, choices, steps)
    boxes, empty = Assumption(crown, crown.graph.output.name, row, choices).boxes()
    return crown, row, boxes, bool(empty)


def hidden(crown):
    """Names of the ReLUs' arguments, from the first on."""
    return [crown.graph.activations(n, crown.values)[0] for n in crown.graph.nodes if n.operator.relaxed]


def test_exact_ranges_lie_inside_and_searches_end_at_the_exact_minimum(extremes):
    smaller = proved = 0
    for seed in range(5):
        model, x = net(seed), image(seed)
        box = region(x, EPS, "Linf").box
        ends = box.lower.flatten(), box.upper.flatten()
        y = int(model(x).argmax())
        least, ranges = extremes(model, *ends, y)
        crown, row, boxes, empty = assumed(model, x, y)
        assert not (empty and least <= 0)
        assert float(crown_margins(crown, torch.tensor([y]), 20)[0, 1 - y]) <= least
        for name, exact in zip(hidden(crown), ranges, strict=True):
            found, plain = boxes.get(name, crown.values[name]), crown.values[name]
            assert bool((found.lower[0] <= exact[0]).all())
            assert bool((found.upper[0] >= exact[1]).all())
            assert bool((found.lower >= plain.lower).all())
            assert bool((found.upper <= plain.upper).all())
            smaller += int(((found.upper - found.lower) < 0.9 * (plain.upper - plain.lower)).sum())
        root, _ = branch_and_bound(crown, crown.graph.output.name, row, Limits(domains=1, rounds=4))
        bound, _ = branch_and_bound(crown, crown.graph.output.name, row, Limits(domains=2000, steps=10))
        if least <= 0:
            assert root <= least + 1e-9
            assert least - 0.02 * (1 + abs(least)) <= bound <= least + 1e-9
        elif least > 1e-3:
            assert bound == float("inf")
            proved += 1
    assert smaller >= 5
    assert proved >= 1


def test_closed_form():
    # f = relu(a - 1/2) + relu(b - 1/2) - 1/5 on the unit square. With the lower lines a - 1/2 and 0, f <= 0 says
    # a <= 7/10 at the weight 1; no weight says more of b, nor that a is large.
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).requires_grad_(False)
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(2))
        model[1].bias.fill_(-0.5)
        model[3].weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
        model[3].bias.copy_(torch.tensor([0.0, 0.2]))
    crown = Crown(trace(model, (1, 1, 2)), region(torch.full((1, 1, 1, 2), 0.5), 0.5, "Linf"))
    (source,) = hidden(crown)
    (relu,) = (n.name for n in crown.graph.nodes if n.operator.relaxed)
    row, _ = margin_rows(torch.tensor([0]), 2, torch.float32)
    choices = Choices({relu: torch.tensor([[1.0, 0.0]])})
    boxes, empty = Assumption(crown, crown.graph.output.name, row, choices).boxes()
    assert not bool(empty)
    assert boxes[source].lower[0].tolist() == pytest.approx([-0.5, -0.5], abs=1e-5)
    assert boxes[source].upper[0].tolist() == pytest.approx([0.2, 0.5], abs=1e-5)


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_whatever_float32_executes_is_inside(scale):
    points = 0
    for seed, y in itertools.product(range(4), range(2)):
        model, x = net(seed, (3, 12, 12), scale), image(seed)
        crown, _, boxes, empty = assumed(model, x, y)
        box = region(x, EPS, "Linf").box
        lower, upper = box.lower.float(), box.upper.float()
        some = lower + (upper - lower) * torch.rand(20_000, *x.shape[1:], generator=torch.Generator().manual_seed(seed))
        logits = model(some)
        below = logits[:, y].double() <= logits[:, 1 - y].double()
        points += int(below.sum())
        assert not (empty and bool(below.any()))
        value = some[below].clamp(lower, upper)
        layers = list(model)
        for depth, name in zip((2, 4), hidden(crown), strict=True):
            executed = nn.Sequential(*layers[:depth])(value).double()
            found = boxes.get(name, crown.values[name])
            assert bool((executed >= found.lower).all())
            assert bool((executed <= found.upper).all())
    assert points > 1000


def test_an_absurd_assumption_has_no_points_and_a_true_one_has_its_own():
    nets = [(net(seed), image(seed)) for seed in range(8)]
    assert any(assumed(model, x, int(model(x).argmax()), eps=0.12)[3] for model, x in nets)
    model, x = nets[3]
    y = int(model(x).argmax())
    crown, _, boxes, empty = assumed(model, x, 1 - y, eps=0.05)  # the other class wins everywhere: nothing is said
    assert not empty
    for name, box in boxes.items():
        assert torch.allclose(box.upper - box.lower, crown.values[name].upper - crown.values[name].lower, rtol=0.05)


def test_rounds_prove_what_ascent_does_not():
    counts = []
    for rounds in (0, 4):
        limits, proved = Limits(domains=1, steps=10, rounds=rounds), 0
        for seed in range(30):
            model, x = net(seed, (3, 16, 16)), image(seed)
            y = int(model(x).argmax())
            crown = Crown(trace(model, tuple(x.shape[1:])), region(x, 0.12, "Linf"))
            row, _ = margin_rows(torch.tensor([y]), 2, torch.float32)
            proved += branch_and_bound(crown, crown.graph.output.name, row, limits)[0] > 0
        counts.append(proved)
    assert counts[1] >= counts[0] + 3


def test_coefficients_that_meet_are_charged_for_what_may_cancel():
    one = Rows(torch.tensor([0, 0]), torch.tensor([[1.0, -2.0, 0.0], [0.5, 0.0, 0.0]]))
    other = Rows(torch.tensor([0, 0]), torch.tensor([[-1.0, 0.25, 9.0], [0.0, 3.0, 0.0]]))
    size = torch.tensor([[2.0, 4.0, 8.0]], dtype=torch.float64)
    assert torch.as_tensor(cancelled(one, other, size)).tolist() == [16 * 2.0**-24 * (1 * 2 + 0.25 * 4), 0.0]
    double = Rows(one.owner, one.coeff.double())
    assert cancelled(double, Rows(one.owner, other.coeff.double()), size) == 0.0
    # Windows that lie elsewhere meet in the whole image.
    at = unit_rows(torch.tensor([0]), torch.tensor([5]), torch.tensor([1]), torch.Size((1, 2, 4)), torch.float32)
    whole = Rows(torch.tensor([0]), torch.full((1, 1, 2, 4), -0.5))
    assert float(cancelled(at, whole, torch.full((1, 1, 2, 4), 3.0))) == 16 * 2.0**-24 * 0.5 * 3

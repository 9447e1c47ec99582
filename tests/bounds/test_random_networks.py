"""Random small networks of every operator, random boxes: no float32 output ever leaves the bounds."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robustsuite.bounds.graph import trace
from robustsuite.bounds.ibp import ibp, ibp_margins


def boxes(shape, eps, seed):
    """Two boxes in [0,1] whose ends are float32 numbers, as float32."""
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(seed))
    return (x - eps).clamp(min=0), (x + eps).clamp(max=1)


def inside(model, lower, upper, seed, count=200):
    """Points of each box ``[2 count + 6 a box, ...]``: random ones, corners, and corners uphill for every logit."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(2, 2 * count, *lower.shape[1:], generator=generator)
    share[:, count:] = share[:, count:].round()
    points = lower.unsqueeze(1) + (upper - lower).unsqueeze(1) * share
    center = ((lower + upper) / 2).requires_grad_()
    uphill = [torch.autograd.grad(k.sum(), center, retain_graph=True)[0] for k in model(center).unbind(1)]
    corners = [torch.where(sign * g > 0, upper, lower) for g in uphill for sign in (1, -1)]
    points = torch.cat([points, torch.stack(corners, 1)], 1)
    return points.maximum(lower.unsqueeze(1)).minimum(upper.unsqueeze(1))


SETTINGS = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@SETTINGS
@given(st.data(), st.sampled_from([0.0, 1e-6, 0.02, 0.5]), st.integers(0, 999))
def test_outputs_of_random_and_corner_points_stay_within_the_bounds(random_network, data, eps, seed):
    model, shape = random_network(lambda items: data.draw(st.sampled_from(items)))
    lower, upper = boxes(shape, eps, seed)
    graph, y = trace(model, shape), torch.tensor([seed % 3, (seed + 1) % 3])
    low, high = ibp(graph, lower, upper, guard=True)
    margins = ibp_margins(graph, lower, upper, y, guard=True)
    points = inside(model, lower, upper, seed)
    with torch.no_grad():
        for row, batch in enumerate(points):
            logits = model(batch).double()
            assert bool((logits >= low[row]).all())
            assert bool((logits <= high[row]).all())
            assert bool((logits[:, y[row]].unsqueeze(1) - logits >= margins[row]).all())


@SETTINGS
@given(st.data(), st.integers(0, 999))
def test_a_point_has_its_own_logits_and_a_wider_box_wider_bounds(random_network, data, seed):
    model, shape = random_network(lambda items: data.draw(st.sampled_from(items)))
    graph = trace(model, shape)
    previous = None
    for eps in (0.0, 0.01, 0.1):
        lower, upper = boxes(shape, eps, seed)
        bounds = ibp(graph, lower.double(), upper.double(), guard=True)
        if previous is None:
            with torch.no_grad():
                size = 1 + model(lower).abs().amax()
            assert float((bounds[1] - bounds[0]).amax() / size) < 0.05  # guarded, yet no wider than it has to be
        else:
            slack = 1e-6 * (1 + bounds[0].abs() + bounds[1].abs())
            assert bool((bounds[0] <= previous[0] + slack).all())
            assert bool((bounds[1] >= previous[1] - slack).all())
        previous = bounds


def test_every_operator_gets_drawn(random_network):
    seen = set()
    for seed in range(150):
        model, shape = random_network(seed)
        seen |= {type(node.operator).__name__ for node in trace(model, shape).nodes}
    assert seen >= {
        *("ReLU", "LeakyReLU", "Hardtanh", "Clamp", "Sigmoid", "Tanh", "SiLU", "GELU", "Softplus", "ELU"),
        *("Linear", "Conv2d", "BatchNorm", "AvgPool2d", "AdaptiveAvgPool2d", "MaxPool2d", "AdaptiveMaxPool2d", "Mean"),
        *("Add", "Sub", "Neg", "Mul", "Div", "Concat", "Flatten", "View", "Identity"),
        *("Permute", "Transpose", "Slice", "Squeeze", "Unsqueeze", "Unflatten", "Pad", "Upsample", "PixelUnshuffle"),
    }


def test_a_seed_is_one_network(random_network):
    (one, shape), (other, _) = random_network(7), random_network(7)
    x = torch.rand(3, *shape)
    assert torch.equal(one(x), other(x))

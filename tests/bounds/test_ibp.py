"""Interval bounds: closed forms, soundness on random networks as float32 executes them, real checkpoints."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robustsuite.bounds.graph import trace
from robustsuite.bounds.ibp import ibp, ibp_margins, input_box, smallest_margin
from robustsuite.models.cnn_a import cnn_a
from robustsuite.models.normalize import with_normalization
from robustsuite.threat import ThreatModel

SHAPE = (2, 5, 5)


class Residual(nn.Module):
    def __init__(self, inner, sign=1):
        super().__init__()
        self.inner, self.sign = inner, sign

    def forward(self, x):
        return x + self.inner(x) if self.sign > 0 else 0.3 * x - self.inner(x) * -1.7


def activation(kind):
    return {"relu": nn.ReLU, "leaky": lambda: nn.LeakyReLU(0.1), "inplace": lambda: nn.ReLU(inplace=True)}[kind]()


def network(blocks, kind, scale, seed):
    """Conv blocks as drawn, then a linear head; weights of size ``scale`` and random batch statistics."""
    layers: list[nn.Module] = [nn.Conv2d(2, 4, 3, padding=1), activation(kind)]
    for block in blocks:
        layers += {
            "conv": lambda: [nn.Conv2d(4, 4, 3, padding=1, groups=2), activation(kind)],
            "bn": lambda: [nn.Conv2d(4, 4, 3, padding=2, dilation=2), nn.BatchNorm2d(4), activation(kind)],
            "residual": lambda: [Residual(nn.Sequential(nn.BatchNorm2d(4), activation(kind), nn.Conv2d(4, 4, 1)))],
            "difference": lambda: [Residual(nn.Sequential(nn.Conv2d(4, 4, 1), activation(kind)), -1)],
            "max": lambda: [nn.MaxPool2d(2, 1)],
            "avg": lambda: [nn.AvgPool2d(2, 1, count_include_pad=False, padding=1)],
            "dropout": lambda: [nn.Dropout(0.3)],
        }[block]()
    layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 6), activation(kind), nn.Linear(6, 3)]
    model = with_normalization(nn.Sequential(*layers), [0.4, 0.5], [0.2, 0.3]).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                value = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(value.abs() + 0.1 if name.endswith("running_var") else value * scale)
    return model


def points_in(lower, upper, count, generator):
    """Random points and corners of one box, float32, the ends of the box themselves rounded into it."""
    low, high = lower.float(), upper.float()
    low = torch.where(low.double() < lower, torch.nextafter(low, torch.ones_like(low)), low)
    high = torch.where(high.double() > upper, torch.nextafter(high, -torch.ones_like(high)), high)
    uniform = torch.rand(count, *low.shape[1:], generator=generator)
    uniform[count // 2 :] = uniform[count // 2 :].round()
    return torch.minimum(torch.maximum(low + (high - low) * uniform, low), high)


BLOCKS = st.lists(st.sampled_from(["conv", "bn", "residual", "difference", "max", "avg", "dropout"]), max_size=4)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    BLOCKS,
    st.sampled_from(["relu", "leaky", "inplace"]),
    st.sampled_from([0.1, 1.0, 1e4]),
    st.sampled_from([0.0, 1e-6, 0.03, 0.5]),
    st.integers(0, 99),
)
def test_no_point_of_the_box_ever_leaves_the_bounds(blocks, kind, scale, eps, seed):
    model = network(blocks, kind, scale, seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(1, *SHAPE, generator=generator)
    y = torch.tensor([seed % 3])
    box = (x.double() - eps).clamp(min=0), (x.double() + eps).clamp(max=1)
    graph = trace(model, SHAPE)
    lower, upper = ibp(graph, *box, guard=True)
    margins = ibp_margins(graph, *box, y, guard=True)
    with torch.no_grad():
        logits = model(points_in(*box, 10_000, generator)).double()
    assert bool((logits >= lower).all())
    assert bool((logits <= upper).all())
    assert bool((logits[:, y] - logits >= margins).all())


def test_one_affine_layer_is_exact():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    x, eps = torch.rand(7, 3, 2, 2).double(), 0.1
    lower, upper = ((x - eps).clamp(min=0), (x + eps).clamp(max=1))
    got = ibp(trace(model, (3, 2, 2)), lower, upper)
    w, b = model[1].weight.double(), model[1].bias.double()
    low, high = lower.flatten(1), upper.flatten(1)
    torch.testing.assert_close(got[0], low @ w.clamp(min=0).T + high @ w.clamp(max=0).T + b)
    torch.testing.assert_close(got[1], high @ w.clamp(min=0).T + low @ w.clamp(max=0).T + b)
    y = torch.arange(7) % 4
    margins = ibp_margins(trace(model), lower, upper, y)
    difference = w[y].unsqueeze(1) - w  # the margin is affine too: its minimum is at a corner
    corner = torch.where(difference > 0, low.unsqueeze(1), high.unsqueeze(1))
    torch.testing.assert_close(margins, (difference * corner).sum(2) + (b[y].unsqueeze(1) - b))


def test_two_layers_by_hand():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -1.0], [2.0, 1.0]]))
        model[0].bias.copy_(torch.tensor([0.0, -1.0]))
        model[2].weight.copy_(torch.tensor([[1.0, 1.0], [-1.0, 2.0]]))
        model[2].bias.copy_(torch.tensor([0.5, 0.0]))
    lower, upper = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.5]])
    # Hidden: z1 in [-0.5, 1], z2 in [-1, 1.5]; after the ReLU [0, 1] and [0, 1.5].
    low, high = ibp(trace(model, (2,)), lower, upper)
    assert low.tolist() == [[0.5, -1.0]]
    assert high.tolist() == [[3.0, 3.0]]
    # Margin of class 0: 2 h1 - h2 + 0.5 in [-1, 2.5]; the difference of the bounds alone would give 0.5 - 3 = -2.5.
    assert ibp_margins(trace(model), lower, upper, torch.tensor([0])).tolist() == [[0.0, -1.0]]
    assert ibp_margins(trace(model), lower, upper, torch.tensor([1])).tolist() == [[-2.5, 0.0]]


def test_merged_margins_are_never_looser_and_sometimes_tighter():
    model = network(["conv", "residual"], "relu", 0.5, 3)
    graph, y = trace(model, SHAPE), torch.arange(20) % 3
    box = input_box(torch.rand(20, *SHAPE), 0.05)
    low, high = ibp(graph, *box, guard=True)
    apart = (low.gather(1, y.view(-1, 1)) - high).scatter(1, y.view(-1, 1), 0)
    merged = ibp_margins(graph, *box, y, guard=True)
    assert bool((merged >= apart - 1e-12 * apart.abs()).all())
    assert float((merged - apart).amax()) > 0.1
    # A network whose last operator is no linear layer gets the difference of the bounds.
    scaled = nn.Sequential(model, nn.ReLU())
    low, high = ibp(trace(scaled), *box, guard=True)
    got = ibp_margins(trace(scaled), *box, y, guard=True)
    torch.testing.assert_close(got, (low.gather(1, y.view(-1, 1)) - high).scatter(1, y.view(-1, 1), 0))


def test_bounds_widen_with_eps_and_meet_the_answer_at_zero():
    model = network(["bn", "max", "residual"], "leaky", 0.4, 5)
    graph, x = trace(model, SHAPE), torch.rand(10, *SHAPE)
    previous = None
    for eps in (0.0, 0.001, 0.01, 0.1, 1.0):
        lower, upper = ibp(graph, *input_box(x, eps), guard=True)
        if previous is not None:
            assert bool((lower <= previous[0]).all())
            assert bool((upper >= previous[1]).all())
        previous = lower, upper
    lower, upper = ibp(graph, x, x, guard=True)
    with torch.no_grad():
        logits = model(x)
    assert bool((lower <= logits).all())
    assert bool((logits <= upper).all())
    assert float((upper - lower).amax()) < 1e-3


def test_execution_in_float32_leaves_the_exact_interval_but_not_the_guarded_one():
    # Large weights that cancel: the real result is the small remainder, and float32 gets it wrong by more than that.
    generator = torch.Generator().manual_seed(1)
    half = torch.randn(8, 2000, generator=generator) * 1e5
    model = nn.Sequential(nn.Linear(4000, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.cat([half, -half], 1))
        model[2].weight.copy_(torch.randn(2, 8, generator=generator) * 100)
    part = torch.rand(50, 2000, generator=generator)
    x = torch.cat([part, part + 1e-6 * torch.rand(50, 2000, generator=generator)], 1).clamp(0, 1)
    graph = trace(model, (4000,))
    with torch.no_grad():
        logits = model(x).double()
    lower, upper = (bound.detach() for bound in ibp(graph, x.double(), x.double()))
    outside = (logits < lower - 1e-9 * lower.abs()) | (logits > upper + 1e-9 * upper.abs())
    assert float(outside.double().mean()) > 0.5
    lower, upper = ibp(graph, x, x, guard=True)
    assert bool(((lower <= logits) & (logits <= upper)).all())


class Elementwise(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x).flatten(1)


def batch_norm():
    layer = nn.BatchNorm2d(2)
    layer.running_mean.copy_(torch.tensor([5.0, -3.0]))
    layer.running_var.copy_(torch.tensor([0.3, 0.7]))
    return nn.Sequential(layer, nn.Flatten())


@pytest.mark.parametrize(
    "model",
    [
        batch_norm(),
        Elementwise(lambda x: x + 0.1),
        Elementwise(lambda x: x - x * 3),
        Elementwise(lambda x: x * torch.tensor(0.7)),
        Elementwise(lambda x: x / 3),
        Elementwise(lambda x: F.leaky_relu(-x, 0.3)),
        Elementwise(lambda x: x.mean((2, 3))),
        Elementwise(lambda x: F.avg_pool2d(x, 3)),
        Elementwise(lambda x: F.adaptive_avg_pool2d(x, 2)),
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten()),
        nn.Sequential(nn.Flatten(), nn.Linear(50, 3)),
    ],
    ids=["batchnorm", "add", "sub", "mul", "div", "leaky", "mean", "avgpool", "adaptive", "conv", "linear"],
)
def test_each_operator_is_widened_by_what_float32_does_to_it(model):
    torch.manual_seed(0)
    x = torch.rand(200, *SHAPE)
    graph = trace(model.eval(), SHAPE)
    with torch.no_grad():
        executed = model(x).double()
        exact = ibp(graph, x.double(), x.double())
    lower, upper = ibp(graph, x, x, guard=True)
    slack = 1e-12 * exact[1].abs()
    assert bool(((executed < exact[0] - slack) | (executed > exact[1] + slack)).any())
    assert bool(((lower <= executed) & (executed <= upper)).all())
    assert float((upper - lower).amax()) < 1e-3  # and by not much more
    y = torch.arange(200) % executed.shape[1]
    margins = ibp_margins(graph, x, x, y, guard=True)
    assert bool((executed.gather(1, y.view(-1, 1)) - executed >= margins).all())
    plain = ibp_margins(graph, x.double(), x.double(), y)
    assert bool((margins.scatter(1, y.view(-1, 1), -1) < plain).all())


def test_overflow_and_nan_certify_nothing():
    y = torch.tensor([0])
    for value in (1e38, float("nan"), float("inf")):
        model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        with torch.no_grad():
            model[0].weight.fill_(value)
            model[2].weight.copy_(torch.tensor([[1e6, 1e6], [-1e6, -1e6]]))
        margins = ibp_margins(trace(model, (2,)), torch.ones(1, 2), torch.ones(1, 2), y, guard=True)
        assert not bool((smallest_margin(margins, y) > 0).any())


def test_the_input_box_holds_what_the_threat_model_lets_pass():
    x = torch.rand(50, *SHAPE)
    for eps in (0.0, 8 / 255, 0.3):
        threat = ThreatModel.parse(f"Linf:{eps}")
        lower, upper = input_box(x, eps)
        reach = eps * (1 + 1e-6) + 0.9e-7
        for x_adv in ((x + reach).clamp(0, 1), (x - reach).clamp(0, 1)):
            passed = threat.contains(x, x_adv)
            assert bool(((lower <= x_adv) & (x_adv <= upper)).flatten(1).all(1)[passed].all())
        assert float(lower.min()) >= 0
        assert float(upper.max()) <= 1
    each = input_box(x, torch.linspace(0, 1, 50))
    assert torch.equal(each[0][7], input_box(x[7:8], float(torch.linspace(0, 1, 50)[7]))[0][0])


def test_bounds_can_be_trained_until_they_certify():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    means = torch.rand(3, 1, 4, 4)
    y = torch.arange(60) % 3
    x = (means[y] + 0.03 * torch.randn(60, 1, 4, 4)).clamp(0, 1)
    eps, graph = 0.05, trace(model, (1, 4, 4))
    box = (x - eps).clamp(min=0), (x + eps).clamp(max=1)

    def certified():
        return int((smallest_margin(ibp_margins(graph, *input_box(x, eps), y, guard=True), y) > 0).sum())

    before = certified()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    model.train()
    for step in range(100):
        loss = F.cross_entropy(-ibp_margins(graph, *box, y), y)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in model.parameters())
        optimizer.step()
    assert before < 30
    assert certified() >= 58


def test_the_guarded_bounds_carry_no_graph_and_the_others_do():
    model = network([], "relu", 0.5, 0).requires_grad_(True)
    graph, x, y = trace(model, SHAPE), torch.rand(2, *SHAPE), torch.tensor([0, 1])
    assert ibp_margins(graph, x, x, y).requires_grad
    guarded = ibp_margins(graph, x, x, y, guard=True)
    assert not guarded.requires_grad
    assert guarded.dtype == torch.float64
    assert ibp_margins(graph, x, x, y).dtype == torch.float32


def sdp(shared_data, name):
    x, y = (np.load(shared_data / name / f"sdp_{part}.npy") for part in "xy")
    return torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(y)


def published(shared_data, name, shape):
    model = cnn_a(10, shape)
    state = torch.load(shared_data / "checkpoints" / name, weights_only=True, map_location="cpu")
    model.load_state_dict(state)
    return model.eval()


def test_published_mnist_network_has_no_interval_certificate(shared_data):
    x, y = sdp(shared_data, "mnist")
    model = published(shared_data, "mnist_cnn_a_adv.model", (1, 28, 28))
    graph = trace(model, (1, 28, 28))
    assert int((smallest_margin(ibp_margins(graph, *input_box(x, 0.3), y, guard=True), y) > 0).sum()) == 0
    # At a radius where bounds do hold, they hold for every image's own answer, and certify only what is right.
    margins = smallest_margin(ibp_margins(graph, *input_box(x, 0.002), y, guard=True), y)
    with torch.no_grad():
        right = model(x).argmax(1) == y
    assert int((margins > 0).sum()) > 100
    assert bool(right[margins > 0].all())


def test_no_image_with_a_known_adversarial_example_is_certified(shared_data):
    import gzip

    raw = gzip.decompress((shared_data / "mnist" / "t10k-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((shared_data / "mnist" / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:]
    images = torch.from_numpy(np.frombuffer(raw, np.uint8).copy()).view(-1, 1, 28, 28).float() / 255
    targets = torch.from_numpy(np.frombuffer(labels, np.uint8).copy()).long()
    hard = json.loads((shared_data / "mnist" / "hard_indices.json").read_text())
    from robustsuite.models.cnn_a import madry_tiny

    checkpoints = {
        "mnist_cnn_a_adv": ("mnist_cnn_a_adv.model", cnn_a),
        "mnist_madry_tiny": ("mnist_madry_tiny.pt", madry_tiny),
    }
    for name, (file, architecture) in checkpoints.items():
        model = architecture(10, (1, 28, 28))
        state = torch.load(shared_data / "checkpoints" / file, weights_only=True, map_location="cpu")
        model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
        x, y = images[hard[name]], targets[hard[name]]
        with torch.no_grad():
            assert bool((model(x).argmax(1) == y).all())
        margins = ibp_margins(trace(model.eval(), (1, 28, 28)), *input_box(x, 0.3), y, guard=True)
        assert not bool((smallest_margin(margins, y) > 0).any())

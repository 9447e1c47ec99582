import numpy as np
import pytest
import torch
from scipy import stats

from robustsuite.attacks.square import Square
from robustsuite.attacks.square_windows import HALF, SIGNS, bumps, shares
from robustsuite.errors import UsageError
from robustsuite.models.classifier import Classifier, margins
from robustsuite.noise import Noise, fork_global
from robustsuite.threat import ThreatModel

LINF, L2, L1 = ThreatModel.parse("Linf:0.1"), ThreatModel.parse("L2:1"), ThreatModel.parse("L1:2")


def test_the_published_schedule():
    """p halves after proposals 10, 50, 200, 500, 1000, 2000, 4000, (6000, 8000)."""
    found = shares(10_000, 0.8, rescale=False)
    halvings = [i for i in range(1, 10_000) if found[i] != found[i - 1]]
    assert halvings == [11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001]
    assert [found[i] for i in (0, 10, 11, 51, 9999)] == [0.8, 0.8, 0.4, 0.2, 0.8 / 512]
    assert shares(5000, 0.8, rescale=False) == found[:5000]
    stretched = shares(1000, 0.8, rescale=True)
    assert [i for i in range(1, 1000) if stretched[i] != stretched[i - 1]] == [2, 6, 21, 51, 101, 201, 401, 601, 801]


def sides(height: int, width: int, threat: ThreatModel, n_queries: int = 5000) -> list[int]:
    table = Square(n_queries=n_queries)._schedule(torch.zeros(1, 1, height, width), threat).sides.tolist()
    return [side for i, side in enumerate(table) if i == 0 or side != table[i - 1]]


def test_sides_on_cifar_and_others():
    assert sides(32, 32, LINF) == [29, 20, 14, 10, 7, 5, 4, 3]
    assert sides(32, 32, L2) == [29, 21, 15, 11, 7, 5, 3]  # odd, at least 3
    assert sides(2, 40, LINF)[0] == 2
    assert sides(1, 1, L2) == [1]


@pytest.mark.reference
@pytest.mark.parametrize("rescale", [False, True])
def test_the_schedule_is_that_of_the_reference(rescale):
    package = pytest.importorskip("pyautoattack.square")
    other = package.SquareAttack(None, n_queries=3000, eps=0.1, p_init=0.7, resc_schedule=rescale)
    assert shares(3000, 0.7, rescale) == [other.p_selection(i) for i in range(3000)]


@pytest.mark.reference
@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 8, 13, 20, 29])
def test_bumps_are_those_of_the_reference(side):
    package = pytest.importorskip("pyautoattack.square")
    other = package.SquareAttack(None, norm="L2", eps=0.1, device="cpu")
    with fork_global(0, "bumps"):
        theirs = [other.eta(side) for _ in range(20)]  # turned at random
    for turned in (bumps(side), bumps(side).T):
        assert any(torch.allclose(turned, pattern, atol=1e-6) for pattern in theirs)


@pytest.mark.parametrize("side", [2, 3, 5, 10, 29])
def test_bumps_have_norm_one_and_two_signs(side):
    pattern = bumps(side)
    assert pattern.norm().item() == pytest.approx(1)
    assert (pattern[: side // 2] > 0).all()
    assert (pattern[side // 2 :] < 0).all()


def plans(count: int, shape: tuple[int, ...], first: int, threat: ThreatModel, lane: int = 0):
    attack, ids = Square(), torch.arange(count)
    x, zero = torch.zeros(count, *shape), torch.zeros_like(ids)
    noise = Noise(0, "square").at(ids)
    return attack, attack._plans(noise, x, zero + lane, zero + first, threat)


def test_windows_are_uniform_over_all_places_for_each_example():
    attack, plan = plans(3000, (3, 12, 9), 4990, LINF)  # side 1 or 2 at the end: down to the last row and column
    side = int(plan[0, 0, HALF] * 2)
    corners = (plan[:, :, :4] - (side - 1) / 2).round().long()
    for axis, extent in enumerate((12, 9, 12, 9)):
        counts = np.bincount(corners[:, :9, axis].flatten().numpy(), minlength=extent - side + 1)
        assert len(counts) == extent - side + 1
        assert stats.chisquare(counts).pvalue > 1e-6
    signs = plan[:, :9, SIGNS:].flatten()
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert stats.binomtest(int((signs > 0).sum()), signs.numel()).pvalue > 1e-6
    del attack


def test_plans_depend_on_example_lane_and_proposal_alone():
    _, base = plans(50, (3, 12, 9), 100, LINF)
    _, later = plans(50, (3, 12, 9), 107, LINF)
    assert torch.equal(base[:, 7:], later[:, :-7])
    _, fewer = plans(20, (3, 12, 9), 100, LINF)
    assert torch.equal(base[:20], fewer)
    _, lane = plans(50, (3, 12, 9), 100, LINF, lane=1)
    for other in (lane, base.roll(1, 0), base.roll(1, 1)):
        assert (other[:, :, :2] != base[:, :, :2]).any(2).float().mean() > 0.8


class Free(torch.nn.Module):
    """A model that nothing fools, whose margin is the first pixel's distance from white."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        near = x.flatten(1)[:, 0]
        return torch.stack([2 - near, near * 0], 1)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 5), (2, 4, 11), (1, 1, 6), (4, 2, 2)])
@pytest.mark.parametrize("threat", [LINF, L2, L1], ids=str)
def test_proposals_change_one_window_and_are_kept_when_better(shape, threat):
    model = Classifier(Free(), num_classes=2, input_shape=shape)
    ids = torch.arange(6)
    x = torch.rand(6, *shape, generator=torch.Generator().manual_seed(0))
    y, noise, attack = torch.zeros_like(ids), Noise(0, "s").at(ids), Square(n_queries=150)
    state = attack.init(x, y, model.logits(x), y, threat, noise)
    assert threat.contains(x, state.x_adv).all()
    best = torch.full((6,), float("inf"))
    for i in range(150):
        best = best.minimum(margins(model.logits(state.x_adv), y))
        state = attack.step(model, state, threat, noise)
        assert torch.equal(state.best, best)
        assert torch.equal(margins(model.logits(state.x_best), y), best)
        assert threat.contains(x, state.x_adv).all()
        if threat.norm == "Linf":  # what changed fits into the window of this proposal
            side = int(attack._schedule(x, threat).sides[i])
            changed = (state.x_adv != state.x_best).any(1)
            for row in changed:
                where = row.nonzero()
                if len(where):
                    assert (where.amax(0) - where.amin(0)).max() < side
    assert best.mean() < margins(model.logits(x), y).mean()


def test_l2_spends_the_whole_budget_where_the_box_allows():
    ids = torch.arange(20)
    x = torch.full((20, 3, 16, 16), 0.5)
    model = Classifier(Free(), num_classes=2, input_shape=(3, 16, 16))
    y, noise, attack = torch.zeros_like(ids), Noise(0, "s").at(ids), Square(n_queries=40)
    state = attack.init(x, y, model.logits(x), y, L2, noise)
    for _ in range(40):
        assert torch.allclose(L2.distance(x, state.x_adv), torch.ones(20, dtype=torch.float64), atol=2e-5)
        state = attack.step(model, state, L2, noise)


def test_linf_start_is_stripes():
    x = torch.full((4, 3, 6, 5), 0.5)
    ids = torch.arange(4)
    start = Square().init(x, ids * 0, x, ids * 0, LINF, Noise(0, "s").at(ids)).x_adv - x
    assert torch.allclose(start.abs(), torch.full_like(x, 0.1), atol=1e-6)
    assert torch.equal(start, start[:, :, :1].expand_as(start))
    assert len(start[:, :, 0].unique()) == 2


@pytest.mark.parametrize(
    "settings", [{"n_queries": 0}, {"n_queries": 2**20}, {"restarts": 0}, {"p_init": 0.0}, {"p_init": 1.5}]
)
def test_senseless_settings_are_usage_errors(settings):
    with pytest.raises(UsageError, match="square"):
        Square(**settings)


def test_too_many_channels_are_a_usage_error():
    x, y = torch.rand(1, 33, 4, 4), torch.zeros(1, dtype=torch.long)
    with pytest.raises(UsageError, match="32 channels"):
        Square().init(x, y, x, y, LINF, Noise(0, "s").at(y))


def test_queries_are_counted_to_the_one():
    model = Classifier(Free(), num_classes=2, input_shape=(1, 4, 4))
    x, ids = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(1)), torch.arange(3)
    Square(n_queries=25).run(model, x, ids * 0, LINF, Noise(0, "s").at(ids))
    assert model.passes.forward == 3 * (1 + 1 + 25)  # clean logits, the start, the proposals
    assert model.passes.backward == 0

"""Looking ahead changes how many passes the Square attack takes, and no bit of what it finds."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from robustsuite.attacks.base import State, Stepper, Teams
from robustsuite.attacks.square import Square, SquareState
from robustsuite.evaluation.engine import Engine, Finished
from robustsuite.evaluation.judge import Judge, Verdict
from robustsuite.models.classifier import Classifier
from robustsuite.noise import ExampleNoise, Noise
from robustsuite.threat import ThreatModel

SHAPE, SLOTS = (3, 8, 8), 12
# At these radii about half of the random images fall.
THREATS = {"Linf": "Linf:0.04", "L2": "L2:0.4", "L1": "L1:3"}
ACTIVE = {"one idle slot": [0, *range(2, 12)], "half": [1, 3, 4, 6, 8, 11], "uneven": [0, 1, 5, 7, 10], "one": [7]}


@dataclass(frozen=True)
class Plain(Stepper):
    """Square without the door for looking ahead."""

    square: Square

    @property
    def budget(self) -> int:
        return self.square.budget

    def lanes(self, num_classes: int) -> int:
        return self.square.lanes(num_classes)

    def init(self, x, y, logits, lane, threat: ThreatModel, noise: ExampleNoise) -> State:
        return self.square.init(x, y, logits, lane, threat, noise)

    def step(self, model: Classifier, state: State, threat: ThreatModel, noise: ExampleNoise) -> State:
        return self.square.step(model, state, threat, noise)


@dataclass
class Case:
    attack: Square
    model: Classifier
    x: Tensor
    threat: ThreatModel

    def start(self, muted: Tensor | None) -> SquareState:
        ids = torch.arange(len(self.x))
        y = self.model.logits(self.x).argmax(1)
        state = self.attack.init(self.x, y, y, ids * 0, self.threat, Noise(0, "s").at(ids))
        state.muted = state.muted if muted is None else muted.clone()
        return state

    def alone(self, muted: Tensor | None = None) -> SquareState:
        state = self.start(muted)
        while not state.done.all():
            state = self.attack.step(self.model, state, self.threat, Noise(0, "s").at(state.ids))
        return state

    def in_teams(self, active: list[int], muted: Tensor | None = None) -> tuple[SquareState, int]:
        """The outcome, and how many passes it took."""
        teams = Teams.of([slot in active for slot in range(len(self.x))], torch.device("cpu"))
        state = self.start(muted).select(teams.first)
        noise, passes = Noise(0, "s").at(state.ids), 0
        state = self.attack.send_ahead(state, self.threat, noise, teams)
        while not state.done[active].all():
            state = self.attack.step_ahead(self.model, state, self.threat, noise, teams)
            passes += 1
        return state, passes


def assert_same(a: State, b: State, slots: list[int]) -> None:
    for name in ("ids", "it", "fooled", "done", "x_adv", "x_best", "best"):
        assert torch.equal(getattr(a, name)[slots], getattr(b, name)[slots]), name


@pytest.fixture
def case(cnn, images):
    def build(norm: str, n_queries: int) -> Case:
        threat = ThreatModel.parse(THREATS[norm])
        return Case(Square(n_queries=n_queries), cnn(shape=SHAPE), images(SLOTS, SHAPE), threat)

    return build


@pytest.mark.parametrize("active", ACTIVE.values(), ids=ACTIVE)
@pytest.mark.parametrize("norm", THREATS)
def test_every_slot_ends_as_it_does_alone(case, norm, active):
    """With budgets that end among the helpers, and with more steps and proposals than one chunk of plans holds."""
    for n_queries in (1, 2, 5, 180, 500):
        problem = case(norm, n_queries)
        alone = problem.alone()
        state, passes = problem.in_teams(active)
        assert_same(alone, state, active)
        assert passes <= int(alone.it[active].max())
    if len(active) > 1:
        assert 0 < int(alone.fooled[active].sum()) < len(active)


@pytest.mark.parametrize("norm", THREATS)
def test_refused_candidates_are_passed_over_among_the_helpers_too(case, norm):
    problem, active = case(norm, 150), ACTIVE["half"]
    first = problem.alone()
    muted = (first.it - 1).masked_fill(~first.fooled, -1)
    again = problem.alone(muted)
    assert (again.it > first.it)[active].any()
    assert_same(again, problem.in_teams(active, muted)[0], active)


@dataclass
class Picky(Judge):
    """Refuses every other candidate, by its bits."""

    inner: Judge
    immediate: bool

    def __call__(self, x: Tensor, y: Tensor, ids: Tensor, x_adv: Tensor) -> list[Verdict]:
        good = (x_adv.flatten(1)[:, :9].sum(1) * 1e5).long() % 2 == 0
        verdicts = self.inner(x, y, ids, x_adv)
        return [replace(v, broken=v.broken and ok) for v, ok in zip(verdicts, good.tolist(), strict=True)]


def run_engine(
    stepper: Stepper, model: Classifier, x: Tensor, threat: ThreatModel, *, slots: int, every: int, picky: bool = False
) -> tuple[dict[int, Finished], int]:
    """Outcomes, and images that the model was asked about meanwhile."""
    logits = model.logits(x)

    def rows(positions):
        at = torch.tensor(positions)
        return x[at], logits.argmax(1)[at], at, logits[at]

    judge = Judge(model, threat, Noise(0, "judge"), slots)
    judge = Picky(judge, every == 1) if picky else judge
    before = model.passes.forward
    engine = Engine(model, stepper, threat, Noise(0, "s"), judge, slots=slots, sync_every=every)
    return {f.position: f for f in engine.run(range(len(x)), rows)}, model.passes.forward - before


@pytest.mark.parametrize("every", [1, 8])
@pytest.mark.parametrize("picky", [False, True], ids=["trusting", "picky"])
@pytest.mark.parametrize("restarts", [1, 2])
@pytest.mark.parametrize("norm", THREATS)
def test_outcomes_of_a_run_do_not_depend_on_it(norm, restarts, picky, every, cnn, images):
    model, x, threat = cnn(shape=SHAPE), images(20, SHAPE), ThreatModel.parse(THREATS[norm])
    square = Square(n_queries=40, restarts=restarts)
    options = {"slots": SLOTS, "every": every, "picky": picky}
    (plain, _), (ahead, _) = (run_engine(s, model, x, threat, **options) for s in (Plain(square), square))
    assert sorted(plain) == sorted(ahead) == list(range(20))
    broken = 0
    for position, a in plain.items():
        b = ahead[position]
        assert (a.lane, a.evaluations, a.refused) == (b.lane, b.evaluations, b.refused)
        assert (a.verdict is None) == (b.verdict is None)
        if a.verdict is not None and b.verdict is not None:
            broken += 1
            assert torch.equal(a.verdict.x_adv, b.verdict.x_adv)
    assert 0 < broken < 20
    assert any(f.refused for f in plain.values()) == picky


def test_a_half_empty_batch_takes_little_more_than_half_the_passes(cnn, images):
    model, x, threat = cnn(shape=SHAPE), images(8, SHAPE), ThreatModel.parse("Linf:0.001")  # too weak for anything
    square = Square(n_queries=1000)
    (plain, slow), (ahead, quick) = (
        run_engine(s, model, x, threat, slots=16, every=1) for s in (Plain(square), square)
    )
    assert all(f.verdict is None for f in plain.values())
    assert [f.evaluations for f in plain.values()] == [f.evaluations for f in ahead.values()] == [1001] * 8
    assert slow == 16 * 1001
    assert quick < 0.6 * slow

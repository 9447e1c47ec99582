"""The engine against the sequential definition: the lowest lane that succeeds, whatever the interleaving."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustsuite.attacks.base import LookingAhead, State, Stepper, Teams, settle
from robustsuite.evaluation.engine import Engine, Finished, VotingEngine
from robustsuite.evaluation.judge import Verdict
from robustsuite.models.classifier import Classifier
from robustsuite.noise import ExampleNoise, Noise
from robustsuite.threat import ThreatModel

BUDGET = 5


@dataclass(frozen=True)
class Scripted(Stepper):
    """Succeeds on example i in lane l at the evaluations that a table names; needs no model."""

    table: Tensor = field(compare=False)  # bool [examples, lanes, BUDGET]

    @property
    def budget(self) -> int:
        return BUDGET

    def lanes(self, num_classes: int) -> int:
        return self.table.shape[1]

    def init(self, x, y, logits, lane, threat: ThreatModel, noise: ExampleNoise) -> State:
        zero = torch.zeros_like(y)
        ids = noise.ids
        return State(x, y, ids, lane, x.clone(), zero, zero.bool(), zero.bool(), zero - 1)

    def step(self, model: Classifier, state: State, threat: ThreatModel, noise: ExampleNoise) -> State:
        at = state.it.clamp(max=BUDGET - 1)
        hit = self.table[state.ids, state.lane, at]
        logits = torch.stack([torch.zeros(len(hit)), hit.float() * 2 - 1], 1)
        encoded = (state.lane * BUDGET + at).float() / 1000  # what the judge sees: which lane, which evaluation
        state.x_adv = torch.where(state.done.view(-1, 1, 1, 1), state.x_adv, encoded.view(-1, 1, 1, 1))
        settle(state, logits, BUDGET)
        return state


class Foreseeing(Scripted, LookingAhead):
    """The same with idle slots that look ahead."""

    def send_ahead(self, state: State, threat: ThreatModel, noise: ExampleNoise, teams: Teams) -> State:
        state.it = state.it + teams.depth
        state.done = state.done | (state.it >= BUDGET)
        return state

    def step_ahead(
        self, model: Classifier, state: State, threat: ThreatModel, noise: ExampleNoise, teams: Teams
    ) -> State:
        state = self.step(model, state, threat, noise)
        return self.send_ahead(state.select(teams.last(state.done)), threat, noise, teams)


class Blind(Foreseeing):
    """Must not be asked to look ahead."""

    def send_ahead(self, state: State, threat: ThreatModel, noise: ExampleNoise, teams: Teams) -> State:
        raise AssertionError


@dataclass
class ScriptedJudge:
    accepted: Tensor  # bool [examples, lanes, BUDGET]
    immediate: bool

    def __call__(self, x: Tensor, y: Tensor, ids: Tensor, x_adv: Tensor) -> list[Verdict]:
        code = (x_adv.flatten(1)[:, 0] * 1000).round().long()
        lanes, at = code // BUDGET, code % BUDGET
        ok = self.accepted[ids, lanes, at].tolist()
        return [Verdict(o, a, 0.0, -1.0, 1) for o, a in zip(ok, x_adv, strict=True)]


def sequential(table: Tensor, accepted: Tensor, i: int) -> tuple[int, int, int]:
    """(lane that breaks or -1, evaluations, refusals) by doing one lane after the other."""
    spent = refused = 0
    for lane in range(table.shape[1]):
        it = 0
        while it < BUDGET:
            if table[i, lane, it]:
                if accepted[i, lane, it]:
                    return lane, spent + it + 1, refused
                refused += 1
            it += 1
        spent += BUDGET
    return -1, spent, refused


def run_engine(
    table: Tensor,
    accepted: Tensor,
    slots: int,
    order: Sequence[int],
    immediate: bool,
    every: int,
    stepper: Stepper | None = None,
) -> list[Finished]:
    model = Classifier(nn.Identity(), num_classes=2, input_shape=(1, 1, 1))

    def rows(positions):
        ids = torch.tensor(positions)
        n = len(ids)
        return torch.zeros(n, 1, 1, 1), torch.zeros(n, dtype=torch.long), ids, torch.zeros(n, 2)

    judge = ScriptedJudge(accepted, immediate)
    threat = ThreatModel.parse("Linf:1")
    stepper = stepper or Scripted(table)
    engine = Engine(model, stepper, threat, Noise(0, "t"), judge, slots=slots, sync_every=every)  # pyright: ignore
    return list(engine.run(order, rows))


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 7),
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(0, 10_000),
    st.sampled_from([0.03, 0.2, 0.6]),
    st.booleans(),
    st.integers(1, 3),
    st.sampled_from([Scripted, Foreseeing]),
)
def test_equals_the_sequential_definition(n, lanes, slots, seed, density, immediate, every, kind):
    ids = torch.arange(n)
    table = Noise(seed, "table").at(ids).uniform((lanes, BUDGET)) < density
    accepted = Noise(seed, "accept").at(ids).uniform((lanes, BUDGET)) < 0.7
    order = Noise(seed, "order").at(ids).bits(1)[:, 0].argsort().tolist()
    # A refused candidate is passed over once, which costs the scripted attack no evaluation of its table: with a
    # refusal the replayed lane sees the same table, so the sequential walk above is the definition.
    finished = run_engine(table, accepted, slots, order, immediate, every, kind(table))
    assert sorted(f.position for f in finished) == list(range(n))
    for f in finished:
        lane, evaluations, refused = sequential(table, accepted, f.position)
        assert (f.lane, f.verdict is not None) == (lane, lane >= 0)
        assert (f.evaluations, f.refused) == (evaluations, refused)


def rounds(table: Tensor, slots: int) -> tuple[list[int], list[Finished]]:
    """How many slots were busy in each round, and the outcomes."""
    busy: list[int] = []

    class Counting(Scripted):
        def step(self, model, state, threat, noise):
            busy.append(int((~state.done).sum()))
            return super().step(model, state, threat, noise)

    stepper = Counting(table)
    finished = run_engine(table, torch.ones_like(table), slots, range(len(table)), False, 1, stepper)
    return busy, finished


def test_slots_are_refilled_at_once():
    """40 examples that fall at their first evaluation need 40 / 8 rounds, not 40."""
    table = torch.zeros(40, 1, BUDGET, dtype=torch.bool)
    table[:, :, 0] = True
    busy, finished = rounds(table, 8)
    assert len(finished) == 40
    assert busy == [8] * 5


def test_a_dry_queue_starts_later_lanes_ahead_of_time():
    """One hard example with four lanes and four slots takes one lane's time, not four."""
    busy, (finished,) = rounds(torch.zeros(1, 4, BUDGET, dtype=torch.bool), 4)
    assert finished.evaluations == 4 * BUDGET
    assert busy == [4] * BUDGET


def test_idle_slots_look_ahead_for_active_ones():
    """One hard example and three slots: five evaluations take two rounds."""
    rounds: list[int] = []

    class Counting(Foreseeing):
        def step(self, model, state, threat, noise):
            rounds.append(int(state.it.min()))
            return super().step(model, state, threat, noise)

    table = torch.zeros(1, 1, BUDGET, dtype=torch.bool)
    (finished,) = run_engine(table, table, 3, [0], False, 1, Counting(table))
    assert finished.evaluations == BUDGET
    assert rounds == [0, 3]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=20).filter(any), st.integers(0, 2**20 - 1))
def test_teams_share_the_idle_slots_evenly_and_end_at_the_first_that_stops(active, bits):
    teams = Teams.of(active, torch.device("cpu"))
    slots, stops = range(len(active)), [bool(bits >> s & 1) for s in range(len(active))]
    last = teams.last(torch.tensor(stops)).tolist()
    sizes = []
    for team in range(sum(active)):
        members = sorted((s for s in slots if teams.team[s] == team), key=lambda s: int(teams.depth[s]))
        assert [active[s] for s in members] == [True] + [False] * (len(members) - 1)
        assert teams.depth[members].tolist() == list(range(len(members)))
        assert teams.members[team, : len(members)].tolist() == members
        assert {int(teams.first[s]) for s in members} == {members[0]}
        assert {last[s] for s in members} == {next((s for s in members if stops[s]), members[-1])}
        sizes.append(len(members))
    assert sum(sizes) == len(active)
    assert max(sizes) - min(sizes) <= 1


@dataclass
class ScriptedJury(ScriptedJudge):
    """Every lane's last point has so many wrong votes; above 50 it breaks."""

    wrong: Tensor  # int64 [examples, lanes]

    def __call__(self, x: Tensor, y: Tensor, ids: Tensor, x_adv: Tensor) -> list[Verdict]:
        lanes = (x_adv.flatten(1)[:, 0] * 1000).round().long() // BUDGET
        votes = self.wrong[ids, lanes].tolist()
        return [Verdict(w > 50, a, 0.0, -1.0, 1, "", w) for w, a in zip(votes, x_adv, strict=True)]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 7), st.integers(1, 4), st.integers(1, 6), st.integers(0, 10_000), st.integers(1, 3))
def test_votes_decide_at_the_end_of_every_lane(n, lanes, slots, seed, every):
    """The lowest lane whose last point most draws get wrong; a survivor hands back the point with the most of them."""
    ids = torch.arange(n)
    wrong = Noise(seed, "wrong").at(ids).integers(75, (lanes,))
    table = torch.ones(n, lanes, BUDGET, dtype=torch.bool)  # looks fooled at once, which stops nobody
    model = Classifier(nn.Identity(), num_classes=2, input_shape=(1, 1, 1))

    def rows(positions):
        at = torch.tensor(positions)
        return torch.zeros(len(at), 1, 1, 1), torch.zeros_like(at), at, torch.zeros(len(at), 2)

    jury = ScriptedJury(table, True, wrong)
    threat = ThreatModel.parse("Linf:1")
    engine = VotingEngine(model, Blind(table), threat, Noise(0, "t"), jury, slots=slots, sync_every=every)  # pyright: ignore
    finished = {f.position: f for f in engine.run(range(n), rows)}
    assert sorted(finished) == list(range(n))
    for i, f in finished.items():
        broken = [lane for lane in range(lanes) if wrong[i, lane] > 50]
        strongest = f.verdict if broken else f.left
        assert strongest is not None
        assert (f.verdict is not None, f.lane) == (bool(broken), broken[0] if broken else -1)
        assert strongest.wrong == int(wrong[i, broken[0]] if broken else wrong[i].max())
        assert (f.evaluations, f.refused) == (BUDGET * (broken[0] + 1 if broken else lanes), 0)

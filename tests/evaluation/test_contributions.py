"""What each attack contributes: marginally (what was left) and alone (what no other attack breaks)."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from robustsuite.attacks import Attack, register_attack
from robustsuite.evaluation import finish
from robustsuite.evaluation.evaluator import evaluate
from robustsuite.evaluation.finish import UNFLAGGED
from robustsuite.evaluation.verify import verify
from robustsuite.registry import ATTACKS
from robustsuite.results.ledger import read_ledger
from robustsuite.results.schema import Flag


@dataclass(frozen=True)
class Breaks(Attack):
    """The exact attack of the linear problem on the examples whose id leaves one of these remainders by 5."""

    remainders: tuple[int, ...] = ()

    def run(self, model, x, y, threat, noise):
        down = (y == 1).view(-1, 1, 1, 1)
        weight = model.module.linear.weight[1].view(1, 1, 4, 4).sign()
        moved = (x - threat.radius * weight).where(down, x + threat.radius * weight)
        mine = sum((noise.ids % 5 == r) for r in self.remainders) > 0
        return moved.where(mine.view(-1, 1, 1, 1), x)


@dataclass(frozen=True)
class First(Breaks):
    remainders: tuple[int, ...] = (0, 1)


@dataclass(frozen=True)
class Second(Breaks):
    remainders: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Third(Breaks):
    remainders: tuple[int, ...] = (0, 3)


@pytest.fixture(autouse=True)
def _plugins() -> Iterator[None]:
    kinds = {"first": First, "second": Second, "third": Third}
    for name, kind in kinds.items():
        register_attack(name, norms=("Linf",), access="white-box", kind="bounded")(kind)
    yield
    for name in kinds:
        ATTACKS.entries.pop(name, None)


def counted(protocol):
    return protocol.model_copy(update={"contributions": True})


def test_marginal_and_exclusive_counts(problem, tmp_path):
    run = problem.run(tmp_path, ["first", "second", "third"], eps="0.05", protocol=counted)
    breakable = [i for i in range(len(problem.data)) if problem.radius[i] < 0.05]
    by = {r: sum(i % 5 == r for i in breakable) for r in range(5)}
    assert min(by.values()) > 0
    stages = {s.name: s for s in run.record.stages}
    assert [stages[n].n_broken for n in ("first", "second", "third")] == [by[0] + by[1], by[2], by[3]]
    assert [stages[n].n_exclusive for n in ("first", "second", "third")] == [0, by[2], by[3]]
    # An example is tried until a second attack breaks it, and no longer.
    assert stages["second"].n_overlapped == by[0] + by[1]
    assert stages["third"].n_overlapped == by[0] + by[2]


def test_the_overlap_changes_no_outcome_and_keeps_no_images(problem, tmp_path):
    plain = problem.run(tmp_path / "plain", ["first", "second"])
    both = problem.run(tmp_path / "both", ["first", "second"], protocol=counted)
    assert plain.record.metrics == both.record.metrics
    a, b = read_ledger(plain.directory), read_ledger(both.directory)
    for name in a.stages:
        assert (a.outcome(name) == b.outcome(name)).all()
    assert "overlap-second" in b.stages
    assert not (both.directory / "adversarials" / "overlap-second").exists()
    assert [s.n_exclusive for s in plain.record.stages] == [None, None, None]


def test_verify_counts_the_contributions_again(problem, tmp_path):
    run = problem.run(tmp_path, ["first", "second", "third"], protocol=counted)
    _, findings = verify(run.directory, problem.model, problem.data, problem.part.weights_sha256)
    assert [f for f in findings if not f.ok] == []
    assert "contributions" in {f.name for f in findings}


def test_shards_change_nothing(problem, tmp_path, outcome_files):
    attacks = ["fgsm", "apgd-ce", "square"]
    options = {"params": {"n_queries": 30}, "protocol": counted}
    one = problem.run(tmp_path / "one", attacks, **options)
    prepared = problem.prepare(attacks, **options)
    for shard in (1, 0):
        run = evaluate(prepared, tmp_path / "two", shard=(shard, 2))
    assert outcome_files(one.directory) == outcome_files(run.directory)


def flagged(protocol):
    *first, last = protocol.stages
    return protocol.model_copy(update={"stages": (*first, last.model_copy(update={"when": "flagged"}))})


def test_a_suspicion_runs_the_flagged_stages_on_what_is_left(problem, tmp_path, monkeypatch):
    monkeypatch.setattr(finish, "suspicions", lambda *_: [])
    calm = problem.run(tmp_path / "calm", ["first", "second"], protocol=flagged)
    assert (calm.record.stages[-1].status, calm.record.stages[-1].reason) == ("skipped", UNFLAGGED)
    raised = Flag(name="score_beats_white_box", raised=True, evidence="made up")
    monkeypatch.setattr(finish, "suspicions", lambda *_: [raised])
    alarmed = problem.run(tmp_path / "alarmed", ["first", "second"], protocol=flagged)
    second = alarmed.record.stages[-1]
    assert second.status == "done"
    assert second.n_in == len(problem.data) - alarmed.record.stages[1].n_broken
    assert second.n_broken > 0
    lower = alarmed.record.metric("robust_accuracy").value
    assert lower == calm.record.metric("robust_accuracy").value - second.n_broken / len(problem.data)

"""The audit around certifiers: what one side proves, the other tries on a sample, and nothing is tried twice."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from robustsuite.attacks import Attack, register_attack
from robustsuite.certification import Certificates, Certifier, register_certifier
from robustsuite.errors import ContradictionError
from robustsuite.evaluation import finish
from robustsuite.evaluation.evaluator import evaluate
from robustsuite.evaluation.protocol import with_certifiers
from robustsuite.registry import ATTACKS, CERTIFIERS
from robustsuite.results.ledger import read_ledger
from robustsuite.results.schema import Flag


@dataclass(frozen=True)
class Exact(Certifier):
    """The closed-form radius of the toy problem, times a factor: above 1 it is unsound."""

    factor: float = 1.0

    def certify(self, model, x, y, threat, noise) -> Certificates:
        logits = model.logits(x)
        radius = (logits[:, 1] - logits[:, 0]).abs().double() / 16 * self.factor
        return Certificates(radius, logits.argmax(1), "deterministic")


@dataclass(frozen=True)
class Idle(Attack):
    """Breaks nothing."""

    def run(self, model, x, y, threat, noise):
        return x


@dataclass(frozen=True)
class Near(Attack):
    """Breaks what can be broken at 1.2 times the exact distance."""

    def run(self, model, x, y, threat, noise):
        logits = model.logits(x)
        step = (logits[:, 1] - logits[:, 0]).view(-1, 1, 1, 1) / 16 * 1.2
        moved = x - step * model.module.linear.weight[1].view(1, 1, 4, 4).sign()
        return moved.where(step.abs() <= threat.radius, x)


@pytest.fixture(autouse=True)
def _plugins() -> Iterator[None]:
    register_certifier("exact", norms=("Linf",), kind="deterministic")(Exact)
    register_attack("idle", norms=("Linf",), access="white-box", kind="bounded")(Idle)
    register_attack("near", norms=("Linf",), access="white-box", kind="bounded")(Near)
    yield
    ATTACKS.entries.pop("near", None)
    CERTIFIERS.entries.pop("exact", None)
    ATTACKS.entries.pop("idle", None)


def around(first, last):
    return lambda protocol: with_certifiers(protocol, first, last)


def test_first_is_audited_by_every_attack_and_last_is_not(problem, tmp_path):
    robust = int((problem.radius >= 0.05).sum())
    assert 0 < robust < 20  # fewer than the least sample
    first = problem.run(tmp_path, ["pgd", "fgsm"], protocol=around(["exact"], []))
    last = problem.run(tmp_path, ["pgd", "fgsm"], protocol=around([], ["exact"]))
    assert first.record.metrics[:3] == last.record.metrics
    assert first.record.metric("certified_accuracy@0").value == 1.0  # radii of all; last has none for the broken
    assert [(s.name, s.n_audited) for s in first.record.stages[2:]] == [("pgd", robust), ("fgsm", robust)]
    assert [(s.name, s.n_in, s.n_audited) for s in last.record.stages[1:3]] == [
        ("pgd", len(problem.data), 0),
        ("fgsm", robust, 0),
    ]
    assert last.record.stages[3].n_certified == robust
    assert last.record.stages[3].n_audited == 20  # of the broken
    assert first.record.stages[1].n_audited == 0  # it has left all of them open before


def test_between_two_attacks_the_later_one_is_still_to_try(problem, tmp_path):
    """Certified after the first attack alone: the second audits, since it has not seen it."""

    def between(protocol):
        idle, pgd, exact = with_certifiers(protocol, [], ["exact"]).stages
        return protocol.model_copy(update={"stages": (idle, exact, pgd)})

    with pytest.raises(ContradictionError, match=r"'exact' certified example \d+ .*'audit-pgd' broke it"):
        problem.run(tmp_path, ["idle", "pgd"], protocol=lambda p: _loose(between(p)))


def _loose(protocol):
    stages = [s.model_copy(update={"params": {"factor": 3.0}}) if s.plugin == "exact" else s for s in protocol.stages]
    return protocol.model_copy(update={"stages": tuple(stages)})


def test_an_unsound_one_that_comes_last_is_caught_on_the_broken(problem, tmp_path):
    with pytest.raises(ContradictionError, match="'audit-exact' certified example"):
        problem.run(tmp_path, ["pgd"], protocol=lambda p: _loose(with_certifiers(p, [], ["exact"])))


def test_the_sample_comes_from_what_the_attacks_have_not_seen(problem, tmp_path):
    run = problem.run(tmp_path, ["idle"], protocol=around(["exact"], ["exact"]))
    ledger = read_ledger(run.directory)
    audited = ledger.outcome("audit-idle") != 0
    assert audited.any()
    assert (ledger.outcome("exact")[audited] == 3).all()
    assert not (audited & (ledger.outcome("idle") != 0)).any()
    assert np.array_equal(ledger.outcome("exact-2") != 0, ledger.outcome("idle") == 1)


def test_a_radius_below_eps_is_held_against_the_distance(problem, tmp_path):
    """Nothing is certified at eps that was broken: the radius alone gives the certifier away."""

    def claims(factor):
        def change(protocol):
            first = with_certifiers(protocol, ["exact"], [])
            exact, near = first.stages
            exact = exact.model_copy(update={"params": {"factor": factor}})
            return first.model_copy(update={"stages": (exact, near)})

        return change

    with pytest.raises(ContradictionError, match=r"'exact' certified example \d+ \(radius 0.0.*'near' broke it"):
        problem.run(tmp_path, ["near"], protocol=claims(1.3))
    (path,) = tmp_path.glob("*/record.json")
    for c in json.loads(path.read_text())["contradictions"]:
        assert c["distance"] < c["radius"]
    assert any(c["radius"] < 0.05 for c in json.loads(path.read_text())["contradictions"])
    assert problem.run(tmp_path, ["near"], protocol=claims(1.1)).record.contradictions == ()  # nothing comes that near


def audits(run):
    return {s.name: s.n_audited for s in run.record.stages[1:]}


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_the_audit_shares_the_slots_and_ends_as_in_a_pass_of_its_own(problem, tmp_path, outcome_files, factor):
    """Shards leave it to the sealing, one process does it on the way: the same bytes, also of an unsound one."""

    def between(protocol):
        ahead, pgd, square, fgsm = with_certifiers(protocol, ["exact"], []).stages
        stages = (pgd, ahead.model_copy(update={"params": {"factor": factor}}), square, fgsm)
        return protocol.model_copy(update={"stages": stages, "contributions": True})

    robust = int((problem.radius >= 0.05).sum())
    options = {"params": {"n_queries": 40}, "protocol": between, "slots": 16}
    prepared = problem.prepare(["pgd", "square", "fgsm"], **options)
    for runs, shards in (("one", [(0, 1)]), ("three", [(2, 3), (0, 3), (1, 3)])):
        for shard in shards:
            try:
                run = evaluate(prepared, tmp_path / runs, shard=shard)
            except ContradictionError:
                assert factor > 1.0
    one, three = (outcome_files(tmp_path / runs / prepared.request.run_key) for runs in ("one", "three"))
    assert one == three
    names = {Path(name).parent.name for name in one if name.startswith("ledger/")}
    assert {"audit-square", "audit-fgsm", "audit-exact", "overlap-square"} <= names
    assert "audit-pgd" not in names  # all that is certified has survived it
    if factor == 1.0:
        assert audits(run) == {"pgd": 0, "exact": 20, "square": robust, "fgsm": robust}


def tail(*names, loose=False):
    def marked(protocol):
        protocol = with_certifiers(protocol, ["exact"], [])
        stages = tuple(s.model_copy(update={"tail": s.name in names}) for s in protocol.stages)
        protocol = protocol.model_copy(update={"stages": stages})
        return _loose(protocol) if loose else protocol

    return marked


def test_the_tail_audits_only_where_a_suspicion_was_raised(problem, tmp_path, monkeypatch):
    monkeypatch.setattr(finish, "suspicions", lambda *_: [])
    robust = int((problem.radius >= 0.05).sum())
    calm = problem.run(tmp_path / "calm", ["idle", "pgd"], protocol=tail("pgd"))
    assert audits(calm) == {"exact": 0, "idle": robust, "pgd": 0}
    alone = problem.run(tmp_path / "alone", ["idle", "pgd"], protocol=tail("idle", "pgd"))
    assert audits(alone) == {"exact": 0, "idle": robust, "pgd": robust}  # there is no other
    assert problem.run(tmp_path / "lie", ["idle", "pgd"], protocol=tail("pgd", loose=True)).record.contradictions == ()
    raised = Flag(name="score_beats_white_box", raised=True, evidence="made up")
    monkeypatch.setattr(finish, "suspicions", lambda *_: [raised])
    wary = problem.run(tmp_path / "wary", ["idle", "pgd"], protocol=tail("pgd"))
    assert audits(wary) == {"exact": 0, "idle": robust, "pgd": robust}
    with pytest.raises(ContradictionError, match=r"'exact' certified example \d+ .*'audit-pgd' broke it"):
        problem.run(tmp_path / "caught", ["idle", "pgd"], protocol=tail("pgd", loose=True))

"""Families of certificates from stored votes: Holm by hand, joint truth on a linear model, and what cannot be said."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from robustsuite.errors import UsageError
from robustsuite.evaluation.family_wise import certified_together
from robustsuite.evaluation.verify import verify
from robustsuite.results.ledger import Outcome, read_ledger
from robustsuite.results.store import read_arrays, write_arrays

RADII = (0.0, 0.01, 0.02, 0.05, 0.08)


def with_mode(mode, **more):
    params = {"sigma": 0.3, "n": 4000, "n0": 50, "batch": 500, "mode": mode, **more}
    return {f"smoothing.{name}": value for name, value in params.items()}


def by_hand(ledger, radii, level, sigma=0.3, pixels=16):
    """Holm's procedure as its definition has it, from the votes of `fixed`."""
    seen = np.flatnonzero(ledger.outcome("smoothing") != Outcome.SKIPPED)
    votes, label = ledger.arrays["smoothing/votes"], ledger.arrays["label"]
    counts = []
    for radius in radii:
        p = {
            i: stats.binomtest(
                int(votes[i]), 4000, stats.norm.cdf(radius * np.sqrt(pixels) / sigma), alternative="greater"
            ).pvalue
            for i in seen
        }
        proved, left = [], len(p)
        for i in sorted(p, key=p.__getitem__):
            if p[i] > level / left:
                break
            proved.append(i)
            left -= 1
        counts.append(sum(ledger.arrays["smoothing/chosen"][i] == label[i] for i in proved))
    return counts


def test_holm_from_the_ledger_is_holm_by_hand(problem, tmp_path):
    run = problem.run(tmp_path, [], ["smoothing"], params=with_mode("fixed"), eps="0.02")
    ledger = read_ledger(run.directory)
    ran = ledger.outcome("smoothing") != Outcome.SKIPPED
    assert (ledger.arrays["smoothing/samples"][ran] == 4000).all()
    found = certified_together(run.directory, run.record, RADII, "holm", 0.01)
    expected = by_hand(ledger, RADII, 0.01)
    assert [round(m.value * m.n) for m in found.metrics] == expected
    assert found.tested == int(ran.sum())
    assert expected[0] >= expected[1] > expected[-1] >= 0
    strict = certified_together(run.directory, run.record, RADII, "bonferroni", 0.01)
    alone = certified_together(run.directory, run.record, RADII, "bonferroni", 0.01 * found.tested)
    for holm, equal, single in zip(found.metrics, strict.metrics, alone.metrics, strict=True):
        assert equal.value <= holm.value <= single.value
    proved = (ledger.arrays["smoothing/radius"] >= 0.02) & (
        ledger.arrays["smoothing/predicted"] == ledger.arrays["label"]
    )
    one = certified_together(run.directory, run.record, [0.02], "bonferroni", 0.001 * found.tested)
    assert round(one.metrics[0].value * 40) == int(proved.sum())  # one at a time it is what the run itself proves
    _, findings = verify(run.directory, problem.model, problem.data, "0" * 64)
    assert all(f.ok for f in findings if f.name != "clean predictions")


@pytest.mark.parametrize("mode", ["staged", "radius", "anytime"])
def test_early_ends_keep_what_a_family_needs(problem, tmp_path, mode):
    run = problem.run(tmp_path, [], ["smoothing"], params=with_mode(mode, family=40), eps="0.02")
    found = certified_together(run.directory, run.record, [0.01, 0.02, 0.05])
    at = {round(float(m.name.partition("@")[2]), 3): round(m.value * m.n) for m in found.metrics}
    exact = problem.radius.numpy()
    for radius, count in at.items():
        assert count <= int((exact >= radius).sum())
    ledger = read_ledger(run.directory)
    certified = int((ledger.outcome("smoothing") == Outcome.CERTIFIED).sum())
    assert at[0.02] >= 0.8 * certified > 10
    if mode == "radius":
        assert at[0.05] == 0
        assert at[0.01] == at[0.02] >= certified  # Holm is never less than the shares that the run gave


def test_deterministic_proofs_need_no_share(problem, tmp_path):
    run = problem.run(tmp_path, [], ["crown"], eps="0.02")
    certified = int((read_ledger(run.directory).outcome("crown") == Outcome.CERTIFIED).sum())
    found = certified_together(run.directory, run.record, [0.02])
    assert (found.tested, round(found.metrics[0].value * 40)) == (0, certified)
    assert certified > 10


def test_what_cannot_be_told_is_refused(problem, tmp_path):
    run = problem.run(tmp_path, [], ["smoothing"], params=with_mode("fixed"))
    with pytest.raises(UsageError, match="holm or bonferroni"):
        certified_together(run.directory, run.record, RADII, "hochberg")
    with pytest.raises(UsageError, match="between 0 and 1"):
        certified_together(run.directory, run.record, RADII, "holm", 1.5)
    path = run.directory / "verdicts.safetensors"
    arrays, meta = read_arrays(path)
    old = {k: v.copy() for k, v in arrays.items() if k.rpartition("/")[2] not in ("chosen", "samples", "votes")}
    write_arrays(path, old, {k: meta[k] for k in ("run_key", "stages")})
    with pytest.raises(UsageError, match="before they were kept"):
        certified_together(run.directory, run.record, RADII)
    attacked = problem.run(tmp_path / "attacked", ["fgsm"])
    with pytest.raises(UsageError, match="no certifier ran"):
        certified_together(attacked.directory, attacked.record, RADII)
    partial = replace(run, record=run.record.model_copy(update={"stages": ()}))
    with pytest.raises(UsageError, match="no certifier ran"):
        certified_together(partial.directory, partial.record, RADII)

"""Tail sampling: what `--tail-sample N` would have said of finished runs of a whole protocol, in many trials.

    python benchmarks/tail.py RUN [RUN ...] [--sample 500] [--trials 200]

Every trial draws N of the survivors of a run anew and applies the rules of the evaluator: the interval, and all
survivors when the sample breaks too often. The truth is the run's own ledger. Prints, for each run, how often the
whole protocol's figure lay in the interval, how wide that was, and the passes made, beside those of the whole protocol.
"""

import argparse
from pathlib import Path

import numpy as np

from robustsuite.evaluation.tail import RUN_ALL_ABOVE
from robustsuite.results.ledger import AUDIT, OVERLAP, Ledger, Outcome, read_ledger
from robustsuite.results.records import load_record
from robustsuite.results.tail import summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--sample", default=500, type=int)
    parser.add_argument("--trials", default=200, type=int)
    args = parser.parse_args()
    print(
        f"{'model':20} {'n':>6} {'survivors':>9} {'whole':>7} {'inside':>7} {'width':>7} {'ran all':>7} {'passes':>7}"
    )
    for path in args.runs:
        record, ledger = load_record(path), read_ledger(path)
        tail = [s.name for s in record.request.protocol.stages if s.tail and s.name in ledger.stages]
        row = trials(ledger, tail, args.sample, args.trials)
        print(f"{record.request.model.name:20} {record.request.data.n:6,} {row}", flush=True)


def trials(ledger: Ledger, tail: list[str], count: int, repeats: int) -> str:
    """The rest of a line: survivors, true accuracy, coverage, mean width of the interval, full runs, saving."""
    rng = np.random.default_rng(0)
    before = ledger.outcome(tail[0]) != Outcome.SKIPPED
    for stage in tail:
        before |= ledger.outcome(stage) == Outcome.BROKEN
    n, survivors = len(before), np.flatnonzero(before)
    broken = np.logical_or.reduce([ledger.outcome(stage) == Outcome.BROKEN for stage in tail])
    truth = (len(survivors) - int(broken.sum())) / n
    of_tail = sum(passes(ledger, stage) for stage in tail)
    other = [s for s in ledger.stages if s not in tail and not s.startswith((AUDIT, OVERLAP))]
    of_rest = sum(int(passes(ledger, stage).sum()) for stage in other)
    inside, widths, full, spent = 0, [], 0, []
    for _ in range(repeats):
        chosen = np.zeros(n, bool)
        chosen[rng.permutation(survivors)[:count]] = True
        all_run = int(broken[chosen].sum()) > RUN_ALL_ABOVE * chosen.sum()
        seen = before if all_run else chosen
        outcome = np.where(seen, np.where(broken, Outcome.BROKEN, Outcome.SURVIVED), Outcome.SKIPPED)
        found = summary({"tail": outcome}, ["tail"], before)
        inside += found.lower <= truth <= found.upper
        widths.append(found.upper - found.lower)
        full += all_run
        spent.append(of_rest + of_tail[seen].sum())
    ratio = (of_rest + of_tail.sum()) / float(np.mean(spent))
    return (
        f"{len(survivors):9,} {truth:7.2%} {inside / repeats:7.1%} {np.mean(widths):7.2%} {full / repeats:7.1%} "
        f"{ratio:6.1f}x"
    )


def passes(ledger: Ledger, stage: str) -> np.ndarray:
    """Forward and backward passes of each example in a stage."""
    return ledger.arrays[f"{stage}/forward"] + ledger.arrays[f"{stage}/backward"]


if __name__ == "__main__":
    main()

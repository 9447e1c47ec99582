"""How much an outcome hangs on the batch shape: runs that differ in `--slots` alone, compared example by example.

    python benchmarks/slots.py [--data ../shared/data] [--protocol quick] [--slots 64 200 256] [--only NAME]

Within one number of slots a run is reproducible to the byte; another number chooses other kernels, whose last bits
differ, and an attack may then end elsewhere. Prints, for each pair, how many examples are broken in one run alone.
"""

import argparse
import tempfile
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from zoo import Entry, shared

from robustsuite.evaluation.evaluator import evaluate, prepare
from robustsuite.evaluation.plan import cores
from robustsuite.evaluation.protocol import load_protocol
from robustsuite.results.ledger import Outcome, read_ledger
from robustsuite.results.schema import ProtocolPart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data", type=Path)
    parser.add_argument("--protocol", default="quick")
    parser.add_argument("--slots", nargs="+", default=[64, 200, 256], type=int)
    parser.add_argument("--only", default="mnist_cnn_a_adv", help="part of a checkpoint's name")
    args = parser.parse_args()
    torch.set_num_threads(cores())
    protocol = load_protocol(args.protocol).model_copy(update={"contributions": False})
    for entry in shared(args.data):
        if args.only in entry.name:
            found = {slots: broken(entry, protocol, slots) for slots in args.slots}
            print(f"{entry.name}, {entry.threat}, {args.protocol}")
            for slots, row in found.items():
                print(f"  {slots} slots: {int(row.sum())} of {len(row)} broken")
            for a, b in combinations(args.slots, 2):
                print(f"  {a} and {b} slots: {int((found[a] != found[b]).sum())} outcomes differ", flush=True)


def broken(entry: Entry, protocol: ProtocolPart, slots: int) -> np.ndarray:
    """Which examples are misclassified or broken by some attack, bool ``[N]``."""
    loaded, data = entry.load()
    with tempfile.TemporaryDirectory() as runs:
        prepared = prepare(loaded.classifier, loaded.part, data, entry.threat, protocol, slots=slots)
        ledger = read_ledger(evaluate(prepared, Path(runs)).directory)
    return np.logical_or.reduce([ledger.outcome(stage) == Outcome.BROKEN for stage in ledger.stages])


if __name__ == "__main__":
    main()

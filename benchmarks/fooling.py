"""Models made to fool, as plain AutoAttack and as the suite report them.

    python benchmarks/fooling.py [--n 40] [--steps 20] [--queries 300]

Every model is one honestly weak classifier of digits behind a mask (tests/evaluation/fooling.py). Both sides run
APGD-CE, APGD-T and Square; AutoAttack from pyautoattack at its own 100 steps and 9 targets, with the same queries.
"""

import argparse
import logging
import runpy
import tempfile
from pathlib import Path

import torch
from torch import nn

from robustsuite.attacks.reference.autoattack import AutoAttack
from robustsuite.data.dataset import Dataset
from robustsuite.errors import RobustsuiteError
from robustsuite.evaluation.evaluator import evaluate
from robustsuite.noise import Noise, fork_global
from robustsuite.results.flags import UNRELIABLE
from robustsuite.threat import ThreatModel

FOOLING = runpy.run_path(str(Path(__file__).parents[1] / "tests" / "evaluation" / "fooling.py"))
THREAT = ThreatModel.parse(FOOLING["THREAT"])


class Warnings(logging.Handler):
    """Counts what AutoAttack warns of."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += record.levelno >= logging.WARNING


def theirs(module: nn.Module, data: Dataset, queries: int) -> str:
    """Robust accuracy as AutoAttack counts it, on what it returns; starred where it warned."""
    model, warnings = FOOLING["classifier"](module), Warnings()
    logger = logging.getLogger("auto-attack")
    logger.propagate, logger.handlers = False, [warnings]
    attack = AutoAttack(attacks=("apgd-ce", "apgd-t", "square"), n_queries=queries)
    try:
        with fork_global(0, "benchmark"):
            x_adv = attack.run(model, data.x, data.y, THREAT, Noise(0, "benchmark").at(data.ids))
            right = model.logits(x_adv).argmax(1) == data.y
    except RuntimeError:
        return "crashes"
    return f"{float(right.float().mean()):.1%}{'*' if warnings.count else ' '}"


def ours(module: nn.Module, data: Dataset, params: dict[str, int]) -> tuple[str, str]:
    """What `evaluate` says, and the raised flags that make a record unreliable (or the refusal)."""
    attacks = ["apgd-ce", "apgd-t", "square"]
    prepared = FOOLING["ready"](FOOLING["classifier"](module), data, FOOLING["THREAT"], attacks, **params)
    with tempfile.TemporaryDirectory() as runs:
        try:
            record = evaluate(prepared, Path(runs)).record
        except RobustsuiteError as error:
            return type(error).__name__, f"{error}"[:60] + "..."
    assert record is not None
    (robust,) = (m.value for m in record.metrics if m.name == "robust_accuracy")
    flags = sorted(f.name for f in record.flags if f.raised and f.name in UNRELIABLE)
    return f"{robust:.1%}{' unreliable' if record.unreliable else ''}", ", ".join(flags)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", default=40, type=int)
    parser.add_argument("--steps", default=20, type=int)
    parser.add_argument("--queries", default=300, type=int)
    args = parser.parse_args()
    torch.set_num_threads(1)
    net, data = FOOLING["honest_network"](), FOOLING["test_images"](args.n)
    print(f"{'model':17} {'AutoAttack':>11} {'robustsuite':>18}  flags (* AutoAttack warned)")
    for name, mask in {"honest": lambda inner: inner, **FOOLING["MASKS"]}.items():
        robust, flags = ours(mask(net), data, {"steps": args.steps, "n_queries": args.queries})
        print(f"{name:17} {theirs(mask(net), data, args.queries):>11} {robust:>18}  {flags}", flush=True)


if __name__ == "__main__":
    main()

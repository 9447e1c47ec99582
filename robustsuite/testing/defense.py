"""The contract of a defense: step methods slot by slot, fit methods through a training, wraps as models."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import torch

from robustsuite.data.dataset import Dataset
from robustsuite.defenses.base import FitMethod, StepMethod, WrapMethod
from robustsuite.defenses.composed import compose
from robustsuite.errors import ContractError
from robustsuite.evaluation.checks import check_model, refuse
from robustsuite.models.classifier import Classifier
from robustsuite.registry import DEFENSES, Entry
from robustsuite.testing.finding import (
    Finding,
    Report,
    Violation,
    as_entry,
    check_class,
    check_made,
    expect,
    quick_params,
)
from robustsuite.testing.fit_method import check_fit_method
from robustsuite.testing.step_method import check_step_method
from robustsuite.testing.toys import SEED, linear_case
from robustsuite.testing.watch import Watch
from robustsuite.training.method import make_method

BASES = {"step": StepMethod, "modifier": StepMethod, "fit": FitMethod, "wrap": WrapMethod}
# The words that mean the same everywhere in the suite need no explanation.
WORDS = {"eps", "alpha", "steps", "restarts", "sigma", "n", "n0", "failure_probability", "seed", "batch", "loss"}


def check_defense(plugin: Any, params: Mapping[str, Any] = {}) -> list[Finding]:
    """Findings on a defense: a registered `Entry`, or its class.

    A modifier is played on its paper's base.
    """
    entry = as_entry(plugin, DEFENSES)
    report = Report(entry.target)
    small = quick_params(entry.target, params)
    base = BASES.get(entry.facts.get("kind", ""), object)
    ready = (
        report.check("facts", _facts, entry)
        and report.check("class", check_class, entry.target, base, '@register_defense("name", kind=...)', small)
        and report.check("parameters", check_made, entry.target, small)
    )
    if not ready:
        return report.findings
    report.check("documentation", _documented, entry.target)
    method = entry.target(**small)
    if isinstance(method, StepMethod):
        whole = ((method.base, make_method(method.base)),) if entry.facts["kind"] == "modifier" else ()
        check_step_method(report, compose(*whole, (entry.name, method)))
    elif isinstance(method, FitMethod):
        check_fit_method(report, method)
    elif isinstance(method, WrapMethod):
        report.check("wrap", _wrap, method)
    return report.findings


def _facts(entry: Entry) -> str:
    kind = entry.facts.get("kind")
    bases = "; ".join(f"kind='{name}' for a {base.__name__}" for name, base in BASES.items())
    expect(kind in BASES, f"kind must be one of {', '.join(BASES)}, got {kind!r}.", f"Declare {bases}.")
    return f"a {kind} method"


def _documented(target: type) -> str:
    text = target.__doc__ or ""
    names = [f.name for f in dataclasses.fields(target) if f.init]
    silent = [n for n in names if n not in WORDS and not re.search(rf"\b{re.escape(n)}\b", text)]
    remedy = "Say in the docstring what each one does, and in which unit."
    expect(not silent, f"the docstring does not mention the parameter {', '.join(silent)}.", remedy)
    return f"explains {', '.join(names)}" if names else "has no parameters to explain"


def _wrap(method: WrapMethod) -> str:
    case = linear_case("L2", 3, (1, 6, 6), 32, rowwise=False)
    with Watch(case.model.module) as watch:
        wrapped = method.wrap(case.model)
    watch.expect_nothing()
    expect(isinstance(wrapped, Classifier), f"wrap must return a Classifier, got {type(wrapped).__name__}.", _WRAP)
    same = wrapped.num_classes == case.model.num_classes and wrapped.input_shape == case.model.input_shape
    expect(same, "the wrapped classifier has other classes or another input shape than the model.", _WRAP)
    data = Dataset("linear", case.x, case.y, case.ids, 3)
    try:
        refuse(check_model(wrapped, data, SEED), wrapped.facts.randomized)
    except ContractError as error:
        raise Violation(str(error), "") from error
    first, again = (wrapped.decide(case.x, case.noise())[0] for _ in range(2))
    expect(torch.equal(first, again), "decide gives two answers with the same noise.", "Draw from the noise alone.")
    low, high = int(first.min()), int(first.max())
    expect(
        first.dtype == torch.int64 and low >= -1 and high < 3, f"decide must give classes, got {low}..{high}.", _WRAP
    )
    right = float((first == case.y).float().mean())
    return f"a {'randomised' if wrapped.facts.randomized else 'deterministic'} classifier; keeps {right:.0%} of answers"


_WRAP = "Derive from Classifier (or build one from a module) with the wrapped model's num_classes and input_shape."

"""What the engine relies on in a stepper, beyond the contract of every attack."""

from dataclasses import fields, is_dataclass

import torch
from torch import Tensor

from robustsuite.attacks.base import State, Stepper
from robustsuite.evaluation.engine import Engine, Finished
from robustsuite.evaluation.judge import Judge
from robustsuite.noise import Noise
from robustsuite.testing.finding import Report, expect
from robustsuite.testing.toys import SEED, Case


def check_stepper(report: Report, stepper: Stepper, case: Case) -> None:
    """Add findings on `init`, `step`, refused candidates and the engine's refilling."""
    norm = case.threat.norm
    if report.check(f"{norm}: stepper's state", _state, stepper, case):
        ends = report.check(f"{norm}: stepper's steps", _steps, stepper, case)
        goes_on = report.check(f"{norm}: stepper's refused candidates", _muted, stepper, case)
        if ends and goes_on:  # otherwise the engine might run forever
            report.check(f"{norm}: stepper in the engine", _engine, stepper, case)


def _init(stepper: Stepper, case: Case) -> State:
    logits, lane = case.model.logits(case.x), torch.zeros_like(case.y)
    return stepper.init(case.x, case.y, logits, lane, case.threat, case.noise())


def _state(stepper: Stepper, case: Case) -> str:
    lanes = stepper.lanes(case.model.num_classes)
    expect(
        isinstance(lanes, int) and lanes >= 1, f"lanes must be an integer >= 1, got {lanes!r}.", "Return at least 1."
    )
    budget = stepper.budget
    expect(isinstance(budget, int) and budget >= 1, f"budget must be an integer >= 1, got {budget!r}.", "Return one.")
    cost = stepper.cost
    expect(
        isinstance(cost, tuple) and len(cost) == 2 and all(isinstance(c, int) and c >= 0 for c in cost),
        f"cost must be (forwards, backwards) of one step, got {cost!r}.",
        "Write it like cost = (1, 1).",
    )
    logits = case.model.logits(case.x)
    before = (case.model.passes.forward, case.model.passes.backward)
    lane = torch.zeros_like(case.y)
    state = stepper.init(case.x, case.y, logits, lane, case.threat, case.noise())
    asked = (case.model.passes.forward, case.model.passes.backward) != before
    expect(not asked, "init called the model.", "Use the clean logits that init is given; evaluate in step.")
    expect(
        isinstance(state, State) and is_dataclass(state),
        f"init must return a State, got {type(state).__name__}.",
        "Derive it: @dataclass class MyState(State), with tensors [S, ...] as fields.",
    )
    slots = len(case.y)
    for part in fields(state):
        value = getattr(state, part.name)
        good = isinstance(value, Tensor) and value.ndim >= 1 and value.shape[0] == slots
        got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        remedy = "The engine moves slots row by row: every field is a tensor with a leading slot dimension."
        expect(good, f"state.{part.name} must be a tensor [{slots}, ...], got {got}.", remedy)
    expect(
        not bool(state.it.any() | state.done.any() | state.fooled.any()),
        "fresh slots must have it = 0, done = False and fooled = False.",
        "Start from the shared fields of a fresh slot, and let step count.",
    )
    shared = [n for n in ("x", "y") if getattr(state, n).data_ptr() == getattr(case, n).data_ptr()]
    expect(not shared, f"state shares its memory with {', '.join(shared)}.", "Clone what is handed in.")
    return f"{len(fields(state))} tensors of {slots} slots; {lanes} lane(s), budget {budget}"


def _steps(stepper: Stepper, case: Case) -> str:
    """Done slots stand still, the others count by one, and the budget is the end."""
    state = _init(stepper, case)
    state.done[0] = True  # a slot that the engine has given up
    for number in range(stepper.budget):
        before = {f.name: getattr(state, f.name).clone() for f in fields(state)}
        state = stepper.step(case.model, state, case.threat, case.noise())
        done = before["done"]
        for name in ("x", "y", "ids", "lane"):
            same = torch.equal(before[name], getattr(state, name))
            expect(same, f"step {number + 1} changed state.{name}.", "What a slot works on is the engine's to change.")
        for name in ("x_adv", "it", "fooled"):
            same = torch.equal(before[name][done], getattr(state, name)[done])
            expect(same, f"step {number + 1} changed {name} of a slot that is done.", "Move `~state.done` slots only.")
        counted = state.it - before["it"]
        remedy = "Count one evaluation a step: settle(state, logits, self.budget) does."
        expect(
            bool((counted[~done] == 1).all()), f"step {number + 1} did not count by one: {counted.tolist()}.", remedy
        )
        expect(bool((state.done | ~done).all()), f"step {number + 1} revived a slot that was done.", "Keep done slots.")
        inside = bool(case.threat.contains(case.x, state.x_adv).all())
        expect(inside, f"after step {number + 1} a slot is outside of ball or box.", "Project each step.")
        if bool(state.done.all()):
            break
    expect(
        bool(state.done.all()),
        f"after {stepper.budget} steps {int((~state.done).sum())} slots are still not done.",
        "A slot is done when it is fooled or has made `budget` evaluations: settle books both.",
    )
    return f"every slot done after {int(state.it.max())} steps, {int(state.fooled.sum())} of them fooled"


def _muted(stepper: Stepper, case: Case) -> str:
    """A slot whose candidate was refused goes through the same course and does not stop there again."""
    first = _run(stepper, case, None)
    hit = first.fooled & (first.it < stepper.budget)
    if not bool(hit.any()):
        return "not tested: it fools no toy image before its last step"
    refused = first.it - 1  # the index of the evaluation that fooled
    again = _run(stepper, case, refused.masked_fill(~first.fooled, -1))
    stuck = int((again.it <= first.it)[hit].sum())
    expect(
        stuck == 0,
        f"{stuck} of {int(hit.sum())} slots stop again at the candidate that the evaluator has refused.",
        "Pass over a fooling evaluation while it <= muted and go on: settle(state, logits, self.budget) does.",
    )
    return f"{int(hit.sum())} slots went on behind a refused candidate"


def _run(stepper: Stepper, case: Case, muted: Tensor | None) -> State:
    state = _init(stepper, case)
    if muted is not None:
        state.muted = muted.clone()
    for _ in range(stepper.budget):
        state = stepper.step(case.model, state, case.threat, case.noise())
        if bool(state.done.all()):
            break
    return state


def _engine(stepper: Stepper, case: Case) -> str:
    """Whatever the number of slots, and so the company and the phase of each slot, outcomes are the same bits."""
    wide, narrow = (_outcomes(stepper, case, slots) for slots in (len(case.y), 3))
    different = [p for p in wide if not _agree(wide[p], narrow[p])]
    expect(
        not different,
        f"{len(different)} of {len(wide)} images end differently with 3 slots than with {len(case.y)}.",
        "A slot's course may depend on its own row, its own `it` and its own id only; keep no step count of your own.",
    )
    return (
        f"3 slots and {len(case.y)} give the same outcomes, {sum(f.verdict is not None for f in wide.values())} broken"
    )


def _outcomes(stepper: Stepper, case: Case, slots: int) -> dict[int, Finished]:
    judge = Judge(case.model, case.threat, Noise(SEED, "judge"), slots)
    engine = Engine(case.model, stepper, case.threat, Noise(SEED, "check"), judge, slots=slots)

    def rows(positions: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        index = torch.as_tensor(positions)
        return case.x[index], case.y[index], case.ids[index], case.model.logits(case.x[index])

    return {f.position: f for f in engine.run(range(len(case.y)), rows)}


def _agree(a: Finished, b: Finished) -> bool:
    if a.verdict is None or b.verdict is None:
        return a.verdict is b.verdict and a.evaluations == b.evaluations
    return torch.equal(a.verdict.x_adv, b.verdict.x_adv) and (a.lane, a.evaluations) == (b.lane, b.evaluations)

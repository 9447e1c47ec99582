"""The contract of an attack."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robustsuite.attacks.base import Attack, Stepper
from robustsuite.models.classifier import Classifier, fooled
from robustsuite.noise import ExampleNoise
from robustsuite.registry import ATTACKS, Entry
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
from robustsuite.testing.stepper import check_stepper
from robustsuite.testing.toys import SEED, Case, linear_case, net_case
from robustsuite.testing.watch import Watch
from robustsuite.threat import NORMS, Norm

ACCESS = ("white-box", "score", "label", "transfer")
KINDS = ("bounded", "minimum-norm", "universal", "patch")
STRENGTH = {
    "white-box": ((2, 1.5, 1.0), (10, 1.5, 0.5)),
    "score": ((2, 4.0, 0.5),),
    "label": ((2, 3.0, 0.25),),
    "transfer": (),
}
"""By access: on a linear model of so many classes, at eps = factor times the exact radius, the share to be broken."""
SHAPES = ((2, (1, 8, 8)), (3, (3, 8, 6)), (10, (1, 6, 9)))
_N = 6


def check_attack(plugin: Any, params: Mapping[str, Any] = {}) -> list[Finding]:
    """Findings on an attack: a registered `Entry`, or its class.

    Large budgets (steps, n_queries, ...) that ``params`` leave out are lowered, so that a check takes seconds. Facts:
    `norms`, `access`, `kind`; `batch_coupled=True` declares an attack whose results depend on the batch.
    """
    entry = as_entry(plugin, ATTACKS)
    report = Report(entry.target)
    small = quick_params(entry.target, params)
    ready = (
        report.check("class", check_class, entry.target, Attack, '@register_attack("name", ...)', small)
        and report.check("facts", _facts, entry)
        and report.check("parameters", check_made, entry.target, small)
    )
    if not ready:
        return report.findings
    attack, norms = entry.target(**small), entry.facts["norms"]
    bench = _Bench(attack, entry)
    for norm in norms:
        if not report.check(f"{norm}: candidates", bench.candidates, norm):
            continue  # the rest would say the same again
        report.check(f"{norm}: shapes and classes", bench.shapes, norm)
        report.check(f"{norm}: hands off", bench.hands_off, norm)
        report.check(f"{norm}: repeatable", bench.repeatable, norm)
        report.check(f"{norm}: independent of neighbours", bench.independent, norm)
        report.check(f"{norm}: eps = 0", bench.no_room, norm)
        report.check(f"{norm}: strength", bench.strength, norm)
        report.check(f"{norm}: access", bench.access, norm)
        if isinstance(attack, Stepper):
            check_stepper(report, attack, net_case(norm, bench.classes, (1, 6, 6), 7, rowwise=True))
    return report.findings


def _facts(entry: Entry) -> str:
    facts = entry.facts
    example = 'norms=("Linf", "L2"), access="white-box", kind="bounded"'
    missing = [name for name in ("norms", "access", "kind") if name not in facts]
    expect(
        not missing, f"it does not declare {', '.join(missing)}.", f"Declare them: @register_attack(..., {example})."
    )
    norms = facts["norms"]
    good = isinstance(norms, tuple | list) and len(norms) > 0 and all(n in NORMS for n in norms)
    expect(good, f"norms must be a tuple out of {NORMS}, got {norms!r}.", 'Write it like norms=("Linf",).')
    for name, known in (("access", ACCESS), ("kind", KINDS)):
        value = facts[name]
        expect(value in known, f"{name} must be one of {', '.join(known)}, got {value!r}.", f"Correct {name}.")
    least = facts.get("min_classes", 2)
    expect(isinstance(least, int) and least >= 2, f"min_classes must be an integer >= 2, got {least!r}.", "Correct it.")
    return f"{facts['access']}, {facts['kind']}, {', '.join(norms)}"


@dataclasses.dataclass(frozen=True)
class _Bench:
    attack: Attack
    entry: Entry

    @property
    def classes(self) -> int:
        """The fewest classes that the attack takes, at least three where that is no matter."""
        return max(3, self.entry.facts.get("min_classes", 2))

    def run(self, case: Case, noise: ExampleNoise | None = None) -> Tensor:
        """The attack on copies, its result checked for being candidates at all."""
        x, y = case.x.clone(), case.y.clone()
        x_adv = self.attack.run(case.model, x, y, case.threat, noise or case.noise())
        self._valid(case, x_adv)
        return x_adv.detach()

    def _valid(self, case: Case, x_adv: Any) -> None:
        on = f"on {case.describe()}"
        expect(isinstance(x_adv, Tensor), f"expected a tensor, got {type(x_adv).__name__} {on}.", "Return x_adv alone.")
        like = f"{case.x.dtype} {list(case.x.shape)} on {case.x.device}"
        got = f"{x_adv.dtype} {list(x_adv.shape)} on {x_adv.device}"
        expect(got == like, f"expected x_adv like x, {like}, got {got} ({on}).", "Return one candidate an image, as x.")
        bad = int((~torch.isfinite(x_adv)).flatten(1).any(1).sum())
        expect(bad == 0, f"{bad} of {len(x_adv)} candidates hold NaN or infinity {on}.", "Look for 0/0 in the step.")
        low, high = float(x_adv.min()), float(x_adv.max())
        remedy = "End with x + threat.project(x, x_adv - x), which knows ball and box."
        expect(low >= 0 and high <= 1, f"pixels must lie in [0,1], got [{low:.6g}, {high:.6g}] {on}.", remedy)
        if self.entry.facts["kind"] != "minimum-norm":
            outside = ~case.threat.contains(case.x, x_adv)
            far = float(case.threat.distance(case.x, x_adv).max())
            detail = f"{int(outside.sum())} of {len(x_adv)} candidates leave the ball {on}: distance up to {far:.6g}."
            expect(not bool(outside.any()), detail, remedy)

    def candidates(self, norm: Norm) -> str:
        case = net_case(norm, self.classes, (1, 8, 8), _N, rowwise=True)
        wrong = dataclasses.replace(case, y=torch.cat([(case.y[:1] + 1) % self.classes, case.y[1:]]))
        moved = int((self.run(wrong) != case.x).flatten(1).any(1).sum())
        where = "box" if self.entry.facts["kind"] == "minimum-norm" else "ball and box"
        return f"finite, shaped like x, in {where}; {moved} of {_N} moved"

    def shapes(self, norm: Norm) -> str:
        tried = []
        for classes, shape in SHAPES:
            if classes < self.entry.facts.get("min_classes", 2):
                continue
            for n in (1, 3):
                case = net_case(norm, classes, shape, n, rowwise=True)
                try:
                    self.run(case)
                except Violation:
                    raise
                except Exception as error:
                    error.add_note(f"[on {case.describe()}]")
                    raise
            tried.append(f"{classes} classes at {'x'.join(map(str, shape))}")
        return f"runs on {', '.join(tried)}; one image and three"

    def hands_off(self, norm: Norm) -> str:
        case = net_case(norm, self.classes, (1, 8, 8), _N, rowwise=True)
        x, y = case.x.clone(), case.y.clone()
        noise = case.noise()
        with Watch(case.model.module, x=x, y=y, **{"noise.ids": noise.ids}) as watch:
            self.attack.run(case.model, x, y, case.threat, noise)
        return watch.expect_nothing()

    def repeatable(self, norm: Norm) -> str:
        case = net_case(norm, self.classes, (1, 8, 8), _N, rowwise=True)
        first, again, other = self.run(case), self.run(case), self.run(case, case.noise(seed=SEED + 1))
        different = int((first != again).flatten(1).any(1).sum())
        expect(
            different == 0,
            f"two runs with the same noise differ on {different} of {_N} images.",
            "Draw from the noise that is handed in, and keep no state between runs.",
        )
        follows = int((first != other).flatten(1).any(1).sum())
        declared = bool(self.entry.facts.get("randomized", False))
        expect(
            declared or follows == 0,
            f"another seed changes {follows} of {_N} images, but randomized=True is not declared.",
            "Declare randomized=True in the decorator.",
        )
        return f"bit-identical; another seed changes {follows} of {_N} images"

    def independent(self, norm: Norm) -> str:
        """The same image with other neighbours, and in another place, gives the same bits at one batch shape."""
        if self.entry.facts.get("batch_coupled"):
            return "not tested: it declares batch_coupled, its results depend on the batch that it is run in"
        case = net_case(norm, self.classes, (1, 8, 8), 2 * _N, rowwise=True)
        half = torch.arange(_N)
        first = self.run(case.rows(half))
        replaced = torch.where(half < 3, half, half + _N)
        beside = self.run(case.rows(replaced))
        changed = int((first[:3] != beside[:3]).flatten(1).any(1).sum())
        expect(
            changed == 0,
            f"{changed} of 3 images get another result when the other images of their batch are exchanged.",
            "No step may look across rows: normalise, sort, stop and average for each image alone.",
        )
        order = torch.tensor([4, 2, 0, 5, 1, 3])
        moved = int((first[order] != self.run(case.rows(order))).flatten(1).any(1).sum())
        expect(
            moved == 0,
            f"{moved} of {_N} images get another result when the batch is permuted together with its ids.",
            "Key every random number by noise (which knows the ids), never by the row of the batch.",
        )
        return "exchanged neighbours and a permuted batch change no bit"

    def no_room(self, norm: Norm) -> str:
        case = net_case(norm, self.classes, (1, 8, 8), 3, rowwise=True).with_eps(0.0)
        if self.entry.facts["kind"] == "minimum-norm":
            self.run(case)
            return "runs"
        return f"moves nothing further than {float(case.threat.distance(case.x, self.run(case)).max()):.1g}"

    def strength(self, norm: Norm) -> str:
        """On a linear model it is known which images can be broken: all of them, beyond their minimal radius."""
        told = []
        for classes, factor, wanted in STRENGTH[self.entry.facts["access"]]:
            if classes < self.entry.facts.get("min_classes", 2):
                continue
            case = linear_case(norm, classes, (1, 8, 8), 12, rowwise=True, factor=factor)
            x_adv = self.run(case)
            hit = fooled(case.model.logits(x_adv), case.y) & case.threat.contains(case.x, x_adv)
            share = float(hit.float().mean())
            what = f"{share:.0%} of linear images with {classes} classes at {factor:g} times their exact minimal radius"
            expect(
                share >= wanted,
                f"it breaks {what} (eps {case.threat.radius:.4g}); expected at least {wanted:.0%} of a "
                f"{self.entry.facts['access']} attack.",
                "All of them can be broken: check the sign of the gradient, the step size and the projection.",
            )
            told.append(what)
        return f"breaks {'; '.join(told)}" if told else "not tested: no closed form for this access and class count"

    def access(self, norm: Norm) -> str:
        """An attack without gradients runs on a model that has none; a label attack sees nothing but labels."""
        declared = self.entry.facts["access"]
        if declared == "white-box":
            return "white-box: nothing to hide"
        case = net_case(norm, self.classes, (1, 8, 8), 3, rowwise=True)
        sealed = self.run(dataclasses.replace(case, model=_Gradientless(case.model, lambda logits: logits)))
        if declared != "label":
            return f"{declared}: asks for no gradient"
        only = self.run(dataclasses.replace(case, model=_Gradientless(case.model, _labels_only)))
        changed = int((sealed != only).flatten(1).any(1).sum())
        expect(
            changed == 0,
            f"it declares access='label', but {changed} of 3 results change when the logits are replaced by their "
            "argmax.",
            "Use logits.argmax(1) alone, or declare access='score'.",
        )
        return "label: neither gradients nor scores matter"


def _labels_only(logits: Tensor) -> Tensor:
    return nn.functional.one_hot(logits.argmax(1), logits.shape[1]).to(logits.dtype)


class _NoGraph(nn.Module):
    def __init__(self, inner: nn.Module, view: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.view = inner, view

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.view(self.inner(x))


class _Gradientless(Classifier):
    """A model that gives no gradient, by any door."""

    def __init__(self, model: Classifier, view: Callable[[Tensor], Tensor]) -> None:
        module = _NoGraph(model.module, view)
        super().__init__(module, num_classes=model.num_classes, input_shape=model.input_shape)

    def gradient(self, x: Tensor, losses: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        raise Violation(
            "it asked the model for a gradient, which only a white-box attack has.",
            "Declare access='white-box', or use model.logits alone.",
        )

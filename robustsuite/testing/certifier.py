"""The contract of a certifier: above all that nothing it proves can be broken."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from robustsuite.certification.base import Certificates, Certifier
from robustsuite.models.classifier import Classifier, margins
from robustsuite.noise import Noise
from robustsuite.registry import CERTIFIERS, Entry
from robustsuite.testing.certificates import allowed, check_certificates
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
from robustsuite.testing.toys import EPS, SEED, Case, Exotic, linear_case, net_case
from robustsuite.testing.watch import Watch
from robustsuite.threat import NORMS, Norm

_N = 8
_SHAPE = (1, 5, 5)
_FACTORS = (0.03, 0.25, 0.6, 0.95, 1.05, 1.5, 4.0)
_ROUNDING = 1e-6  # the closed form is of the real numbers, the model computes in float32
_RANDOM_POINTS, _ASCENTS, _ASCENT_STEPS = 32, 4, 15


def check_certifier(plugin: Any, params: Mapping[str, Any] = {}) -> list[Finding]:
    """Findings on a certifier: a registered `Entry`, or its class. Large sample counts are lowered."""
    entry = as_entry(plugin, CERTIFIERS)
    report = Report(entry.target)
    small = quick_params(entry.target, params)
    ready = (
        report.check("class", check_class, entry.target, Certifier, '@register_certifier("name", ...)', small)
        and report.check("facts", _facts, entry)
        and report.check("parameters", check_made, entry.target, small)
    )
    if not ready:
        return report.findings
    certifier = entry.target(**small)
    for norm in entry.facts["norms"]:
        bench = _Bench(certifier, norm)
        if not report.check(f"{norm}: certificates", bench.certificates):
            continue
        report.check(f"{norm}: sound on linear models", bench.linear)
        report.check(f"{norm}: sound against brute force", bench.brute_force)
        report.check(f"{norm}: where the model is wrong", bench.wrong)
        report.check(f"{norm}: repeatable", bench.repeatable)
        report.check(f"{norm}: independent of neighbours", bench.independent)
        report.check(f"{norm}: hands off", bench.hands_off)
        report.check(f"{norm}: unsupported models", bench.exotic)
    return report.findings


def _facts(entry: Entry) -> str:
    norms = entry.facts.get("norms")
    expect(
        isinstance(norms, tuple | list) and len(norms) > 0 and all(n in NORMS for n in norms),
        f"it must declare norms, a tuple out of {NORMS}, got {norms!r}.",
        'Write it into the decorator: @register_certifier("name", norms=("Linf",)).',
    )
    assert norms is not None
    return f"norms {', '.join(norms)}"


@dataclasses.dataclass(frozen=True)
class _Bench:
    certifier: Certifier
    norm: Norm

    def linear_case(self, factor: float = 0.5) -> Case:
        return linear_case(self.norm, 2, _SHAPE, _N, rowwise=False, factor=factor)

    def net_case(self) -> Case:
        case = net_case(self.norm, 3, _SHAPE, _N, rowwise=False)
        return case.with_eps(float(EPS[self.norm]) / 20)

    def case(self) -> Case:
        """A toy that the certifier supports."""
        reasons = []
        for case in (self.net_case(), self.linear_case()):
            reason = self.certifier.unsupported(case.model, case.threat)
            if reason is None:
                return case
            reasons.append(reason)
        raise Violation(
            f"it supports neither a linear model nor a ReLU network with one hidden layer: {' / '.join(reasons)}.",
            "Support one of the two, so that its soundness can be tested.",
        )

    def run(self, case: Case, y: Tensor | None = None, seed: int = SEED) -> Certificates:
        """Certificates, checked for their form."""
        labels = (case.y if y is None else y).clone()
        found = self.certifier.certify(case.model, case.x.clone(), labels, case.threat, case.noise(seed=seed))
        check_certificates(found, len(case.y), case.model.num_classes)
        return found

    def certificates(self) -> str:
        case = self.case()
        found = self.run(case)
        one = self.run(case.rows(torch.tensor([0])))
        expect(one.guarantee == found.guarantee, "the guarantee depends on the batch.", "State one guarantee.")
        subject = self.certifier.subject(case.model)
        good = isinstance(subject, Classifier) and subject.num_classes == case.model.num_classes
        expect(
            good, f"subject must be a Classifier with as many classes, got {subject!r}.", "Return model, or wrap it."
        )
        return f"float64 radii, {found.guarantee}; {int((found.radius > 0).sum())} of {_N} above 0 on {case.describe()}"

    def linear(self) -> str:
        """The closed form is never exceeded, and something is proved well below it."""
        proved, best = 0, 0.0
        for factor in _FACTORS:
            case = self.linear_case(factor)
            reason = self.certifier.unsupported(case.model, case.threat)
            if reason is not None:
                return f"not tested: it does not support a linear model ({reason})"
            found = self.run(case)
            share = found.radius / case.closed_form
            over = (share > 1 + _ROUNDING) & (found.predicted >= 0)
            expect(
                int(over.sum()) <= allowed(found.guarantee, _N),
                f"unsound: {int(over.sum())} of {_N} radii exceed the exact minimal radius of a linear model, by up to "
                f"a factor {float(share.max()):.4g} (eps {case.threat.radius:.4g}).",
                "A radius is a lower bound of the distance to the nearest error: check the constant, the dual norm and "
                "the direction in which bounds are rounded.",
            )
            proved += int(((found.radius >= case.threat.radius) & (found.predicted == case.y)).sum())
            best = max(best, float(share.max()))
        expect(
            proved > 0,
            f"it certifies none of {_N} linear images, even at {_FACTORS[0]:.0%} of their exact minimal radius.",
            "Sound but empty: something between the bounds and the radius loses everything.",
        )
        return f"never above the closed form, {best:.0%} of it at best"

    def brute_force(self) -> str:
        """Points of every certified ball of a random network: none may be of another class."""
        case = self.net_case()
        if self.certifier.unsupported(case.model, case.threat) is not None:
            return "not tested: it does not support a ReLU network with one hidden layer"
        return self.attack(case, "a random ReLU network")

    def attack(self, case: Case, what: str) -> str:
        """Random points, corners and gradient ascents inside of every ball that is certified at several eps."""
        subject = self.certifier.subject(case.model)
        balls, tried, wrong, guarantee = 0, 0, 0, "deterministic"
        for divisor in (40, 10, 3):
            scaled = case.with_eps(float(EPS[self.norm]) / divisor)
            found = self.run(scaled)
            guarantee = found.guarantee
            for i in ((found.radius > 0) & (found.predicted >= 0)).nonzero().flatten().tolist():
                ball = scaled.rows(torch.tensor([i])).with_eps(float(found.radius[i]) * (1 - 1e-5))
                points = _points(ball, int(found.predicted[i]))
                ids = torch.arange(len(points)) + 1000 * i
                label, _ = subject.decide(points, Noise(SEED, "brute force").at(ids))
                bad = (label != found.predicted[i]) & (label >= 0)
                balls, tried, wrong = balls + 1, tried + len(points), wrong + int(bool(bad.any()))
        expect(
            wrong <= allowed(guarantee, balls),
            f"unsound: {wrong} of {balls} certified balls of {what} hold a point of another class.",
            "Some bound is not one, or speaks of another model: test each operator's bounds against random points of "
            "its box, and let unsupported() refuse whatever is not understood.",
        )
        return f"{tried} points in {balls} certified balls, {wrong} balls with another class"

    def wrong(self) -> str:
        case = self.case()
        label = (case.y + 1) % case.model.num_classes
        found = self.run(case, label)
        lies = int(((found.predicted == label) & (found.radius > 0)).sum())
        expect(
            lies == 0,
            f"given wrong labels, it certifies {lies} of {_N} images for the wrong label.",
            "predicted is what the model answers (or -1), not y; y may only steer what is worth proving.",
        )
        return "no wrong label is certified"

    def repeatable(self) -> str:
        case = self.case()
        a, b = self.run(case), self.run(case)
        same = torch.equal(a.radius, b.radius) and torch.equal(a.predicted, b.predicted)
        remedy = "Draw from the noise that is handed in, and keep no state between calls."
        expect(same, "two calls with the same noise give different certificates.", remedy)
        c = self.run(case, seed=SEED + 1)
        sampled = not (torch.equal(a.radius, c.radius) and torch.equal(a.predicted, c.predicted))
        expect(
            not sampled or a.guarantee != "deterministic",
            "another seed changes the certificates, but the guarantee says 'deterministic'.",
            "A statement that rests on samples has a confidence: 'confidence 0.999'.",
        )
        return "bit-identical with the same noise"

    def independent(self) -> str:
        case = self.case()
        whole = self.run(case)
        order = torch.arange(_N).flip(0)
        moved = self.run(case.rows(order))
        alone = torch.cat([self.run(case.rows(i)).radius for i in order.flip(0).split(1)])
        # Another batch shape may move the last bits of the logits, and margins are small differences of them.
        near = torch.allclose(whole.radius[order], moved.radius, rtol=1e-3, atol=1e-7)
        near &= torch.allclose(whole.radius, alone, rtol=1e-3, atol=1e-7)
        same = torch.equal(whole.predicted[order], moved.predicted)
        expect(
            near and same,
            "an image's certificate changes with its place in the batch or with the other images of it.",
            "No operation may look across rows; key every random number by noise (which knows the ids).",
        )
        return "order and size of the batch do not matter"

    def hands_off(self) -> str:
        case = self.case()
        x, y, noise = case.x.clone(), case.y.clone(), case.noise()
        with Watch(case.model.module, x=x, y=y, **{"noise.ids": noise.ids}) as watch:
            self.certifier.certify(case.model, x, y, case.threat, noise)
        return watch.expect_nothing()

    def exotic(self) -> str:
        """On a model beyond all bounds it says so in words, or treats it as a black box and certifies all the same."""
        case = self.case()
        module = Exotic(case.model.module)
        model = Classifier(module, num_classes=case.model.num_classes, input_shape=_SHAPE)
        reason = self.certifier.unsupported(model, case.threat)
        if reason is None:
            found = self.attack(dataclasses.replace(case, model=model), "a model that branches and sorts")
            return f"takes a model that branches and sorts as a black box: {found}"
        remedy = "Return None, or why the model cannot be certified, naming the operator."
        expect(
            isinstance(reason, str) and bool(reason), f"unsupported must return text or None, got {reason!r}.", remedy
        )
        return f"refuses a model that branches and sorts: {reason}"


def _points(ball: Case, label: int) -> Tensor:
    """Points of one example's ball and box: random ones on its surface, and ends of gradient ascents."""
    count = _RANDOM_POINTS + _ASCENTS
    x = ball.x.expand(count, *ball.x.shape[1:])
    noise = Noise(SEED, "points").at(torch.arange(count))
    far = noise.signs(x.shape[1:]) * ball.threat.radius if ball.threat.norm == "Linf" else noise.normal(x.shape[1:]) * 9
    delta = ball.threat.project(x, far)
    delta[_RANDOM_POINTS + 1 :] *= 0.5
    delta[_RANDOM_POINTS] = 0
    target = torch.full((_ASCENTS,), label)
    climbing, base = delta[_RANDOM_POINTS:], x[_RANDOM_POINTS:]
    ends = []
    for _ in range(_ASCENT_STEPS):
        _, grad = ball.model.gradient(base + climbing, lambda logits: -margins(logits, target))
        climbing = ball.threat.project(base, climbing + 0.3 * ball.threat.radius * ball.threat.ascent(grad))
        ends.append(base + climbing)
    points = torch.cat([x[:_RANDOM_POINTS] + delta[:_RANDOM_POINTS], *ends[-3:]]).clamp(0, 1)
    return points[ball.threat.contains(ball.x.expand(len(points), *ball.x.shape[1:]), points)]

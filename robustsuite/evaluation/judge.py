"""The evaluator's word: a candidate counts when the float32 model is fooled by it, inside ball and box."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustsuite.models.classifier import Classifier, margins
from robustsuite.noise import Noise
from robustsuite.threat import ThreatModel


@dataclass(frozen=True)
class Verdict:
    """One judged candidate; `reason` says why it was refused."""

    broken: bool
    x_adv: Tensor
    distance: float
    margin: float
    predicted: int
    reason: str = ""


class Judge:
    """Judges candidates in batches of one shape, so that a verdict does not depend on its neighbours."""

    def __init__(self, model: Classifier, threat: ThreatModel, noise: Noise, shape: int) -> None:
        self.model, self.threat, self.noise, self.shape = model, threat, noise, shape
        # A sampling classifier is judged by other draws than the attack saw: refusals are common, so do not wait.
        self.immediate = model.facts.randomized

    def __call__(self, x: Tensor, y: Tensor, ids: Tensor, x_adv: Tensor) -> list[Verdict]:
        """Verdicts on ``x_adv`` ``[N,C,H,W]`` against the clean ``x``; rounding at the ball's edge is tidied first."""
        return self.exact(x, y, ids, self._tidy(x, x_adv.detach().to(x)))

    def exact(self, x: Tensor, y: Tensor, ids: Tensor, x_adv: Tensor) -> list[Verdict]:
        """The same on candidates as they are."""
        verdicts: list[Verdict] = []
        for start in range(0, x.shape[0], self.shape):
            part = slice(start, start + self.shape)
            verdicts += self._judge(x[part], y[part], ids[part], x_adv[part])
        return verdicts

    def _judge(self, x: Tensor, y: Tensor, ids: Tensor, x_adv: Tensor) -> list[Verdict]:
        inside = self.threat.contains(x, x_adv)
        pad = self.shape - x.shape[0]
        batch = torch.cat([x_adv, x_adv[:1].expand(pad, *x_adv.shape[1:])]) if pad else x_adv
        keys = torch.cat([ids, ids[:1].expand(pad)]) if pad else ids
        finite = torch.isfinite(batch).flatten(1).all(1)
        predicted, logits = self.model.decide(batch.nan_to_num(0.0), self.noise.at(keys))
        n = x.shape[0]
        predicted, logits, finite = predicted[:n], logits[:n], finite[:n] & torch.isfinite(logits[:n]).all(1)
        # An abstention is no proof of an error: only a definite other class breaks an example.
        broken = inside & finite & (predicted != y) & (predicted >= 0)
        distance = self.threat.distance(x, x_adv)
        table = zip(
            broken.tolist(),
            x_adv.cpu(),
            distance.tolist(),
            margins(logits, y).tolist(),
            predicted.tolist(),
            inside.tolist(),
            finite.tolist(),
            strict=True,
        )
        return [Verdict(ok, adv, d, m, p, "" if ok else _reason(near, sane)) for ok, adv, d, m, p, near, sane in table]

    def _tidy(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Take back what the rounding of x + delta put outside of the ball; anything larger stays and is refused."""
        excess = self.threat.distance(x, x_adv) - self.threat.radius
        slip = (excess > 0) & (excess <= 1e-4 * self.threat.radius + 1e-6)
        fixed = (x + self.threat.project(x, x_adv - x) * (1 - 1e-6)).clamp(0, 1)
        return torch.where(slip.view(-1, *[1] * (x.ndim - 1)), fixed, x_adv)


def _reason(inside: bool, finite: bool) -> str:
    if not finite:
        return "NaN or infinity"
    return "the model is not fooled" if inside else "outside of ball or box"

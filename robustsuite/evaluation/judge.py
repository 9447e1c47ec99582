"""The evaluator's word: a candidate counts when the float32 model is fooled by it, inside ball and box.

Of a model that draws as it predicts, the most of its keyed draws must be fooled.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustsuite.models.classifier import Classifier, margins
from robustsuite.models.randomized import RandomizedClassifier
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
    wrong: int = 0
    """Draws of a randomised model that erred."""


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


@dataclass(frozen=True)
class Poll:
    """What the draws of a randomised model say of images."""

    wrong: Tensor  # int64 [N], draws that are not for the label
    predicted: Tensor  # int64 [N], the label, or the leading other class where most draws err (-1: NaN)
    logits: Tensor  # [N,K], the mean


class Jury(Judge):
    """Judges by the majority of keyed draws: broken where more than half of them err.

    In every draw, one pass of ``shape`` rows, an example has the row that its place among ``ids`` (those of the whole
    data set) gives it. So its draws are the same whoever is judged with it, and anyone can repeat them; another order
    of the data is another run.
    """

    def __init__(self, model: RandomizedClassifier, threat: ThreatModel, noise: Noise, shape: int, ids: Tensor) -> None:
        super().__init__(model, threat, noise, shape)
        self.random = model
        self.places = {example: divmod(place, self.shape) for place, example in enumerate(ids.tolist())}

    def exact(self, x: Tensor, y: Tensor, ids: Tensor, x_adv: Tensor) -> list[Verdict]:
        """Verdicts on candidates as they are; several of one example meet the same draws."""
        inside, finite = self.threat.contains(x, x_adv), torch.isfinite(x_adv).flatten(1).all(1)
        poll = self.poll(x_adv.nan_to_num(0.0), y, ids)
        finite &= poll.predicted >= 0
        broken = inside & finite & (2 * poll.wrong > self.random.draws)
        # A point that may not count is no stronger than one that fools nobody.
        wrong = poll.wrong.masked_fill(~(inside & finite), 0)
        table = zip(
            broken.tolist(),
            x_adv.cpu(),
            self.threat.distance(x, x_adv).tolist(),
            margins(poll.logits, y).tolist(),
            poll.predicted.tolist(),
            inside.tolist(),
            finite.tolist(),
            wrong.tolist(),
            strict=True,
        )
        return [
            Verdict(ok, adv, d, m, p, "" if ok else _reason(near, sane), w) for ok, adv, d, m, p, near, sane, w in table
        ]

    def poll(self, x: Tensor, y: Tensor, ids: Tensor) -> Poll:
        """The draws' answers on images ``[N,C,H,W]``."""
        counts = torch.zeros(x.shape[0], self.random.num_classes, dtype=torch.int64, device=x.device)
        logits = torch.zeros(x.shape[0], self.random.num_classes, device=x.device)
        for group, members, seats in self._sittings(ids):
            batch = x[members[:1]].repeat(self.shape, *[1] * (x.ndim - 1))
            batch[seats] = x[members]
            votes, mean = self.random.votes(batch, self.noise.child(f"group/{group}"))
            counts[members], logits[members] = votes[seats], mean[seats]
        right = counts.gather(1, y.view(-1, 1)).squeeze(1)
        wrong = self.random.draws - right
        leader = counts.scatter(1, y.view(-1, 1), -1).argmax(1)
        predicted = torch.where(2 * wrong > self.random.draws, leader, y)
        return Poll(wrong, predicted.masked_fill(~torch.isfinite(logits).all(1), -1), logits)

    def _sittings(self, ids: Tensor) -> list[tuple[int, Tensor, Tensor]]:
        """(group of the data set, rows of the call, their seats): nobody sits on another's seat."""
        found: dict[tuple[int, int], list[tuple[int, int]]] = {}
        again: dict[int, int] = {}
        for row, example in enumerate(ids.tolist()):
            group, seat = self.places[example]
            turn = again.get(example, 0)
            again[example] = turn + 1
            found.setdefault((group, turn), []).append((row, seat))
        tables = {key: torch.tensor(pairs, device=ids.device) for key, pairs in found.items()}
        return [(group, table[:, 0], table[:, 1]) for (group, _), table in tables.items()]


def _reason(inside: bool, finite: bool) -> str:
    if not finite:
        return "NaN or infinity"
    return "the model is not fooled" if inside else "outside of ball or box"

"""DiffPure: diffusion purification."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from robustsuite.defenses.base import WrapMethod
from robustsuite.errors import UsageError
from robustsuite.models.bpda import check_surrogate, transformed
from robustsuite.models.checkpoint import read_state
from robustsuite.models.classifier import Classifier
from robustsuite.models.companion import pin
from robustsuite.models.factory import build
from robustsuite.models.keyed import Draws, KeyedClassifier
from robustsuite.models.loading import load_into
from robustsuite.models.purified import GaussianScore, NoiseScore, Purifier
from robustsuite.registry import register_defense


@register_defense("diffpure", kind="wrap", paper="Nie et al. 2022, arXiv:2205.07460", cost="steps + 1 passes")
@dataclass(frozen=True)
class DiffPure(WrapMethod):
    """Noise every image up to the time ``until`` of a diffusion process, run the process backwards, then classify.

    Nie, Guo, Huang, Xiao, Vahdat, Anandkumar, "Diffusion Models for Adversarial Purification" (ICML 2022), with the
    variance-preserving SDE: ``until`` 0.1 for CIFAR-10 in Linf 8/255, 0.075 in L2 0.5, 0.15 for ImageNet, and
    ``steps`` Euler steps (the paper's dt 1e-3 is 100 of them). Far weaker than first reported: Lee and Kim (ICCV 2023)
    with the full gradient and many draws, which is what attacks get here.

    ``score`` is ``py:module:factory`` or ``py:file.py:factory`` of a module ``(x in [-1,1], t [N]) -> [N,C,H,W]``, and
    ``weights`` a file that is loaded into it; ``predicts`` says what it gives: ``score``, or ``noise`` at the time
    ``time_scale`` times t. ``score_sha256`` and ``weights_sha256`` are filled in. The default ``gaussian`` is the exact
    score of independent pixels ``N(0, 0.5^2)``: for tests, a defense of nothing. ``surrogate`` is what the gradient
    goes through: ``exact`` (every step computed again on the way back), or ``identity``. ``eot`` draws make an
    evaluation by an attack, ``draws`` a verdict.
    """

    score: str = "gaussian"
    weights: str = ""
    predicts: str = "score"
    time_scale: float = 1.0
    until: float = 0.1
    steps: int = 100
    surrogate: str = "exact"
    eot: int = 20
    draws: int = 20
    score_sha256: str = ""
    weights_sha256: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.until <= 1 or self.steps < 1:
            raise UsageError(f"diffpure needs 0 <= until <= 1 and steps >= 1, got {self.until} and {self.steps}.")
        if self.predicts not in ("score", "noise"):
            raise UsageError(f"predicts must be score or noise, got '{self.predicts}'.")
        if self.score != "gaussian" and not self.score.startswith("py:"):
            raise UsageError(f"score must be gaussian, py:module:factory or py:file.py:factory, got '{self.score}'.")
        if self.score == "gaussian" and (self.weights or self.predicts != "score"):
            raise UsageError("the gaussian score takes no weights and predicts no noise; name a network py:...")
        check_surrogate(self.surrogate, soft=False)
        object.__setattr__(self, "score_sha256", pin(self.score, self.score_sha256))
        object.__setattr__(self, "weights_sha256", pin(self.weights, self.weights_sha256))

    def wrap(self, model: Classifier) -> Classifier:
        """A randomised classifier; evaluations of the score count as passes. Raises `InputError` as `build` does."""
        source = Draws()
        purifier = Purifier(self._score(model), self.until, self.steps, source)
        made = transformed(model, purifier, self.surrogate)
        passes = self.steps + 1 if self.until else 1
        return KeyedClassifier(made, source, eot=self.eot, draws=self.draws, passes_per_draw=passes)

    def _score(self, model: Classifier) -> nn.Module:
        if self.score == "gaussian":
            return GaussianScore()
        net = build(self.score, {}, num_classes=model.num_classes, input_shape=model.input_shape)
        if self.weights:
            load_into(net, read_state(Path(self.weights)).state, self.weights)
        return net if self.predicts == "score" else NoiseScore(net, self.time_scale)

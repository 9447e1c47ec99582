"""Two-layer ReLU networks trained to their global optimum by convex programs, also against perturbations."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from robustsuite.defenses import convex_admm, convex_cvxpy
from robustsuite.defenses.base import FitMethod
from robustsuite.defenses.convex_patterns import sample_patterns
from robustsuite.defenses.convex_program import LOSSES, Cells, Loss, Program, losses
from robustsuite.defenses.convex_recovery import neurons, two_layers, write_into
from robustsuite.defenses.convex_sampled import sample_neurons, solve_sampled
from robustsuite.defenses.services import Services
from robustsuite.errors import InputError, UsageError
from robustsuite.registry import register_defense
from robustsuite.threat import Norm

Solver = Literal["auto", "cvxpy", "admm"]
_SMALL = 100_000  # images times patterns times coordinates: CVXPY takes a minute for twice as many


@register_defense(
    "convex_relu",
    kind="fit",
    paper="Bai, Gautam, Sojoudi 2023, arXiv:2201.01965",
    cost="one convex program, no pass",
    fidelity="reconstructed",
)
@dataclass(frozen=True)
class ConvexReLU(FitMethod):
    """The two-layer network with the smallest robust loss plus weight decay, among those of sampled activations.

    Bai, Gautam, Sojoudi, "Efficient Global Optimization of Two-layer ReLU Networks: Quadratic-time Algorithms and
    Adversarial Training" (SIAM J. Math. Data Sci. 2023), for two classes and the architecture mlp with depth=1 (`width`
    its hidden units). The penalty is `beta` (1e-4 to 1e-2) times half the squared weights, in front of the mean
    `loss`: ``hinge``, ``squared`` or ``logistic``, of the network's one output f, which is trained towards -1 and 1 and
    handed back as the logits (0, f). With `robust` it is the loss at the worst point of each image's ball within the
    box [0,1], otherwise at the image; the network has it exactly.

    `program` ``patterns`` samples at most width / 2 activation patterns (12 to 120 in their code), each with a positive
    and a negative neuron; its optimum is global among networks of these, and of all when no pattern is missing.
    ``sampled`` draws `width` neurons, and only their output weights are trained, not robustly. `solver`: ``cvxpy`` (the
    extra convex), ``admm``, or ``auto``: the former where it is installed and the program is small. Name one for
    weights that do not depend on what is installed. `steps` and `tolerance` are those of ADMM, which for robust
    programs is slow to reach more than two digits. Neither epochs nor learning rate of the recipe are used.

    Certain are the clean programs, and that the robust ones equal the adversarial loss of the network (checked); the
    paper's own form of the robust squared and logistic loss is not at hand. Beyond the paper: the box, and that
    patterns which no neuron can keep on whole balls are left out.
    """

    loss: Loss = "hinge"
    beta: float = 1e-3
    robust: bool = True
    program: Literal["patterns", "sampled"] = "patterns"
    solver: Solver = "auto"
    steps: int = 4000
    tolerance: float = 1e-5
    select: ClassVar[Literal["robust", "clean", "last"]] = "last"
    norms: ClassVar[tuple[Norm, ...]] = ("Linf",)
    classes: ClassVar[int | None] = 2

    def __post_init__(self) -> None:
        for name, known in (
            ("loss", LOSSES),
            ("program", ("patterns", "sampled")),
            ("solver", ("auto", "cvxpy", "admm")),
        ):
            if getattr(self, name) not in known:
                raise UsageError(f"convex_relu: {name} must be one of {', '.join(known)}, got '{getattr(self, name)}'.")
        if self.beta <= 0 or self.tolerance <= 0 or self.steps < 1:
            raise UsageError(f"convex_relu needs beta > 0, tolerance > 0 and steps >= 1, got {self}.")
        if self.program == "sampled" and self.robust:
            raise UsageError("convex_relu: the sampled program has no robust form; give robust=false with it.")

    def fit(self, services: Services) -> nn.Module:
        """One epoch: the program, its solution, the network."""
        if services.num_classes != 2:
            raise InputError(
                f"convex_relu trains networks of two classes, {services.data.name} has {services.num_classes}; take a "
                "data set of two."
            )
        module = services.module
        width = two_layers(module)[0].out_features
        if width < 2:
            raise UsageError(f"convex_relu needs at least 2 hidden units, one of each sign; the network has {width}.")
        y = 2.0 * services.data.y.double().cpu() - 1
        cells = Cells.around(services.data.x, services.threat.radius if self.robust else 0.0)
        solve = self._patterns if self.program == "patterns" else self._sampled
        v, w, told = solve(cells, y, width, services)
        write_into(module, *neurons(v, w))
        services.report(1, told)
        return module

    def _patterns(
        self, cells: Cells, y: Tensor, width: int, services: Services
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        patterns = sample_patterns(cells, width // 2, services.noise)
        program = Program(cells, y, patterns, self.loss, self.beta)
        if self._by_cvxpy(patterns.numel() * cells.rows.shape[1]):
            v, w = convex_cvxpy.solve(program)
        else:
            v, w = convex_admm.solve(program, steps=self.steps, tolerance=self.tolerance)
        told = {"risk": float(program.risk(v, w)), "objective": program.objective(v, w)}
        return v, w, told | {"patterns": float(patterns.shape[1]), "violation": program.violation(v, w)}

    def _sampled(
        self, cells: Cells, y: Tensor, width: int, services: Services
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        drawn = sample_neurons(width, cells.rows.shape[1], services.noise)
        features = (cells.rows @ drawn.T).clamp(min=0)
        if self._by_cvxpy(features.numel()):
            weights = convex_cvxpy.solve_sampled(features, y, self.loss, self.beta)
        else:
            weights = solve_sampled(features, y, self.loss, self.beta, steps=self.steps, tolerance=self.tolerance)
        risk = float(losses(self.loss, y, features @ weights, torch.zeros_like(y)).mean())
        told = {"risk": risk, "objective": risk + self.beta * float(weights.abs().sum())}
        v, w = (drawn * part.clamp(min=0).unsqueeze(1) for part in (weights, -weights))
        return v, w, told

    def _by_cvxpy(self, size: int) -> bool:
        return self.solver == "cvxpy" or (self.solver == "auto" and size <= _SMALL and convex_cvxpy.installed())

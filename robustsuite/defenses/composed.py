"""A base and its modifiers as one step method, and the combinations that cannot be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from robustsuite.defenses.base import StepMethod
from robustsuite.defenses.context import Context
from robustsuite.defenses.step import InnerSpec, Step, Term
from robustsuite.errors import ContractError, UsageError

ONCE = {
    "perturb": "move the weights inside of a step",
    "gradient": "replace the gradient",
    "keep": "say which weights are kept",
}


def fills(part: StepMethod, slot: str) -> bool:
    """Whether ``part`` fills ``slot`` itself."""
    return getattr(type(part), slot) is not getattr(StepMethod, slot)


@dataclass(frozen=True)
class Composed(StepMethod):
    """A base and any number of modifiers, each under its name. Labels chain, terms add up, weights multiply.

    Raises `UsageError` for parts that cannot go together, with the reason.
    """

    parts: tuple[tuple[str, StepMethod], ...]

    def __post_init__(self) -> None:
        names = [name for name, _ in self.parts]
        for name in names:
            if names.count(name) > 1:
                raise UsageError(f"the modifier '{name}' is given twice; name it once.")
        for slot, what in ONCE.items():
            both = [name for name, part in self.parts if fills(part, slot)]
            if len(both) > 1:
                raise UsageError(f"{' and '.join(both)} cannot be combined: both {what}. Leave one of them out.")
        if len([name for name, part in self.parts if part.replays != 1]) > 1:
            raise UsageError("two parts replay every batch; leave one of them out.")

    def _at(self, where: Step | Context) -> Iterator[StepMethod]:
        """The parts, each with its own memory in ``where`` while it is its turn."""
        for name, part in self.parts:
            where.scope = name
            yield part

    def setup(self, context: Context) -> None:
        """Every part's, in order."""
        for part in self._at(context):
            part.setup(context)

    def data(self, step: Step) -> None:
        """Every part's, in order."""
        for part in self._at(step):
            part.data(step)

    def labels(self, step: Step) -> Tensor:
        """The loss's labels; those of the inner maximisation are left in ``step.q_attack``."""
        loss = attack = step.q
        for part in self._at(step):
            if not fills(part, "labels"):
                continue
            same, new = attack is loss, None
            if part.scope in ("both", "loss"):
                step.q = loss
                loss = new = part.labels(step)
            if part.scope in ("both", "attack"):
                step.q = attack
                attack = new if same and new is not None else part.labels(step)
        step.q, step.q_attack = loss, attack
        return loss

    def inner(self, step: Step, spec: InnerSpec) -> InnerSpec:
        """As every part wants it, in order; the asking part's memory stays current."""
        asking = step.scope
        for part in self._at(step):
            spec = part.inner(step, spec)
        step.scope = asking
        return spec

    def views(self, step: Step) -> Mapping[str, Tensor]:
        """All parts' views; a modifier sees those before it, and may replace one."""
        found: dict[str, Tensor] = {}
        for part in self._at(step):
            self._needed(step, part)
            new = {name: view.detach() for name, view in part.views(step).items()}
            step.views.update(new)
            found |= new
        return found

    def _needed(self, step: Step, part: StepMethod) -> None:
        missing = [view for view in part.needs if view not in step.views]
        if missing:
            raise UsageError(
                f"{step.scope} works on the view '{missing[0]}', which {self.parts[0][0]} does not make (it has "
                f"{', '.join(step.views)}); train it with {part.base}, or leave it out."
            )

    def terms(self, step: Step) -> Mapping[str, Term]:
        """All parts' terms. Raises `ContractError` when two parts use one name."""
        terms: dict[str, Term] = {}
        for part in self._at(step):
            new = part.terms(step)
            if terms.keys() & new.keys():
                raise ContractError(
                    f"{step.scope} gives a term '{min(terms.keys() & new.keys())}' that is there already."
                )
            terms.update(new)
        return terms

    def weights(self, step: Step, terms: Mapping[str, Term]) -> Mapping[str, Tensor]:
        """The products of all parts' weights."""
        weights: dict[str, Tensor] = {}
        for part in self._at(step):
            if part.weighs and not set(part.weighs) & set(terms):
                raise UsageError(
                    f"{step.scope} weighs the terms {', '.join(part.weighs)}, and {self.parts[0][0]} has "
                    f"{', '.join(terms)}; train it with {part.base}, or leave it out."
                )
            for name, new in part.weights(step, terms).items():
                weights[name] = weights[name] * new if name in weights else new
        return weights

    def perturb(self, step: Step, closure: Callable[[], Tensor]) -> Sequence[Tensor] | None:
        """That of the one part that has it."""
        for part in self._at(step):
            if fills(part, "perturb"):
                name = step.scope  # the closure visits every part
                offsets = part.perturb(step, closure)
                step.scope = name
                return offsets
        return None

    def gradient(self, step: Step, scalars: Mapping[str, Tensor]) -> None:
        """That of the one part that has it."""
        for part in self._at(step):
            if fills(part, "gradient"):
                return part.gradient(step, scalars)
        return super().gradient(step, scalars)

    def post_step(self, step: Step) -> None:
        """Every part's, in order."""
        for part in self._at(step):
            part.post_step(step)

    def epoch_end(self, context: Context) -> None:
        """Every part's, in order."""
        for part in self._at(context):
            part.epoch_end(context)

    def keep(self, context: Context) -> nn.Module | None:
        """That of the one part that has it."""
        for part in self._at(context):
            if fills(part, "keep"):
                return part.keep(context)
        return None


def compose(base: tuple[str, StepMethod], *modifiers: tuple[str, StepMethod]) -> Composed:
    """``base`` with ``modifiers``, in the order in which they were given.

    The class facts of the whole: it couples the batch or is of second order when one part is, and moves weights and
    selects as the part does that says so.
    """
    parts = (base, *modifiers)
    methods = [part for _, part in parts]
    perturbing = next((part for part in methods if fills(part, "perturb")), methods[0])
    selecting = next((part for part in reversed(methods) if part.select != "robust"), methods[0])
    facts = {
        "batch_coupled": any(part.batch_coupled for part in methods),
        "second_order": any(part.second_order for part in methods),
        "restore": perturbing.restore,
        "select": selecting.select,
        "norms": tuple(norm for norm in StepMethod.norms if all(norm in part.norms for part in methods)),
        "monitors": tuple(dict.fromkeys(name for part in methods for name in part.monitors)),
        "joint": next((part.joint for part in methods if part.joint), ()),
        "replays": max(part.replays for part in methods),
    }
    return type("Composed", (Composed,), facts)(parts)

"""The contract of an operator of the bound engine, and the table of those that are known.

A new operator is a class registered by `@operator`: in `layers` when it mixes elements of its input with weights, in
`elementwise` otherwise. An affine one has `interval` and `forward`; an activation has `interval` and `lines`, with
`relaxed = True`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from robustsuite.bounds.relaxation import Lines
from robustsuite.bounds.rounding import Box, Rounding
from robustsuite.bounds.rows import Rows
from robustsuite.errors import InputError

Target = type[nn.Module] | Callable[..., Any] | str


class UnsupportedOperator(InputError):
    """An operator of the model that the bound engine cannot bound; the message names it and its place."""


class Operator(ABC):
    """One operator of a traced network; it reads the module's parameters at every call, so that training is seen.

    `aliases` says that the result may share its memory with the first argument, which matters for in-place operators;
    `relaxed`, that it is no affine function of the activations among its arguments; `mixes`, that its elements depend
    on several of an argument's; `single`, that `interval` keeps its promise about float32 execution when it is
    given boxes in float32 too (others are given float64).
    """

    aliases: ClassVar[bool] = False
    relaxed: ClassVar[bool] = False
    mixes: ClassVar[bool] = False
    single: ClassVar[bool] = False

    def __init__(self, module: nn.Module | None = None) -> None:
        self.module: Any = module

    def refusal(self, *args: Any, **kwargs: Any) -> str | None:
        """Why this operator cannot be bounded as it is called; boxes come as the class `Box` in the arguments."""
        del args, kwargs
        return None

    @abstractmethod
    def interval(self, rounding: Rounding, *args: Any, **kwargs: Any) -> Box:
        """The box of the result, given the operator's arguments with a `Box` for every activation among them."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """An affine operator on tensors, in their dtype."""
        raise NotImplementedError

    def terms(self, *args: Any, **kwargs: Any) -> int:
        """How many terms an element of an affine operator's gradient sums up at the most."""
        del args, kwargs
        return 16

    def lines(self, rounding: Rounding, *args: Any, **kwargs: Any) -> Lines:
        """The lines around an activation, given what `interval` is given."""
        raise NotImplementedError

    def loose(self, box: Box) -> Tensor:
        """Where a tighter box of the argument would tighten what comes of it, bool of the box's shape."""
        return box.lower < box.upper

    def pull(self, rows: Rows, *args: Any, **kwargs: Any) -> list[Rows] | None:
        """Rows over an affine operator's result as rows over the activations among its arguments, in their order.

        The constant part aside. None where the gradient that autograd gives of `forward` is as good.
        """
        del rows, args, kwargs
        return None


OPERATORS: dict[Target, type[Operator]] = {}
C = TypeVar("C", bound=type[Operator])


def operator(*targets: Target) -> Callable[[C], C]:
    """Register an operator for module types, functions and names of tensor methods."""

    def add(cls: C) -> C:
        OPERATORS.update(dict.fromkeys(targets, cls))
        return cls

    return add


def find_operator(target: Any) -> type[Operator] | None:
    """The operator of a module, a function or a method's name; None when there is none.

    A subclass of a module counts as its parent while it computes the same (parametrised layers do).
    """
    if not isinstance(target, nn.Module):
        return OPERATORS.get(target)
    for parent in type(target).__mro__:
        if parent in OPERATORS:
            same = all(getattr(type(target), f, 0) is getattr(parent, f, 0) for f in ("forward", "_conv_forward"))
            return OPERATORS[parent] if same else None
    return None

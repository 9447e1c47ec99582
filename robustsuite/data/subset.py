"""Which examples: a subset spec to positions, the same for everyone who types it."""

import difflib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustsuite.errors import InputError, UsageError
from robustsuite.noise import Noise

FORMS = "all, first:N, range:FROM:TO (TO not included), stride:K, ids:FILE, random:N@SEED, class-balanced:N (N in all)"


def select(spec: str, labels: Tensor, ids: Tensor) -> Tensor:
    """Positions int64 of the examples that ``spec`` names; ``labels`` and ``ids`` int64 ``[N]`` are the whole set's.

    Ascending, except for ``ids:FILE``, which keeps the file's order. Raises `UsageError` on a spec that cannot be
    read, `InputError` on one that asks for what is not there.
    """
    kind, _, argument = spec.partition(":")
    if spec == "all":
        return torch.arange(len(labels))
    if kind not in _KINDS or not argument:
        near = difflib.get_close_matches(kind, [*_KINDS, "all"], n=1, cutoff=0.5)
        hint = f" Did you mean '{near[0]}'?" if near and near[0] != kind else ""
        raise UsageError(f"unknown subset '{spec}'.{hint} The forms are {FORMS}.")
    return _KINDS[kind](argument, labels, ids)


def _first(argument: str, labels: Tensor, ids: Tensor) -> Tensor:
    del ids
    return torch.arange(_count("first", argument, len(labels)))


def _range(argument: str, labels: Tensor, ids: Tensor) -> Tensor:
    del ids
    start, _, stop = argument.partition(":")
    low, high = _integer("range", start), _integer("range", stop)
    if not 0 <= low < high <= len(labels):
        raise InputError(f"subset range:{argument} does not lie within the {len(labels)} examples that there are.")
    return torch.arange(low, high)


def _stride(argument: str, labels: Tensor, ids: Tensor) -> Tensor:
    del ids
    step = _integer("stride", argument)
    if step < 1:
        raise UsageError(f"subset stride:{argument}: the stride must be at least 1.")
    return torch.arange(0, len(labels), step)


def _random(argument: str, labels: Tensor, ids: Tensor) -> Tensor:
    """The N examples whose keyed random number is lowest: an example's chance does not depend on the others' order."""
    number, at, seed = argument.partition("@")
    if not at:
        raise UsageError(f"subset random:{argument} needs a seed: random:{argument}@0.")
    count = _count("random", number, len(labels))
    words = Noise(_integer("random", seed), "subset").at(ids).bits(2)
    # 62 bits: ties are out of the question for any data set, and int64 still holds them.
    keys = ((words[:, 0] >> 1) << 31) | (words[:, 1] >> 1)
    return keys.argsort(stable=True)[:count].sort().values


def _class_balanced(argument: str, labels: Tensor, ids: Tensor) -> Tensor:
    """N examples in all, taken in rounds: the first of every class, then the second of every class, and so on."""
    del ids
    count = _count("class-balanced", argument, len(labels))
    rounds = torch.empty_like(labels)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        rounds[members] = torch.arange(len(members))
    order = sorted(range(len(labels)), key=lambda i: (int(rounds[i]), int(labels[i])))
    return torch.tensor(order[:count], dtype=torch.int64).sort().values


def _ids(argument: str, labels: Tensor, ids: Tensor) -> Tensor:
    del labels
    wanted = _read_ids(Path(argument))
    place = {int(example): i for i, example in enumerate(ids.tolist())}
    seen: set[int] = set()
    for example in wanted:
        if example not in place:
            raise InputError(
                f"{argument}: there is no example {example}; the ids run from {min(place)} to {max(place)} "
                f"({len(place)} examples)."
            )
        if example in seen:
            raise InputError(f"{argument}: the id {example} appears twice.")
        seen.add(example)
    return torch.tensor([place[example] for example in wanted], dtype=torch.int64)


def _read_ids(path: Path) -> list[int]:
    if not path.is_file():
        raise InputError(f"subset ids: the file {path} does not exist.")
    try:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False).ravel().tolist()
        elif path.suffix == ".json":
            values = json.loads(path.read_text())
        else:
            values = [int(line) for line in path.read_text().split("\n") if line.strip()]
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} is not a list of ids ({error}); one integer a line, a JSON list or .npy.") from None
    if not isinstance(values, list) or not values or not all(type(v) is int for v in values):
        raise InputError(f"{path} is not a list of integers; one integer a line, a JSON list or .npy of integers.")
    return values


def _integer(kind: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"subset {kind}: '{text}' is not a whole number. The forms are {FORMS}.") from None


def _count(kind: str, text: str, available: int) -> int:
    count = _integer(kind, text)
    if count < 1:
        raise UsageError(f"subset {kind}:{text}: at least one example is needed.")
    if count > available:
        raise InputError(f"subset {kind}:{text} asks for {count} examples, but there are only {available}.")
    return count


_KINDS: dict[str, Callable[[str, Tensor, Tensor], Tensor]] = {
    "first": _first,
    "range": _range,
    "stride": _stride,
    "random": _random,
    "class-balanced": _class_balanced,
    "ids": _ids,
}

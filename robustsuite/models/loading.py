"""A state dict put into a module, strictly; a mismatch is explained with the nearest remedy."""

from collections import Counter
from collections.abc import Mapping

from torch import Tensor, nn

from robustsuite.errors import InputError

_COUNTER = "num_batches_tracked"  # batch normalisation's counter: unused in eval mode, absent from older files
_SHOWN = 6


def load_into(
    module: nn.Module,
    state: Mapping[str, Tensor],
    where: str,
    *,
    strip_prefix: str | None = None,
    by_order: bool = False,
) -> None:
    """Load ``state`` into ``module``: every name and shape must agree, only BatchNorm counters may be absent.

    ``strip_prefix`` is taken off every name first. ``by_order`` pairs the tensors by position instead of by name
    (the shapes must agree all the same). Raises `InputError` that lists what is missing, unexpected or of another
    shape, and what to do.
    """
    own = module.state_dict()
    given = dict(state)
    if strip_prefix:
        given = _stripped(given, strip_prefix, where)
    if by_order:
        given = _renamed_by_order(own, given, where)
    given |= {k: v for k, v in own.items() if k.endswith(_COUNTER) and k not in given}
    if problem := _mismatch(own, given):
        raise InputError(f"{where}: the weights do not fit the architecture. {problem}")
    module.load_state_dict(given, strict=True)


def fits(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> bool:
    """Whether the names and shapes agree, BatchNorm counters aside."""
    return _shapes(own) == _shapes(given)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {k: tuple(v.shape) for k, v in state.items() if not k.endswith(_COUNTER)}


def _stripped(state: dict[str, Tensor], prefix: str, where: str) -> dict[str, Tensor]:
    others = [k for k in state if not k.startswith(prefix)]
    if others:
        raise InputError(
            f"{where}: the prefix '{prefix}' cannot be stripped, {len(others)} of {len(state)} names do not start "
            f"with it ({_grouped(others)})."
        )
    return {k.removeprefix(prefix): v for k, v in state.items()}


def _renamed_by_order(own: Mapping[str, Tensor], given: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    ours, theirs = list(_shapes(own).items()), list(_shapes(given).items())
    for (name, shape), (other, other_shape) in zip(ours, theirs, strict=False):
        if shape != other_shape:
            raise InputError(
                f"{where}: matching by order fails at '{other}' {list(other_shape)}, where the architecture has "
                f"'{name}' {list(shape)}."
            )
    if len(ours) != len(theirs):
        raise InputError(
            f"{where}: matching by order fails, the file has {len(theirs)} tensors, the architecture {len(ours)}."
        )
    return {name: given[other] for (name, _), (other, _) in zip(ours, theirs, strict=True)}


def _mismatch(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """What does not agree, in words; empty when all does."""
    ours, theirs = _shapes(own), _shapes(given)
    missing = [k for k in ours if k not in theirs]
    unexpected = [k for k in theirs if k not in ours]
    unexpected += [k for k in given if k.endswith(_COUNTER) and k not in own]
    differ = [k for k in ours if k in theirs and ours[k] != theirs[k]]
    parts = []
    if missing:
        parts.append(f"Missing in the file ({len(missing)}): {_grouped(missing)}.")
    if unexpected:
        parts.append(f"Not in the architecture ({len(unexpected)}): {_grouped(unexpected)}.")
    if differ:
        shown = [f"{k} is {list(theirs[k])} in the file, {list(ours[k])} in the architecture" for k in differ[:_SHOWN]]
        more = f" and {len(differ) - _SHOWN} more" if len(differ) > _SHOWN else ""
        parts.append(f"Other shapes ({len(differ)}): {'; '.join(shown)}{more}.")
    if parts:
        parts.append(_remedy(ours, theirs, missing, unexpected, differ))
    return " ".join(parts)


def _grouped(names: list[str]) -> str:
    """``layer1.* (24), conv1.weight``: names by their first component, single ones in full."""
    counts = Counter(n.split(".")[0] for n in names)
    groups = [
        f"{top}.* ({count})" if count > 1 else next(n for n in names if n.split(".")[0] == top)
        for top, count in counts.items()
    ]
    more = f" and {len(groups) - _SHOWN} more groups" if len(groups) > _SHOWN else ""
    return ", ".join(groups[:_SHOWN]) + more


def _remedy(
    ours: dict[str, tuple[int, ...]],
    theirs: dict[str, tuple[int, ...]],
    missing: list[str],
    unexpected: list[str],
    differ: list[str],
) -> str:
    prefix = _common_prefix(ours, theirs)
    if prefix:
        return f"All {len(theirs)} names in the file start with '{prefix}': add --strip-prefix {prefix}"
    if missing and list(ours.values()) == list(theirs.values()):
        return "All shapes agree in order and only the names differ: add --match-by-order if the layers are the same."
    if not missing and not unexpected:
        heads = {(theirs[k][0], ours[k][0]) for k in differ if theirs[k][1:] == ours[k][1:] and theirs[k]}
        last = list(ours)[-1].rsplit(".", 1)[0]
        if len(heads) == 1 and all(k.startswith(last + ".") for k in differ):
            file, arch = heads.pop()
            return f"The file's last layer has {file} classes, {arch} were asked for: set the number of classes."
        return "The names agree, so it is this architecture at another size: check its parameters (-M width=...)."
    return "This looks like another architecture: check --arch and its parameters (-M name=value)."


def _common_prefix(ours: dict[str, tuple[int, ...]], theirs: dict[str, tuple[int, ...]]) -> str:
    """What every name in the file has in front of the architecture's names, if that is the whole difference."""
    if not ours or not theirs:
        return ""
    parts = next(iter(theirs)).split(".")
    for depth in range(1, len(parts)):
        prefix = ".".join(parts[:depth]) + "."
        if {k.removeprefix(prefix) for k in theirs if k.startswith(prefix)} == set(ours):
            return prefix if all(k.startswith(prefix) for k in theirs) else ""
    return ""

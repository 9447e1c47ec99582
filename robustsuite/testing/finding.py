"""What the suite says: findings in words, and a runner that no plugin can bring down."""

import dataclasses
import inspect
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustsuite.registry import Entry
from robustsuite.results import arithmetic


@dataclass(frozen=True)
class Finding(arithmetic.Finding):
    """One promise of the contract and whether it holds: `detail` is the evidence, `remedy` what to do about it."""

    remedy: str = ""

    def __str__(self) -> str:
        return f"{super().__str__()} {self.remedy}".rstrip()


class Violation(Exception):
    """A promise that does not hold, raised by a check."""

    def __init__(self, detail: str, remedy: str) -> None:
        super().__init__(detail)
        self.detail, self.remedy = detail, remedy


def expect(holds: bool, detail: str, remedy: str) -> None:
    """Raise `Violation` unless ``holds``."""
    if not holds:
        raise Violation(detail, remedy)


@dataclass
class Report:
    """Runs checks one after the other on one plugin and collects a finding for each."""

    target: Any
    findings: list[Finding] = field(default_factory=list)

    def check(self, name: str, run: Callable[..., str], *args: Any) -> bool:
        """Run one check, which returns its evidence or raises; whatever it raises becomes a failed finding."""
        try:
            finding = Finding(name, True, run(*args))
        except Violation as broken:
            finding = Finding(name, False, broken.detail, broken.remedy)
        except (Exception, SystemExit) as error:  # a stranger's plugin may raise anything; the suite goes on
            finding = Finding(name, False, f"it raised {describe(error, self.target)}.", "Fix the line that raises.")
        self.findings.append(finding)
        return finding.ok


def describe(error: BaseException, target: Any) -> str:
    """Type and message of an exception, and the last line that it passed in the plugin's own file."""
    notes = getattr(error, "__notes__", [])
    message = " ".join(" ".join([str(error), *notes]).split()) or "no message"
    frames = traceback.extract_tb(error.__traceback__)
    own = source_file(target)
    mine = [f for f in frames if own is not None and Path(f.filename) == own]
    where = (mine or frames)[-1:]
    place = f" ({Path(where[0].filename).name}, line {where[0].lineno})" if where else ""
    return f"{type(error).__name__}: {message}{place}"


def source_file(target: Any) -> Path | None:
    """The file that defines a plugin, where it has one."""
    try:
        found = inspect.getsourcefile(inspect.unwrap(target))
    except TypeError:
        return None
    return Path(found) if found else None


def as_entry(plugin: Any, registry: Any) -> Entry:
    """The registered entry of a plugin given as an entry, a class or a function; an unregistered one has no facts."""
    if isinstance(plugin, Entry):
        return plugin
    known = [entry for entry in registry if entry.target is plugin]
    if known:
        return known[0]
    return Entry(getattr(plugin, "__name__", repr(plugin)), plugin, {}, getattr(plugin, "__module__", "?"))


# Hyper-parameters that only buy strength or precision: the suite checks a promise, not a benchmark.
_USUAL = {"sigma": 0.25}  # values for parameters that may lack a default because no one value fits all
_ENOUGH = {
    "steps": 20,
    "n_iter": 20,
    "n_queries": 150,
    "restarts": 2,
    "n_targets": 3,
    "n": 400,
    "n0": 40,
    "samples": 100,
}


def quick_params(target: Any, params: Mapping[str, Any]) -> dict[str, Any]:
    """``params``, and for the budgets that they leave out a small value instead of a large default."""
    small = dict(params)
    if dataclasses.is_dataclass(target):
        for known in dataclasses.fields(target):
            if known.init and _no_default(known) and known.name in _USUAL:
                small.setdefault(known.name, _USUAL[known.name])
            limit = _ENOUGH.get(known.name)
            if limit is not None and isinstance(known.default, int) and known.default > limit:
                small.setdefault(known.name, limit)
    return small


def check_class(target: Any, base: type, decorator: str, params: Mapping[str, Any]) -> str:
    """A plugin class: derived from its base, a frozen dataclass, a value for every parameter."""
    expect(
        isinstance(target, type) and issubclass(target, base),
        f"expected a class derived from {base.__name__}, got {_what(target)}.",
        f"Derive it from {base.__module__}.{base.__name__}.",
    )
    own = vars(target).get("__dataclass_params__")
    expect(
        own is not None and own.frozen,
        f"expected a frozen dataclass, got {'a dataclass that can be changed' if own else 'no dataclass of its own'}.",
        f"Put @dataclass(frozen=True) between {decorator} and the class: parameters are recorded and hashed.",
    )
    bare = [f.name for f in dataclasses.fields(target) if f.init and _no_default(f) and f.name not in params]
    expect(not bare, f"no default for {', '.join(bare)}.", "Give it a default, or hand the check a value (params).")
    text = (target.__doc__ or "").strip()
    written = bool(text) and not text.startswith(f"{target.__name__}(")  # a dataclass without one gets its signature
    expect(written, "it has no docstring.", "Say in one line what it does.")
    names = [f.name for f in dataclasses.fields(target) if f.init]
    return f"a frozen dataclass with {', '.join(names) or 'no parameters'}"


def _no_default(known: dataclasses.Field[Any]) -> bool:
    return known.default is dataclasses.MISSING and known.default_factory is dataclasses.MISSING


def _what(target: Any) -> str:
    return f"the class {target.__name__}" if isinstance(target, type) else f"a {type(target).__name__}"


def check_made(target: Any, params: Mapping[str, Any]) -> str:
    """The plugin can be made with its defaults and with ``params``, and is equal to another of its kind."""
    expect(target(**params) == target(**params), "two instances with the same parameters differ.", "Keep no state.")
    return f"made with {dict(params)}" if params else "made with its defaults"

"""Names to plugins: decorators, built-in discovery, entry points, `--plugin file.py`, did-you-mean."""

import difflib
import hashlib
import importlib
import importlib.util
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from robustsuite.errors import InputError, PrerequisiteError, UnknownNameError, UsageError

T = TypeVar("T")

ENTRY_POINT_GROUP = "robustsuite.plugins"


@dataclass(frozen=True)
class Entry:
    """One registered plugin: its name, the object, what it declares, and where it came from."""

    name: str
    target: Any
    facts: dict[str, Any]
    origin: str

    @property
    def summary(self) -> str:
        """First line of the plugin's docstring."""
        return (self.target.__doc__ or "").strip().split("\n")[0]


@dataclass
class Registry:
    """A named set of plugins of one kind.

    Built-ins are found by importing the modules of ``package`` on first use, so that a new file there needs no
    other edit. Registering a taken name raises `UsageError`, unless it is the same object imported again.
    """

    kind: str
    package: str
    entries: dict[str, Entry] = field(default_factory=dict)
    families: dict[str, Callable[[], None]] = field(default_factory=dict)
    """Functions that register all names ``prefix:...``, by prefix; called when such a name is asked for, or all."""
    _discovered: bool = False

    def family(self, prefix: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
        """Decorator of the function that registers the names of a package that is costly to import, or absent.

        It may raise `PrerequisiteError`: then a name of the family is refused so, and a listing goes without it.
        """

        def add(register_all: Callable[[], None]) -> Callable[[], None]:
            self.families[prefix] = register_all
            return register_all

        return add

    def register(self, name: str, **facts: Any) -> Callable[[T], T]:
        """Decorator that registers its target under ``name`` with declared ``facts``."""

        def add(target: T) -> T:
            origin = getattr(target, "__module__", "?")
            known = self.entries.get(name)
            if known is not None and _identity(known.target) != _identity(target):
                raise UsageError(
                    f"the {self.kind} name '{name}' is taken by {known.origin}; {origin} must choose another name."
                )
            self.entries[name] = Entry(name, target, facts, origin)
            return target

        return add

    def get(self, name: str) -> Entry:
        """The entry called ``name``; raises `UnknownNameError` with the nearest names otherwise."""
        if name in self:
            return self.entries[name]
        near = difflib.get_close_matches(name, self.entries, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
        failed = f" Plugins that failed to load: {'; '.join(map(str, FAILURES))}." if FAILURES else ""
        raise UnknownNameError(f"no {self.kind} '{name}'.{hint} Available: {', '.join(sorted(self.entries))}.{failed}")

    def __iter__(self) -> Iterator[Entry]:
        self.discover()
        for prefix in list(self.families):
            with suppress(PrerequisiteError):
                self._expand(prefix)
        return iter(sorted(self.entries.values(), key=lambda e: e.name))

    def __contains__(self, name: str) -> bool:
        self.discover()
        if name not in self.entries:  # a member that needs no package must not ask for its family's
            self._expand(name.partition(":")[0])
        return name in self.entries

    def _expand(self, prefix: str) -> None:
        if prefix in self.families:
            self.families[prefix]()
            self.families.pop(prefix)

    def discover(self) -> None:
        """Import the built-in modules of this kind once, then the installed entry points."""
        if self._discovered:
            return
        self._discovered = True
        package = importlib.import_module(self.package)
        for module in pkgutil.walk_packages(package.__path__, self.package + "."):
            importlib.import_module(module.name)
        load_entry_points()


def _identity(target: Any) -> tuple[str, str]:
    return getattr(target, "__module__", ""), getattr(target, "__qualname__", repr(target))


ATTACKS = Registry("attack", "robustsuite.attacks")
CERTIFIERS = Registry("certifier", "robustsuite.certification")
DEFENSES = Registry("defense", "robustsuite.defenses")
DATASETS = Registry("dataset", "robustsuite.data")
ARCHITECTURES = Registry("architecture", "robustsuite.models")
REGISTRIES = {
    "attacks": ATTACKS,
    "certifiers": CERTIFIERS,
    "defenses": DEFENSES,
    "datasets": DATASETS,
    "architectures": ARCHITECTURES,
}

register_attack = ATTACKS.register
attack_family = ATTACKS.family
register_certifier = CERTIFIERS.register
register_defense = DEFENSES.register
register_dataset = DATASETS.register
register_architecture = ARCHITECTURES.register


@dataclass(frozen=True)
class PluginFailure:
    """A plugin that could not be imported: reported, never fatal on its own."""

    origin: str
    reason: str

    def __str__(self) -> str:
        return f"{self.origin} ({self.reason})"


FAILURES: list[PluginFailure] = []
_loaded_entry_points = False


def load_entry_points() -> None:
    """Import every installed `robustsuite.plugins` entry point once; a failing one is noted in `FAILURES`."""
    global _loaded_entry_points
    if _loaded_entry_points:
        return
    _loaded_entry_points = True
    for point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            point.load()
        except Exception as error:  # a stranger's module may raise anything; the suite must go on
            FAILURES.append(PluginFailure(f"entry point {point.name}", f"{type(error).__name__}: {error}"))


def load_plugin_file(path: str | Path) -> Any:
    """Import a plugin from a file and return its module.

    Raises `InputError` when the file is not there. A file that raises at import is noted in `FAILURES`, and None
    is returned: what does not need the plugin goes on.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"plugin file {path} does not exist.")
    # The hash keeps two files of one name apart, so that the second cannot replace what the first registered.
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    name = f"robustsuite_plugin_{path.stem}_{place}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise InputError(f"plugin file {path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # as above
        del sys.modules[name]
        FAILURES.append(PluginFailure(str(path), _reason(error, path)))
        return None
    return module


def _reason(error: BaseException, path: Path) -> str:
    """Type, message and the last line in the plugin's own file."""
    own = str(path.resolve())
    if isinstance(error, SyntaxError) and error.filename == own:
        return f"{type(error).__name__}: {error.msg} (line {error.lineno})"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == own]
    return f"{type(error).__name__}: {error}" + (f" (line {lines[-1]})" if lines else "")

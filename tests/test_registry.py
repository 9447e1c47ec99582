"""Names to plugins: registration, suggestions, files, entry points."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from robustsuite import registry
from robustsuite.errors import InputError, UnknownNameError, UsageError
from robustsuite.registry import ATTACKS, DEFENSES, FAILURES, Registry, load_plugin_file


@pytest.fixture
def toys():
    """A registry of its own over a package without plugins."""
    return Registry("toy", "robustsuite.results")


@pytest.fixture(autouse=True)
def _undo():
    for known in registry.REGISTRIES.values():
        known.discover()  # once only: what it finds must not be undone
    before = {kind: dict(known.entries) for kind, known in registry.REGISTRIES.items()}
    failures, modules = list(FAILURES), set(sys.modules)
    yield
    for kind, known in registry.REGISTRIES.items():
        known.entries.clear()
        known.entries.update(before[kind])
    FAILURES[:] = failures
    for name in set(sys.modules) - modules:
        if name.startswith("robustsuite_plugin_"):
            del sys.modules[name]


def test_a_decorated_target_is_returned_as_it_is_and_found_by_name(toys):
    @toys.register("spin", colour="red")
    def spin():
        """Turns around.

        And around.
        """

    entry = toys.get("spin")
    assert entry.target is spin
    assert entry.facts == {"colour": "red"}
    assert entry.summary == "Turns around."
    assert entry.origin == __name__
    assert "spin" in toys
    assert [e.name for e in toys] == ["spin"]


def test_entries_come_sorted_by_name(toys):
    for name in ("b", "c", "a"):
        toys.register(name)(type(name, (), {}))
    assert [e.name for e in toys] == ["a", "b", "c"]


@pytest.mark.parametrize(("typo", "meant"), [("pdg", "pgd"), ("sqare", "square"), ("apgd-cee", "apgd-ce")])
def test_an_unknown_name_gets_the_nearest_ones(typo, meant):
    with pytest.raises(UnknownNameError, match=f"no attack '{typo}'. Did you mean .*'{meant}'"):
        ATTACKS.get(typo)


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(UnknownNameError, match=r"Available: .*pgd_at, .*trades"):
        DEFENSES.get("zzz")


def test_a_failed_plugin_is_mentioned_where_a_name_is_missing(tmp_path):
    path = tmp_path / "half.py"
    path.write_text("import no_such_package_at_all\n")
    assert load_plugin_file(path) is None
    with pytest.raises(UnknownNameError, match=r"failed to load: .*half.py \(ModuleNotFoundError"):
        ATTACKS.get("mine")


def test_a_taken_name_is_refused_and_both_owners_are_named(toys):
    toys.register("spin")(type("First", (), {"__module__": "package_a"}))
    with pytest.raises(UsageError, match="'spin' is taken by package_a; package_b must choose another"):
        toys.register("spin")(type("Second", (), {"__module__": "package_b"}))
    assert toys.get("spin").target.__name__ == "First"


def test_the_same_object_imported_again_is_no_conflict(toys):
    for _ in range(2):
        toys.register("spin")(type("Same", (), {"__module__": "package_a"}))
    assert len(list(toys)) == 1


def test_a_builtin_name_cannot_be_taken_by_a_file(tmp_path):
    path = tmp_path / "thief.py"
    path.write_text("from robustsuite.registry import register_attack\n@register_attack('pgd')\nclass PGD: ...\n")
    builtin = ATTACKS.get("pgd").target
    assert load_plugin_file(path) is None
    assert "UsageError" in FAILURES[-1].reason
    assert "taken by robustsuite.attacks.pgd" in FAILURES[-1].reason
    assert ATTACKS.get("pgd").target is builtin


PLUGIN = "from robustsuite.registry import register_attack\n@register_attack('mine', kind='bounded')\nclass Mine: ...\n"


def test_a_file_registers_its_plugin(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)
    module = load_plugin_file(path)
    assert ATTACKS.get("mine").target is module.Mine
    assert ATTACKS.get("mine").facts == {"kind": "bounded"}


def test_the_same_file_loaded_twice_is_the_same_module(tmp_path, monkeypatch):
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    assert load_plugin_file(path) is load_plugin_file("mine.py")
    assert not FAILURES


def test_a_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.py does not exist"):
        load_plugin_file(tmp_path / "nowhere.py")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("import no_such_package_at_all\n", "No module named 'no_such_package_at_all'"),
        ("class Broken(:\n", "SyntaxError"),
    ],
)
def test_a_file_that_fails_is_reported_and_not_fatal(tmp_path, text, reason):
    path = tmp_path / "broken.py"
    path.write_text(text)
    assert load_plugin_file(path) is None
    assert reason in str(FAILURES[-1])
    assert "broken.py" in str(FAILURES[-1])
    assert not [name for name in sys.modules if name == "robustsuite_plugin_broken"]
    assert "pgd" in ATTACKS


def test_a_file_that_failed_can_be_mended(tmp_path):
    path = tmp_path / "mended.py"
    path.write_text("1 / 0\n")
    assert load_plugin_file(path) is None
    path.write_text(PLUGIN)
    assert load_plugin_file(path) is not None
    assert "mine" in ATTACKS


def in_a_fresh_process(code, *folders):
    path = os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=env, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_entry_points_of_installed_packages_are_found_and_a_broken_one_is_only_noted(tmp_path):
    """A distribution as pip would leave it: a module, and a dist-info folder that declares its entry points."""
    (tmp_path / "their_attacks.py").write_text(PLUGIN.replace("mine", "theirs").replace("Mine", "Theirs"))
    (tmp_path / "their_broken.py").write_text("raise OSError('no licence file')\n")
    info = tmp_path / "their_attacks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-attacks\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[robustsuite.plugins]\nattacks = their_attacks\nbroken = their_broken\n[console_scripts]\nx = their_broken:x\n"
    )
    code = """
        import json
        from robustsuite.registry import ATTACKS, DEFENSES, FAILURES
        names = [e.name for e in DEFENSES]
        print(json.dumps({
            "origin": ATTACKS.get("theirs").origin, "builtin": "pgd" in ATTACKS, "defenses": names,
            "failures": [str(f) for f in FAILURES],
        }))
    """
    told = in_a_fresh_process(code, tmp_path)
    assert told["origin"] == "their_attacks"
    assert told["builtin"]
    assert "trades" in told["defenses"]
    assert told["failures"] == ["entry point broken (OSError: no licence file)"]


def test_an_entry_point_that_takes_a_builtin_name_is_noted_and_the_builtin_stays(tmp_path):
    (tmp_path / "their_pgd.py").write_text(PLUGIN.replace("mine", "pgd"))
    info = tmp_path / "their_pgd-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-pgd\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[robustsuite.plugins]\npgd = their_pgd\n")
    code = """
        import json
        from robustsuite.registry import ATTACKS, FAILURES
        print(json.dumps({"origin": ATTACKS.get("pgd").origin, "failures": [str(f) for f in FAILURES]}))
    """
    told = in_a_fresh_process(code, tmp_path)
    assert told["origin"] == "robustsuite.attacks.pgd"
    assert "is taken by robustsuite.attacks.pgd" in told["failures"][0]


def test_importing_the_registry_loads_no_torch():
    code = """
        import json, sys
        import robustsuite.registry
        print(json.dumps({"torch": "torch" in sys.modules}))
    """
    assert in_a_fresh_process(code) == {"torch": False}

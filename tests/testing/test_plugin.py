"""From what the user types to the checks: files, modules, names, and everything that can be wrong with them."""

import pytest

from robustsuite.errors import InputError, UnknownNameError
from robustsuite.registry import ATTACKS, FAILURES
from robustsuite.testing import check_plugin

pytestmark = pytest.mark.usefixtures("clean_registries")

ATTACK = '''
from dataclasses import dataclass
from robustsuite.attacks import Attack, register_attack

{decorator}
@dataclass(frozen=True)
class {name}(Attack):
    """Does nothing."""

    def run(self, model, x, y, threat, noise):
        return x
'''
DECORATOR = '@register_attack("{}", norms=("Linf",), access="transfer", kind="bounded")'


def write(path, text):
    path.write_text(text)
    return path


def attack_file(tmp_path, stem="idle", name="Idle", registered="idle"):
    decorator = DECORATOR.format(registered) if registered else ""
    return write(tmp_path / f"{stem}.py", ATTACK.format(decorator=decorator, name=name))


def test_a_class_in_a_file(tmp_path):
    entry, findings = check_plugin(f"{attack_file(tmp_path)}:Idle")
    assert (entry.name, entry.target.__name__) == ("idle", "Idle")
    assert all(f.ok for f in findings), [str(f) for f in findings]
    assert len(findings) == 11


def test_the_file_alone_when_it_registers_one_thing(tmp_path):
    assert check_plugin(str(attack_file(tmp_path)))[0].name == "idle"


def test_the_registered_name_in_a_file(tmp_path):
    assert check_plugin(f"{attack_file(tmp_path)}:idle")[0].name == "idle"


def test_the_file_alone_when_it_registers_several_things(tmp_path):
    both = [ATTACK.format(decorator=DECORATOR.format(n.lower()), name=n) for n in ("One", "Two")]
    path = write(tmp_path / "both.py", "\n".join(both))
    with pytest.raises(InputError, match=r"one name at a time.*it registers One, Two"):
        check_plugin(str(path))


def test_the_same_file_twice(tmp_path):
    path = attack_file(tmp_path)
    assert check_plugin(f"{path}:Idle")[0] is check_plugin(f"{path}:Idle")[0]


def test_a_module_a_name_and_an_object_mean_the_same():
    entries = [
        check_plugin("robustsuite.attacks.fgsm:FGSM")[0],
        check_plugin("fgsm")[0],
        check_plugin("attack:fgsm")[0],
        check_plugin(ATTACKS.get("fgsm").target)[0],
        check_plugin(ATTACKS.get("fgsm"))[0],
    ]
    assert all(entry is entries[0] for entry in entries)


def test_params_reach_the_plugin():
    _, findings = check_plugin("pgd", {"steps": 3})
    told = {f.name: f.detail for f in findings}
    assert "'steps': 3" in told["parameters"]


def test_a_name_of_two_kinds_must_say_which():
    with pytest.raises(InputError, match="certifier:ibp or defense:ibp"):
        check_plugin("ibp")
    assert check_plugin("defense:ibp")[0].facts["kind"] == "step"


def test_a_forgotten_decorator_is_a_finding_with_the_line_to_add(tmp_path):
    entry, (finding,) = check_plugin(f"{attack_file(tmp_path, registered=None)}:Idle")
    assert entry.name == "Idle"
    assert not finding.ok
    assert "Idle is not registered" in finding.detail
    assert "@register_attack(" in finding.remedy
    assert "@register_defense(" not in finding.remedy


def test_a_forgotten_decorator_of_a_function_offers_every_kind(tmp_path):
    path = write(tmp_path / "arch.py", "def net(num_classes=10, input_shape=(1, 8, 8)):\n    return None\n")
    _, (finding,) = check_plugin(f"{path}:net")
    assert "@register_architecture(" in finding.remedy


def test_a_file_that_fails_to_import_says_why_and_where(tmp_path):
    path = write(tmp_path / "broken.py", "import torch\n\nvalue = 1\nresult = value / 0\n")
    with pytest.raises(InputError, match=r"broken.py fails to import: ZeroDivisionError: division by zero \(line 4\)"):
        check_plugin(f"{path}:Anything")
    assert any("broken.py" in f.origin for f in FAILURES)


def test_a_file_that_is_no_python_says_where(tmp_path):
    path = write(tmp_path / "syntax.py", "x = 1\nclass Broken(:\n    pass\n")
    with pytest.raises(InputError, match=r"SyntaxError: .*line 2"):
        check_plugin(f"{path}:Broken")


def test_a_file_that_exits_is_survived(tmp_path):
    path = write(tmp_path / "leaves.py", "import sys\nsys.exit(3)\n")
    with pytest.raises(InputError, match=r"fails to import: SystemExit: 3 \(line 2\)"):
        check_plugin(f"{path}:Anything")


def test_a_file_that_wants_a_missing_package_says_which(tmp_path):
    path = write(tmp_path / "wants.py", "\nimport no_such_package_at_all\n")
    with pytest.raises(InputError, match=r"ModuleNotFoundError: No module named 'no_such_package_at_all' \(line 2\)"):
        check_plugin(str(path))


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        check_plugin(f"{tmp_path}/nowhere.py:Idle")


def test_a_misspelt_name_gets_a_suggestion_and_the_registered_ones(tmp_path):
    with pytest.raises(InputError, match=r"has no 'Idel'. Did you mean 'Idle'\? \(it registers Idle.\)"):
        check_plugin(f"{attack_file(tmp_path)}:Idel")


def test_a_misspelt_registered_name_gets_a_suggestion():
    with pytest.raises(InputError, match=r"no plugin 'pdg'. Did you mean 'pgd'"):
        check_plugin("pdg")
    with pytest.raises(UnknownNameError, match="Did you mean 'pgd'"):
        check_plugin("attack:pdg")


@pytest.mark.parametrize("target", ["no.such.module:Thing", "not a module:Thing"])
def test_a_module_that_is_not_there(target):
    with pytest.raises(InputError, match="module"):
        check_plugin(target)


def test_a_plugin_that_crashes_everywhere_brings_nothing_down(tmp_path):
    text = ATTACK.format(decorator=DECORATOR.format("explodes"), name="Explodes")
    path = write(
        tmp_path / "explodes.py", text.replace("return x", "raise RuntimeError(f'boom {eps}' if x is None else 'boom')")
    )
    _, findings = check_plugin(str(path))
    broken = [f for f in findings if not f.ok]
    assert [f.name for f in broken] == ["Linf: candidates"]
    assert "RuntimeError: boom (explodes.py, line 11)" in broken[0].detail


def test_findings_read_as_lines():
    _, findings = check_plugin("architecture:mlp")
    assert str(findings[0]).startswith("ok      factory: takes num_classes, input_shape")

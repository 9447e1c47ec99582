"""Every registered plugin of the package keeps its contract."""

from pathlib import Path

import pytest

from robustsuite.registry import ARCHITECTURES, ATTACKS, CERTIFIERS, DATASETS, DEFENSES
from robustsuite.testing import (
    check_architecture,
    check_attack,
    check_certifier,
    check_dataset,
    check_defense,
    check_plugin,
)

EXAMPLES = Path(__file__).parents[2] / "examples"
PARAMS = {
    "square": {"n_queries": 120},
    "smoothing": {"sigma": 0.25, "n": 300},
    "resnet18": {"width": 8},
    "preactresnet18": {"width": 8},
    "wrn28_10": {"width": 1, "depth": 10},
    "wrn34_10": {"width": 1, "depth": 10},
}
DEFENSE_PARAMS = {
    "smoothing": {"n": 200},
    "diffpure": {"steps": 4, "eot": 4},
    "tv_min": {"n_iter": 10, "eot": 4},
    # the published sizes would leave nothing of images this small
    "crop_flip": {"pad": 0, "flip": False},
    "cutout": {"size": 2},
}


def names(registry):
    return [entry.name for entry in registry if entry.origin.startswith("robustsuite.")]


def assert_kept(findings):
    broken = [str(f) for f in findings if not f.ok]
    assert not broken, "\n".join(broken)
    assert all(f.detail for f in findings)


@pytest.mark.parametrize("name", [n for n in names(ATTACKS) if not n.startswith("reference:")])
def test_attack(name):
    findings = check_attack(ATTACKS.get(name), PARAMS.get(name, {}))
    assert len(findings) >= 3 + 8 * len(ATTACKS.get(name).facts["norms"])
    assert_kept(findings)


@pytest.mark.reference
def test_the_reference_keeps_all_but_the_independence_that_it_disclaims():
    pytest.importorskip("pyautoattack")
    entry = ATTACKS.get("reference:autoattack")
    assert entry.facts["batch_coupled"]
    assert_kept(check_attack(entry, {"attacks": ("apgd-ce",), "n_queries": 20}))


@pytest.mark.parametrize("name", [n for n in names(CERTIFIERS) if not n.startswith("reference:")])
def test_certifier(name):
    findings = check_certifier(CERTIFIERS.get(name), PARAMS.get(name, {}))
    assert len(findings) >= 3 + 8 * len(CERTIFIERS.get(name).facts["norms"])
    assert_kept(findings)


@pytest.mark.parametrize("name", names(DEFENSES))
def test_defense(name):
    entry = DEFENSES.get(name)
    findings = check_defense(entry, DEFENSE_PARAMS.get(name, {}))
    trains = entry.facts["kind"] in ("step", "modifier")
    assert {f.name for f in findings} >= ({"training", "views"} if trains else {"parameters"})
    assert_kept(findings)


@pytest.mark.parametrize("name", names(DATASETS))
def test_dataset(name):
    assert_kept(check_dataset(DATASETS.get(name)))


@pytest.mark.parametrize("name", names(ARCHITECTURES))
def test_architecture(name):
    assert_kept(check_architecture(ARCHITECTURES.get(name), PARAMS.get(name, {})))


@pytest.mark.usefixtures("clean_registries")
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.stem)
def test_example(path):
    assert len(path.read_text().splitlines()) <= 30
    entry, findings = check_plugin(str(path))
    assert entry.name.startswith("my_")
    assert len(findings) >= 7
    assert_kept(findings)

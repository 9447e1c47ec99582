"""The contract suite: what a plugin promises, tested on toys within seconds and answered in words.

Plugin authors run it from their own tests::

    from robustsuite.testing import check_plugin

    def test_contract():
        entry, findings = check_plugin("my_attack.py:MyAttack")
        assert all(f.ok for f in findings), "\\n".join(map(str, findings))
"""

from robustsuite.evaluation.checks import check_model
from robustsuite.testing.architecture import check_architecture
from robustsuite.testing.attack import check_attack
from robustsuite.testing.certifier import check_certifier
from robustsuite.testing.dataset import check_dataset
from robustsuite.testing.defense import check_defense
from robustsuite.testing.finding import Finding
from robustsuite.testing.plugin import check_plugin

__all__ = [
    "Finding",
    "check_architecture",
    "check_attack",
    "check_certifier",
    "check_dataset",
    "check_defense",
    "check_model",
    "check_plugin",
]

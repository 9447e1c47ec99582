"""The verdicts in the repository follow from the records beside them."""

from pathlib import Path

from robustsuite.reproduction.report import check_reports

PUBLISHED = Path(__file__).parents[2] / "leaderboards" / "reproductions"


def test_published_verdicts_hold():
    assert [str(finding) for finding in check_reports(PUBLISHED) if not finding.ok] == []

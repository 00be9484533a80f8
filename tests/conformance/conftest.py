"""What a run of the conformance tests collects and how it treats a test that skips itself."""

import re
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.conformance.skips import CASE_SKIPS, SELF_SKIPS, SKIPS

KNOWN_REASONS = "|".join(
    [*SELF_SKIPS, *(re.escape(reason) for skips in (SKIPS, *CASE_SKIPS.values()) for reason in skips.values())]
)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Only a run that asks for these tests collects them, since that takes transformers' tests."""
    asked = re.search(r"(?<!not )\bconformance\b", config.getoption("markexpr"))
    return True if collection_path.name == "test_families.py" and not asked else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skip whose reason is not written out in skips.py is a failure: what is tested must not shrink unseen."""
    report = yield
    if report.skipped and item.get_closest_marker("conformance"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not re.search(KNOWN_REASONS, reason):
            report.outcome = "failed"
            report.longrepr = f"skipped for a reason that tests/conformance/skips.py does not have: {reason}"
    return report

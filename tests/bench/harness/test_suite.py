"""A suite is data: its cases, its goals, and who chooses the clock."""

from moe_hf.bench.harness.arms import Options
from moe_hf.bench.harness.report import Page
from moe_hf.bench.harness.suite import Suite
from moe_hf.bench.harness.timing import CLOCKS
from moe_hf.cli.bench import SUITES


def test_a_suite_leaves_clock_and_plan_to_the_user_and_measures_nothing_further():
    suite = Suite("meaning", "cpu", lambda quick: [], Page(lambda *given: [], lambda *given: []))
    assert (suite.clock, suite.plans, list(suite.goals)) == (None, None, [])
    assert list(suite.further(True, Options(), True, print)) == []


def test_the_suites_of_the_command_name_what_there_is():
    for suite in SUITES.values():
        assert suite.device in ("cpu", "cuda")
        assert suite.clock in (None, *CLOCKS)
        assert len({goal.quantity for goal in suite.goals}) == len(suite.goals)
        quick, whole = suite.cases(True), suite.cases(False)
        assert 0 < len(quick) < len(whole)

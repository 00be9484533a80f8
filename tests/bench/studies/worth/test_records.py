"""Costs and runs in one file."""

import pytest

from moe_hf.base.errors import CheckpointError
from moe_hf.bench.studies.worth.candidates import TWIN
from moe_hf.bench.studies.worth.learning import Learnt
from moe_hf.bench.studies.worth.records import Key, Records
from tests.bench.studies.worth.toy import SIZES

LEARNT = Learnt(1, 2, 3.0, 4.0, 5.0, [(1, 4.0)], {"a": 4.0}, {"a": 5.0}, {"a": []})


def cost(seconds, ratio):
    return {"seconds": seconds, "ratio": ratio, "low": ratio, "high": ratio}


def test_a_candidate_added_later_costs_its_ratio_times_the_twins_first_seconds(tmp_path):
    records = Records(tmp_path / "worth.json", SIZES)
    records.add_costs({TWIN: cost(0.5, 1.0), "a": cost(0.6, 1.2)}, afresh=True)
    # The machine is twice as slow now.
    records.add_costs({TWIN: cost(1.0, 1.0), "b": cost(1.5, 1.5)}, afresh=False)
    assert {name: each["seconds"] for name, each in records.costs().items()} == {TWIN: 0.5, "a": 0.6, "b": 0.75}
    assert records.steps_of("b", 1.0) == 80
    records.add_costs({TWIN: cost(1.0, 1.0), "b": cost(1.5, 1.5)}, afresh=True)
    assert set(records.costs()) == {TWIN, "b"}


def test_a_run_counts_until_its_budget_buys_other_steps(tmp_path):
    records = Records(tmp_path / "worth.json", SIZES)
    records.add_costs({TWIN: cost(0.5, 1.0)}, afresh=True)
    key = Key(TWIN, 1.0, 0)
    assert not records.has(key)
    records.add_run(key, 120, LEARNT)
    # Another process sees it as well.
    assert Records(tmp_path / "worth.json", SIZES).has(key)
    assert not records.has(key._replace(seed=1))
    records.add_costs({TWIN: cost(0.4, 1.0)}, afresh=True)
    assert not records.has(key)
    records.add_run(key, 150, LEARNT)
    (run,) = records.runs().values()
    # What it was of is in the record itself: costs may be measured anew.
    assert (run["steps"], run["seconds_per_step"], run["fields"]) == (150, 0.4, {})
    assert run["machine"]["torch"]


def test_records_of_other_sizes_or_another_kind_are_refused(tmp_path):
    file = tmp_path / "worth.json"
    Records(file, SIZES).add_costs({TWIN: cost(0.5, 1.0)}, afresh=True)
    with pytest.raises(CheckpointError, match="other sizes"):
        Records(file, SIZES._replace(batch_size=4))
    file.write_text("[]")
    with pytest.raises(CheckpointError, match="no records of this study"):
        Records(file, SIZES)

"""Tables and pictures of records."""

import json

from moe_hf.bench.studies.worth.candidates import TWIN
from moe_hf.bench.studies.worth.learning import Learnt
from moe_hf.bench.studies.worth.records import Key, Records
from moe_hf.bench.studies.worth.report import best, budget_table, domain_table, leader_table, scores, write_report
from tests.bench.studies.worth.toy import SIZES

MOE = "32 experts of 128, top-2"


def learnt(bits, moe=False):
    loads = [[0.25, 0.75], [0.5, 0.5]] if moe else []
    by_domain = {"prose": bits - 0.2, "code": bits + (0.0 if moe else 0.4)}
    return Learnt(10**6, 4096, 60.0, bits, bits, [(1, bits)], by_domain, by_domain, {"prose": loads, "code": loads})


def filled(folder):
    records = Records(folder / "data" / "worth.json", SIZES)
    one = {"seconds": 0.5, "ratio": 1.0, "low": 1.0, "high": 1.0}
    costs = {TWIN: one, "dense, 6 layers": one, MOE: {**one, "ratio": 1.25, "low": 1.2, "high": 1.3}}
    records.add_costs(costs, afresh=True)
    for minutes, dense, moe in ((1.0, 2.0, 2.1), (4.0, 1.8, 1.7)):
        records.add_run(Key(TWIN, minutes, 0), 10, learnt(dense))
        records.add_run(Key("dense, 6 layers", minutes, 0), 10, learnt(dense + 0.05))
        for seed in (0, 1):
            records.add_run(Key(MOE, minutes, seed), 8, learnt(moe + 0.02 * seed, moe=True))
    return records


def test_the_best_dense_model_is_the_opponent_and_seeds_are_averaged(tmp_path):
    found = scores(filled(tmp_path).runs())
    assert best(found, 1.0, dense=True).name == TWIN
    assert round(best(found, 4.0, dense=False).bits, 3) == 1.71
    assert best(found, 9.0, dense=False) is None
    row = leader_table(found, [4.0]).splitlines()[2]
    assert row == (
        "| 4 | 1.8000 | 1.8000, dense twin | 1.7100 (1.7000 to 1.7200, 2 seeds), 32 experts of 128, top-2 | +0.0900 |"
    )
    first, *_, last = budget_table([each for each in found if each.minutes == 1.0]).splitlines()[2:]
    assert first.startswith("| dense twin |")
    assert last.startswith(f"| {MOE} |")


def test_the_domain_that_gains_most_comes_first(tmp_path):
    found = scores(filled(tmp_path).runs())
    rows = domain_table(best(found, 4.0, True), best(found, 4.0, False)).splitlines()[2:]
    assert rows[0] == "| code | 2.200 | 1.710 | +22.3% |"
    assert rows[1].startswith("| prose |")


def test_the_page_is_filled_and_the_pictures_are_drawn(tmp_path):
    names = ("costs", "leaders", "1 minutes", "4 minutes", "domains")
    (tmp_path / "worth.md").write_text("\n".join(f"<!-- measured: {n} -->\n<!-- end of {n} -->" for n in names))
    write_report(filled(tmp_path), tmp_path)
    page = (tmp_path / "worth.md").read_text()
    assert "1.25 (1.20 to 1.30)" in page
    assert page.count("|---|") == len(names)
    for name in ("frontier", "domains", "experts"):
        assert (tmp_path / "images" / f"worth_{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_without_runs_there_is_only_the_table_of_costs(tmp_path):
    records = Records(tmp_path / "data" / "worth.json", SIZES)
    write_report(records, tmp_path)
    assert not (tmp_path / "images").exists()
    assert not json.dumps(list(records.runs())) != "[]"

"""`moe-hf bench` and `moe-hf profile` from the words of a command line to what is printed and written."""

import json

import pytest
import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from moe_hf.__main__ import main
from moe_hf.base.registry import Registry
from moe_hf.bench.harness.arms import FORWARD, Arm
from moe_hf.bench.harness.cases import Goal
from moe_hf.bench.harness.report import write_report_json
from moe_hf.bench.harness.suite import Suite
from moe_hf.bench.mixers.attention_arms import FULL, TOPK
from moe_hf.bench.mixers.layers import layer_case
from moe_hf.bench.mixers.report import LENGTHS, PERPLEXITIES
from moe_hf.bench.mixers.sizes import LayerSize
from moe_hf.bench.mixers.suite import MIXERS_SUITE
from moe_hf.layers.experts.interface import OWN_EXPERTS_FUNCTIONS

TINY = "--tokens 8 --hidden_size 8 --expert_width 16 --num_experts 4 --clock cpu --budget 0 --samples 1".split()


def test_bench_prints_tables_and_writes_a_report(tmp_path, capsys):
    folder = tmp_path / "out"
    words = ["experts", "router", "--modes", "forward", "decode", "--backends", "eager", "sorted", *TINY]
    assert main(["bench", *words, "--top_k", "1", "2", "--capacity_factor", "1.0", "--report", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "experts, forward: 8x8x16 E4 k2 cf1, fp32 gelu, 1 thread, 4 rows per expert" in text
    assert "router, forward" in text
    assert {"expert_utilization_k1_cf1.png", "expert_utilization_k2_cf1.png"} <= {p.name for p in folder.iterdir()}
    data = json.loads((folder / "report.json").read_text())
    assert data["command"].startswith("moe-hf bench experts router --modes forward decode")
    assert [(g["case"], g["mode"], g["size"]["k"]) for g in data["groups"]][:4] == [
        ("experts", "forward", 1),
        ("experts", "forward", 2),
        ("experts", "decode", 1),
        ("experts", "decode", 1),
    ]
    assert {arm["name"] for arm in data["groups"][0]["arms"]} == {"eager", "sorted", "dense MLP", "plain GEMM"}
    assert all(len(arm["samples"]["seconds"]) >= 1 for group in data["groups"] for arm in group["arms"])


def test_moe_vs_dense_prints_the_four_lines_first(capsys):
    assert main(["bench", "moe_vs_dense", "--clock", "cpu", "--budget", "0", "--samples", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == ["Dense params: 262912", "MOE params: 2236672", "Param increase: 8.5", "FLOP ratio: 8.5"]
    assert any(line.startswith("Routed FLOP ratio: 1.50") for line in lines)
    assert any(line.startswith("Measured time ratio: ") for line in lines)


def test_size_that_a_layer_refuses_is_skipped_and_the_rest_measured(tmp_path, capsys):
    sizes = ["--modes", "forward", "--backends", "sorted", *TINY, "--router_type", "switch", "--top_k", "2", "1"]
    assert main(["bench", "layer", *sizes, "--report", str(tmp_path)]) == 0
    assert "not measured: the whole group: " in capsys.readouterr().out
    groups = json.loads((tmp_path / "report.json").read_text())["groups"]
    assert [(one["case"], one["size"]["k"], bool(one["arms"])) for one in groups] == [
        ("layer", 2, False),
        ("layer", 1, True),
    ]
    assert "the whole group" in (tmp_path / "report.md").read_text()


def test_nothing_measured_is_no_success(capsys):
    sizes = ["--modes", "forward", *TINY, "--router_type", "switch", "--top_k", "2"]
    assert main(["bench", "layer", *sizes]) == 1


def test_wrong_backend_is_named_and_fails_the_command(monkeypatch, capsys):
    sorted_backend = ALL_EXPERTS_FUNCTIONS["sorted"]
    # transformers' table for its classes, and that of this package's own experts.
    for table in (ALL_EXPERTS_FUNCTIONS._global_mapping, OWN_EXPERTS_FUNCTIONS):
        monkeypatch.setitem(table, "sorted", lambda *given: sorted_backend(*given) * 1.01)
    assert main(["bench", "experts", "--modes", "forward", "--backends", "eager", "sorted", *TINY]) == 1
    out = capsys.readouterr().out
    assert "not measured: sorted: WRONG" in out
    assert "computed something else than the reference: sorted" in out


def test_report_json_grows_with_every_group(tmp_path, monkeypatch, capsys):
    lengths = []

    def noted(report, folder, *rest):
        file = write_report_json(report, folder, *rest)
        lengths.append((len(json.loads(file.read_text())["groups"]), report.interrupted))
        return file

    monkeypatch.setattr("moe_hf.cli.bench.write_report_json", noted)
    words = ["experts", "--modes", "forward", "--backends", "sorted", *TINY, "--top_k", "1", "2"]
    assert main(["bench", *words, "--report", str(tmp_path)]) == 0
    assert lengths == [(1, True), (2, True)]
    assert not json.loads((tmp_path / "report.json").read_text())["interrupted"]


def test_piped_tables_are_not_cut_to_eighty_columns(capsys):
    words = ["experts", "--modes", "training", "--activation", "gelu_new", *TINY]
    assert main(["bench", *words]) == 0
    out = capsys.readouterr().out
    header = next(line for line in out.splitlines() if line.split()[:1] == ["arm"])
    assert "peak MiB" in header
    assert "grouped_mm, one kernel" in out
    assert "…" not in out


def small_suite() -> Suite:
    def build() -> list[Arm]:
        x = torch.ones(60, 60)
        return [Arm("one", lambda: x @ x), Arm("other", lambda: x @ x)]

    goal = Goal("one is as fast as the other", 0.01, "other", "one", by_round=True)
    case = layer_case("two", FORWARD, LayerSize(60, 60), build, goal)
    further = [(PERPLEXITIES, {FULL: 4.0, TOPK: 5.0}), (LENGTHS, [])]
    return MIXERS_SUITE._replace(cases=lambda quick: [case], further=lambda *given: further)


def test_mixers_suite_prints_tables_and_verdicts_and_writes_the_report(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("moe_hf.cli.bench.SUITES", Registry("bench suite", {"mixers": small_suite()}))
    assert main(["bench", "--suite", "mixers", "--quick", "--report", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "two, forward, 60 tokens, width 60" in text
    assert "one is as fast as the other" in text
    assert "MISSED in 1 of 1" in text
    data = json.loads((tmp_path / "out" / "report.json").read_text())
    assert data["command"].startswith("moe-hf bench --suite mixers --quick")
    assert [goal["verdict"] for goal in data["goals"]] == ["met", "MISSED in 1 of 1"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--suite", "mixers", "--tokens", "8"], "leave out --tokens"),
        (["experts", "--suite", "mixers"], "leave out experts"),
        (["--suite", "mixers", "--device", "cuda"], "needs device 'cpu'"),
        (["--suite", "mixer"], "did you mean 'mixers'"),
    ],
)
def test_what_the_mixers_suite_does_not_take_is_refused(words, text, capsys):
    assert main(["bench", *words]) != 0
    assert text in "".join(capsys.readouterr())


def test_ctrl_c_after_the_cases_keeps_them_and_what_came_before_it(tmp_path, capsys, monkeypatch):
    def further(*given):
        yield PERPLEXITIES, {FULL: 4.0, TOPK: 4.0}
        raise KeyboardInterrupt

    suites = Registry("bench suite", {"mixers": small_suite()._replace(further=further)})
    monkeypatch.setattr("moe_hf.cli.bench.SUITES", suites)
    assert main(["bench", "--suite", "mixers", "--report", str(tmp_path)]) == 130
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["interrupted"]
    assert data["perplexities"][TOPK] == 4.0
    assert [group["case"] for group in data["groups"]] == ["two"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["bench", "expert"],
            "unknown case 'expert'; allowed: router, experts, layer, block, model, step, moe_vs_dense; did",
        ),
        (["bench", "--suite", "cpus"], "unknown bench suite 'cpus'"),
        (["bench", "--suite", "cpu", "--tokens", "4"], "leave out --tokens"),
        (["bench", "--suite", "gpu", "--device", "cpu"], "needs device 'cuda'"),
        (["bench", "experts", "--dtype", "float8"], "unknown dtype 'float8'"),
        (["bench", "experts", "--backends", "sortd"], "unknown backend 'sortd'"),
        (["bench", "experts", "--modes", "backward"], "mode='backward' is not allowed"),
        (["bench", "router", "--modes", "generate"], "none of router has a mode generate"),
        (["bench", "experts", "--top_k", "9"], "k=9 is not allowed"),
        (["bench", "experts", "--tokens", "0"], "tokens=0 is not allowed"),
        (["bench", "experts", "--capacity_factor", "some"], "capacity_factor='some' is not allowed"),
        (["bench", "experts", "--activation", "glue"], "activation='glue' is not allowed"),
        (["bench", "layer", "--router_type", "topk"], "unknown router_type 'topk'"),
        (["bench", "layer", "--device", "gpu"], "device='gpu' is not allowed"),
        (["bench", "experts", "--clock", "sun"], "clock='sun' is not allowed"),
        (["bench", "experts", "--samples", "0"], "samples=0"),
        (["bench", "moe_vs_dense", "experts"], "give it alone"),
        (["bench", "moe_vs_dense", "--router", "top_k"], "unknown router 'top_k'"),
        (["bench", "--suite", "cpu", "--backends", "auto", "--no-memory"], "leave out --backends --no-memory"),
        (["bench", "moe_vs_dense", "--report", "x", "--tokens", "5"], "leave out --tokens --report"),
        (["bench", "moe_vs_dense", "--suite", "cpu"], "leave out --suite"),
        (["bench", "moe_vs_dense", "--threads", "0"], "threads=[0] is not allowed"),
        (["bench", "moe_vs_dense", "--threads", "1", "2"], "threads=[1, 2] is not allowed"),
        (["bench", "experts", "--router", "hash"], "--router belongs to moe_vs_dense"),
        (["bench", "experts", "--memory_limit", "nan"], "memory_limit=nan is not allowed"),
        (["bench", "experts", "--memory_limit", "inf"], "memory_limit=inf is not allowed"),
        (["bench", "experts", "--budget", "nan"], "budget=nan"),
        (["bench", "experts", "--budget", "inf"], "budget=inf"),
        (["bench", "experts", "--report", __file__], "it must be a folder"),
        (["bench", "experts", "--report", __file__ + "/below"], "it must be a folder"),
    ],
)
def test_wrong_input_is_one_line_and_a_code_of_2(capsys, words, message):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert "Traceback" not in captured.err

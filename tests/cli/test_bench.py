"""`moe-hf bench` and `moe-hf profile` from the words of a command line to what is printed and written."""

import json

import pytest

from moe_hf.__main__ import main

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


def test_profile_prints_hot_spots_and_writes_reports(tmp_path, capsys):
    words = "--tokens 8 --hidden_size 8 --expert_width 16 --num_experts 4 --steps 1 --backend sorted".split()
    assert main(["profile", "moe_layer", *words, "--report", str(tmp_path)]) == 0
    assert "\n- sorted, " in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {
        *("consolidated_profiling_report.md", "moe_layer_profiling_report.md", "profile.json"),
        *("trace_moe_layer_sorted.json", "trace_moe_layer_grouped_mm.json"),
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["bench", "expert"],
            "unknown case 'expert'; allowed: router, experts, layer, block, model, moe_vs_dense; did",
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
        (["profile", "--device", "gpu"], "device='gpu' is not allowed"),
        (["bench", "experts", "--clock", "sun"], "clock='sun' is not allowed"),
        (["bench", "experts", "--samples", "0"], "samples=0"),
        (["bench", "moe_vs_dense", "experts"], "give it alone"),
        (["bench", "moe_vs_dense", "--router", "top_k"], "unknown router 'top_k'"),
        (["profile", "layer"], "unknown part 'layer'"),
        (["profile", "--backend", "eagre"], "unknown backend 'eagre'"),
        (["profile", "--steps", "0"], "steps=0 is not allowed"),
    ],
)
def test_wrong_input_is_one_line_and_a_code_of_2(capsys, words, message):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert "Traceback" not in captured.err

"""`moe-hf profile` from the words of a command line to what is printed and written."""

import pytest

from moe_hf.__main__ import main


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
        (["profile", "--device", "gpu"], "device='gpu' is not allowed"),
        (["profile", "--report", __file__], "it must be a folder"),
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

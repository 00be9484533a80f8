"""`moe-hf bench --suite mixers` from the words of a command line to what is printed and written."""

import json
from pathlib import Path

import pytest
import torch

from moe_hf.__main__ import main
from moe_hf.bench.mixers.cases import FORWARD, Arm, Case, Claim
from moe_hf.bench.mixers.perplexity import FULL, TOPK
from moe_hf.cli import bench_mixers


def build() -> list[Arm]:
    x = torch.ones(60, 60)
    return [Arm("one", lambda: x @ x), Arm("other", lambda: x @ x)]


@pytest.fixture
def small_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    claim = Claim("one is as fast as the other", 0.01, ("other",), "one")
    monkeypatch.setattr(bench_mixers, "suite_cases", lambda quick: [Case("two", FORWARD, 60, 60, build, (claim,))])
    monkeypatch.setattr(bench_mixers, "perplexities", lambda schooling, seed: {FULL: 4.0, TOPK: 5.0})
    monkeypatch.setattr(bench_mixers, "measure_lengths", lambda quick, on_kind: iter(()))


@pytest.mark.usefixtures("small_suite")
def test_prints_tables_and_verdicts_and_writes_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
def test_what_the_suite_does_not_take_is_refused(
    words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words]) != 0
    assert text in "".join(capsys.readouterr())

"""The ceremony of every study: flags are the fields of dataclasses, errors are one line and an exit code."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from moe_hf.base.errors import ConfigError
from moe_hf.bench.studies.script import parsed, run_study


@dataclass
class Where:
    """Where the numbers go."""

    output: Path
    runs: list[Path] | None = None


@dataclass(frozen=True)
class Sizes:
    """How much is done."""

    seeds: int = 3
    rates: list[float] = field(default_factory=lambda: [0.1])
    extra_arms: bool = True


def test_each_dataclass_is_filled_from_the_words():
    words = ["--output", "x.json", "--seeds", "5", "--rates", "0.5", "2", "--runs", "a", "b"]
    where, sizes = parsed((Where, Sizes), words, "a.study", "It measures.")
    assert where == Where(Path("x.json"), [Path("a"), Path("b")])
    assert sizes == Sizes(5, [0.5, 2.0])


@pytest.mark.parametrize("word", ["--no-extra_arms", "--no_extra_arms", "--no-extra-arms"])
def test_what_is_on_by_default_can_be_left_out(word):
    (sizes,) = parsed([Sizes], [word], "a.study", None)
    assert not sizes.extra_arms
    assert parsed([Sizes], [], "a.study", None)[0].extra_arms


def test_a_missing_flag_is_said_with_the_study_s_name(capsys):
    with pytest.raises(SystemExit) as stop:
        parsed([Where], [], "a.study", None)
    assert stop.value.code == 2
    assert "python -m a.study: error: the following arguments are required: --output" in capsys.readouterr().err


def test_wrong_input_ends_the_process_with_one_line(capsys):
    def main():
        raise ConfigError("nothing to measure")

    with pytest.raises(SystemExit) as stop:
        run_study(main, "a.study")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "python -m a.study: nothing to measure\n"

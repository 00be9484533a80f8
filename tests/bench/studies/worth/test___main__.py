"""The study from its words to its files, on toy text."""

import json

import pytest

from moe_hf.base.errors import ConfigError
from moe_hf.bench.studies.worth.__main__ import main
from tests.bench.studies.worth.toy import write_rows


def words(folder, *more):
    write_rows(folder / "t.jsonl", 24)
    write_rows(folder / "h.jsonl", 6, start=50)
    sizes = "--vocab_size 300 --context_length 32 --batch_size 2 --turns 1".split()
    files = ["--train", str(folder / "t.jsonl"), "--heldout", str(folder / "h.jsonl")]
    return [*files, "--output_dir", str(folder / "out"), *sizes, *more]


def test_a_study_measures_runs_and_goes_on_with_what_is_missing(tmp_path, monkeypatch):
    names = ["--candidates", "dense twin", "the tiny preset", "--minutes", "0.003"]
    main(words(tmp_path, *names))
    file = tmp_path / "out" / "data" / "worth.json"
    first = json.loads(file.read_text())
    assert [run["candidate"] for run in first["runs"]] == ["dense twin", "the tiny preset"]
    assert all(run["steps"] >= 1 and run["cpu_seconds"] > 0 for run in first["runs"])
    assert (tmp_path / "out" / "images" / "worth_frontier.png").is_file()
    made = []
    monkeypatch.setattr(
        "moe_hf.bench.studies.worth.__main__.learn", lambda *run: made.append(run[:3]) or pytest.fail("made again")
    )
    main(words(tmp_path, *names))
    assert json.loads(file.read_text())["runs"] == first["runs"]
    assert not made


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--candidates", "dense twins"], "did you mean 'dense twin'"),
        (["--minutes", "0"], "have to be positive"),
        (["--turns", "0"], "have to be positive"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_read(tmp_path, more, message):
    with pytest.raises(ConfigError, match=message):
        main(words(tmp_path, *more))
    assert not (tmp_path / "out").exists()


def test_without_text_there_is_nothing_to_learn(tmp_path):
    with pytest.raises(ConfigError, match="give both files, or --report"):
        main(["--output_dir", str(tmp_path)])
    main(["--output_dir", str(tmp_path), "--report"])

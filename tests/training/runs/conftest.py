"""A run in a folder of its own, and one that is finished."""

import json

import datasets
import pytest

from moe_hf.training.runs.run import train
from moe_hf.training.runs.settings import parse_arguments
from tests.training.runs.tiny_runs import SMALL, Recorder


@pytest.fixture(scope="session")
def eval_data(tmp_path_factory):
    path = tmp_path_factory.mktemp("eval") / "eval.jsonl"
    chat = [{"role": "user", "content": "What is 1 + 1?"}, {"role": "assistant", "content": "2"}]
    path.write_text(json.dumps({"messages": chat}) + "\n", encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture
def go(eval_data, empty_pictures):
    """Trains a small run; its pictures, which take longer than its steps, are empty files."""

    def run(flags="", listener=None):
        settings = parse_arguments([*SMALL.format(eval_data=eval_data).split(), *flags.split()])
        return train(settings, [listener] if listener else [])

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory, eval_data):
    """A finished run, its listener, and the folder that it was called in."""
    folder = tmp_path_factory.mktemp("finished")
    listener = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        datasets.disable_progress_bars()
        report = train(parse_arguments(SMALL.format(eval_data=eval_data).split()), [listener])
    return report._replace(model_dir=folder / report.model_dir), listener, folder

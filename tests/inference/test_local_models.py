import os
import shutil

import huggingface_hub
import pytest
from filelock import FileLock

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.inference.local_models import local_models, plan_removal
from tests.inference.conftest import small_model

REPO = "me/small"


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "small"
    small_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def here(saved, tmp_path, monkeypatch):
    """The present folder, with two runs: a whole one with a checkpoint, and one that has only checkpoints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "no-cache"))
    for name in ("whole", "whole/checkpoint-10", "begun/checkpoint-9", "begun/checkpoint-10"):
        shutil.copytree(saved, tmp_path / "runs" / name)
    (tmp_path / "runs" / "whole" / "logs").mkdir()
    (tmp_path / "runs" / "empty").mkdir()
    os.utime(tmp_path / "runs" / "begun" / "checkpoint-10" / "model.safetensors", (100, 100))
    return tmp_path


def runs(here):
    return here / "runs"


def test_runs_are_listed_newest_first_with_what_their_files_say(here, talker) -> None:
    whole, begun = local_models(runs(here))
    assert (whole.name, begun.name) == (str(runs(here) / "whole"), str(runs(here) / "begun/checkpoint-10"))
    assert (whole.family, whole.place) == ("gpt2_moe", "run")
    assert whole.parameters == begun.parameters == talker.num_parameters()
    files = [path for path in (runs(here) / "whole").rglob("*") if path.is_file()]
    assert whole.size == sum(path.stat().st_size for path in files)
    assert begun.record["changed"].startswith("1970-01-01")


def test_no_runs_and_no_cache_is_an_empty_list(here) -> None:
    assert local_models(here / "nowhere") == []


@pytest.mark.parametrize("name", ["whole", "runs/whole", "{here}/runs/whole"])
def test_a_run_goes_with_its_checkpoints_and_nothing_else(here, name) -> None:
    removal = plan_removal(name.format(here=here), runs(here))
    assert removal.num_files == len([path for path in (runs(here) / "whole").rglob("*") if path.is_file()])
    assert (runs(here) / "whole").exists()
    removal.carry_out()
    assert sorted(os.listdir(runs(here))) == ["begun", "empty"]


def test_one_checkpoint_can_be_removed(here) -> None:
    plan_removal("runs/begun/checkpoint-9", runs(here)).carry_out()
    assert os.listdir(runs(here) / "begun") == ["checkpoint-10"]


def test_links_are_not_followed(here, saved) -> None:
    outside = here / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    (runs(here) / "whole" / "link").symlink_to(outside)
    (runs(here) / "whole" / "link.txt").symlink_to(outside / "precious")
    (runs(here) / "linked").symlink_to(saved)
    with pytest.raises(ConfigError, match="linked is a link to"):
        plan_removal("linked", runs(here))
    plan_removal("whole", runs(here)).carry_out()
    assert (outside / "precious").read_text() == "x"
    assert (saved / "config.json").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "is no folder of a model"),
        ("runs", "there is no model 'runs'"),
        ("./runs", "is no folder of a model"),
        (".", "is the present folder or one above it"),
        ("..", "is the present folder or one above it"),
        ("/", "is the present folder or one above it"),
        ("~", "is the present folder or one above it"),
        ("whoel", "there is no model 'whoel'"),
        ("", "is the present folder or one above it|there is no model"),
        ("../{outer}/elsewhere", "holds more than a model: the folders notes"),
        # In this folder, but no path: a slip must not remove it.
        ("elsewhere", "there is no model 'elsewhere'"),
    ],
)
def test_what_is_no_model_is_refused_and_stays(here, saved, name, message) -> None:
    shutil.copytree(saved, here / "elsewhere")
    (here / "elsewhere" / "notes").mkdir()
    before = sorted(here.rglob("*"))
    with pytest.raises(ConfigError, match=message):
        plan_removal(name.format(outer=here.name), runs(here))
    assert sorted(here.rglob("*")) == before


def test_a_model_elsewhere_goes_by_its_path(here, saved) -> None:
    shutil.copytree(saved, here / "elsewhere")
    plan_removal("./elsewhere", runs(here)).carry_out()
    assert os.listdir(here) == ["runs"]


def test_a_run_that_is_going_on_is_left_alone(here) -> None:
    removal = plan_removal("whole", runs(here))
    with FileLock(runs(here) / "whole" / ".lock"), pytest.raises(CheckpointError, match="a training run writes to"):
        removal.carry_out()
    assert (runs(here) / "whole" / "config.json").exists()


def test_models_of_the_cache_are_listed_and_removed_by_their_id(hub, saved, tmp_path, talker) -> None:
    hub.add(REPO, {path.name: path.read_bytes() for path in saved.iterdir()})
    hub.add("me/other", {"config.json": b'{"model_type": "bert"}'})
    huggingface_hub.snapshot_download(REPO)
    huggingface_hub.snapshot_download("me/other")
    models = {model.name: model for model in local_models(tmp_path)}
    assert (models[REPO].family, models[REPO].place) == ("gpt2_moe", "cache")
    assert models[REPO].parameters == talker.num_parameters()
    assert (models["me/other"].family, models["me/other"].parameters) == ("bert", None)
    removal = plan_removal(REPO, tmp_path)
    assert removal.size > models[REPO].parameters
    removal.carry_out()
    assert [model.name for model in local_models(tmp_path)] == ["me/other"]

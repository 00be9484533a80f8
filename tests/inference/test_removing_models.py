import os
import pathlib
import shutil
import subprocess
import sys

import huggingface_hub
import pytest
from filelock import FileLock

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.inference.local_models import local_models
from moe_hf.inference.removing_models import plan_removal, plan_removals

REPO = "me/small"


def runs(here):
    return here / "runs"


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
        ("~nobody-of-this-name/x", "names no folder"),
        ("runs/whole/..", "has .. in it"),
        ("", "is the present folder or one above it|there is no model"),
        ("../{outer}/elsewhere", "holds more than a model: notes/"),
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


@pytest.fixture
def cached(hub, saved):
    """The folder of a model in the Hub's cache."""
    hub.add(REPO, {path.name: path.read_bytes() for path in saved.iterdir()})
    hub.add("me/other", {"config.json": b'{"model_type": "bert"}'})
    huggingface_hub.snapshot_download("me/other")
    return pathlib.Path(huggingface_hub.snapshot_download(REPO)).parents[1]


def test_a_model_of_the_cache_goes_by_its_id(cached, tmp_path, talker) -> None:
    removal = plan_removal(REPO, tmp_path)
    assert removal.size > talker.num_parameters()
    removal.carry_out()
    assert [model.name for model in local_models(tmp_path)] == ["me/other"]
    assert not cached.exists()


def test_what_the_cache_keeps_is_not_said_to_be_removed(cached, tmp_path, monkeypatch) -> None:
    removal = plan_removal(REPO, tmp_path)
    # As where a folder may not be written to: the Hub's library logs that, and goes on.
    monkeypatch.setattr(shutil, "rmtree", denied)
    with pytest.raises(OSError, match="could not remove all of me/small"):
        removal.carry_out()


@pytest.mark.parametrize("inner", ["", "snapshots", "blobs"])
def test_a_path_in_the_cache_is_refused_with_the_id(cached, tmp_path, inner) -> None:
    with pytest.raises(ConfigError, match="moe-hf rm me/small"):
        plan_removal(str(cached / inner), tmp_path)


@pytest.mark.parametrize("snapshots", [True, False])
def test_an_interrupted_download_goes_with_all_its_bytes(here, snapshots) -> None:
    half = here / "no-cache" / "models--me--half"
    (half / "blobs").mkdir(parents=True)
    (half / "blobs" / "x.incomplete").write_bytes(bytes(1000))
    if snapshots:
        (half / "snapshots").mkdir()
    removal = plan_removal("me/half", runs(here))
    assert (removal.size, removal.num_files) == (1000, 1)
    removal.carry_out()
    assert list((here / "no-cache").iterdir()) == []


def denied(*arguments, **options):
    raise PermissionError(13, "Permission denied")


def test_a_failed_removal_names_what_it_left_and_the_next_one_ends_it(here, monkeypatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(shutil, "rmtree", denied)
        with pytest.raises(OSError, match=r"what is left is in .*\.whole\.removed-\d+"):
            plan_removal("whole", runs(here)).carry_out()
    [aside] = runs(here).glob(".*.removed-*")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    aside.rename(aside.with_name(f".whole.removed-{ended.pid}"))
    plan_removal("begun", runs(here)).carry_out()
    assert os.listdir(runs(here)) == ["empty"]


@pytest.mark.parametrize("names", [["whole", "runs/whole/checkpoint-10"], ["runs/begun/checkpoint-9", "begun"]])
def test_one_inside_the_other_is_refused_and_so_is_the_same_twice(here, names) -> None:
    for wrong in (names, names[:1] * 2):
        with pytest.raises(ConfigError, match="holds the other"):
            plan_removals(wrong, runs(here))
    assert len(plan_removals(["whole", "begun"], runs(here))) == 2


def test_what_is_gone_meanwhile_is_said_and_not_made_again(here) -> None:
    removal = plan_removal("whole", runs(here))
    shutil.rmtree(runs(here) / "whole")
    with pytest.raises(CheckpointError, match="whole is gone"):
        removal.carry_out()
    assert sorted(os.listdir(runs(here))) == ["begun", "empty"]


def test_a_checkpoint_of_a_run_that_is_going_on_is_left_alone(here) -> None:
    removal = plan_removal("runs/begun/checkpoint-9", runs(here))
    with FileLock(runs(here) / "begun" / ".lock"), pytest.raises(CheckpointError, match="a training run writes to"):
        removal.carry_out()
    assert (runs(here) / "begun" / "checkpoint-9" / "config.json").exists()


@pytest.mark.parametrize("name", ["runs/lnk/checkpoint-10", "{here}/runs/lnk/checkpoint-10", "lnk/checkpoint-10"])
def test_a_link_on_the_way_is_refused(here, saved, name) -> None:
    shutil.copytree(saved, here / "outside" / "checkpoint-10")
    (runs(here) / "lnk").symlink_to(here / "outside")
    with pytest.raises(ConfigError, match="lnk is a link to"):
        plan_removal(name.format(here=here), runs(here))


@pytest.mark.parametrize(
    "other", ["thesis.docx", "checkpoint-1-photos/", "checkpoint-1/", "checkpoint-10/notes/", "checkpoint-10/me.txt"]
)
def test_a_folder_with_something_of_somebody_is_refused_and_names_it(here, saved, other) -> None:
    shutil.copytree(saved, here / "my")
    shutil.copytree(saved, here / "my" / "checkpoint-10")
    path = here / "my" / other
    if other.endswith("/"):
        path.mkdir()
    else:
        path.write_text("x")
    # Also where the present folder is said to be that of the runs: it has no run's file.
    for runs_dir in (runs(here), here):
        with pytest.raises(ConfigError, match=f"more than a model: {other}"):
            plan_removal("./my", runs_dir)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    plan_removal("./my", runs(here)).carry_out()
    assert not (here / "my").exists()

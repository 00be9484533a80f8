"""The words of `moe-hf serve`; tests/serving/test_application.py lets it run."""

import pytest

from moe_hf.base.errors import BackendUnavailableError, CheckpointError, ConfigError
from moe_hf.cli.serve import KEY_VARIABLE, main, named_sources


def test_a_model_is_called_by_its_folder_its_file_its_hub_id_or_as_told(tmp_path) -> None:
    folder = tmp_path / "my=model"
    folder.mkdir()
    words = [str(folder), "org/name", "x=org/name", "a/b/model.gguf", "smollm2"]
    assert list(named_sources(words)) == ["my=model", "org/name", "x", "model", "smollm2"]


@pytest.mark.parametrize("words", [["runs/a/final", "runs/b/final"], ["=x"], ["x="], [""]])
def test_names_must_tell_models_apart(words) -> None:
    with pytest.raises(ConfigError, match=r"both called final; write NAME=runs/b/final|names no model"):
        named_sources(words)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["m", "--port", "70000"], ConfigError, "--port=70000 is not allowed; it must be 0 to 65535"),
        (["m", "--max_body_bytes", "0"], ConfigError, "--max_body_bytes=0"),
        (["m", "--max_requests", "-1"], ConfigError, "--max_requests=-1"),
        (["m", "--api_key_file", "absent.txt"], ConfigError, "can't read --api_key_file absent.txt"),
        (["./absent"], CheckpointError, "absent"),
    ],
)
def test_a_mistake_shows_before_anything_is_read(words, error, message) -> None:
    with pytest.raises(error, match=message):
        main(words)


def test_a_key_must_be_one_word_and_is_never_shown(tmp_path, monkeypatch) -> None:
    file = tmp_path / "key.txt"
    for key in ("", "two words", "é"):
        file.write_text(key, encoding="utf-8")
        with pytest.raises(ConfigError, match="must be one word of ASCII") as caught:
            main(["./absent", "--api_key_file", str(file)])
        assert not key or key not in str(caught.value)
    monkeypatch.setenv(KEY_VARIABLE, "")
    with pytest.raises(ConfigError, match=KEY_VARIABLE):
        main(["./absent"])


def test_without_its_packages_it_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr("moe_hf.base.optional.is_available", lambda name: name != "uvicorn")
    with pytest.raises(BackendUnavailableError, match=r"pip install 'moe_hf\[serving\]'"):
        main(["m"])

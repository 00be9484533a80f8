"""A folder is found, a Hub id is let through, and everything else is refused without the network."""

import pytest

from moe_hf.base.errors import CheckpointError
from moe_hf.base.model_source import folder_or_hub_id


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    (tmp_path / "runs" / "first").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize("source", ["runs", "./runs/first", "gpt2", "openai-community/gpt2", "owner/name-1.5_b"])
def test_folders_and_hub_ids_are_kept(source) -> None:
    assert folder_or_hub_id(source) == source.removeprefix("./")


def test_home_is_filled_in(tmp_path) -> None:
    assert folder_or_hub_id("~/runs") == str(tmp_path / "runs")


@pytest.mark.parametrize("source", ["", "./gpt2", "/no/where", "~/first", "runs/second", "a/b/c", "my model", "a\\b"])
def test_what_can_be_neither_is_refused(source) -> None:
    with pytest.raises(CheckpointError, match="there is no folder"):
        folder_or_hub_id(source)


def test_a_bare_word_is_refused_where_an_owner_is_needed() -> None:
    with pytest.raises(CheckpointError, match="there is no folder nothere"):
        folder_or_hub_id("nothere", needs_owner=True)
    assert folder_or_hub_id("owner/name", needs_owner=True) == "owner/name"

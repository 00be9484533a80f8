"""Names of files, folders, globs and generated data become the same rows."""

import dataclasses

import datasets
import pytest

from moe_hf.base.errors import ConfigError
from moe_hf.training.data.arguments import DataArguments
from moe_hf.training.data.readers import text_rows
from moe_hf.training.data.sources import FILE_KINDS, SOURCES, FileSource, generated_source, open_rows
from tests.training.data.samples import CHATS, jsonl


@pytest.mark.parametrize("name", ["*.txt", "missing.txt", "./missing", "nobody/nothing"])
def test_names_that_match_nothing_are_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"no such file|no file matches"):
        open_rows([name], DataArguments())


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="the folder holds no"):
        open_rows([str(tmp_path)], DataArguments())


@pytest.mark.parametrize("streaming", [False, True])
def test_files_globs_folders_and_kinds_give_the_same_rows(tmp_path, streaming):
    arguments = DataArguments(streaming=streaming, text_column="body", text_unit="line")
    (tmp_path / "a.txt").write_text("one\ntwo\n", encoding="utf-8")
    jsonl(tmp_path / "b.jsonl", [{"body": "three", "other": 1}])
    datasets.Dataset.from_dict({"body": ["four"], "n": [1]}).to_parquet(tmp_path / "c.parquet")
    (tmp_path / "d.csv").write_text('n,body\n1,"five, ""and""\nsix"\n', encoding="utf-8-sig")
    for names in (
        [str(tmp_path)],
        [str(tmp_path / "*")],
        [str(tmp_path / f) for f in ("a.txt", "b.jsonl", "c.parquet", "d.csv")],
    ):
        rows = open_rows(names, arguments)
        assert rows.kind == "text"
        assert [row["text"] for row in rows.dataset] == ["one", "two", "three", "four", 'five, "and"\nsix']


@pytest.mark.parametrize("streaming", [False, True])
def test_an_empty_file_among_good_ones_is_named_and_skipped(tmp_path, streaming):
    (tmp_path / "a.txt").write_text("", encoding="utf-8")
    (tmp_path / "b.txt").write_text("one", encoding="utf-8")
    (tmp_path / "c.csv").write_text("text\n", encoding="utf-8")
    rows = open_rows([str(tmp_path)], DataArguments(streaming=streaming))
    assert [row["text"] for row in rows.dataset] == ["one"]
    assert [notice.removeprefix(f"{tmp_path}/") for notice in rows.notices] == [
        "a.txt is empty, so it is skipped",
        "c.csv has no rows, so it is skipped",
    ]


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "a.txt"
    for text in ("one", "two"):
        path.write_text(text, encoding="utf-8")
        assert open_rows([str(path)], DataArguments()).dataset["text"] == [text]


def test_text_and_conversations_do_not_mix(tmp_path):
    (tmp_path / "a.txt").write_text("one", encoding="utf-8")
    jsonl(tmp_path / "b.jsonl", [{"messages": CHATS[0]}])
    with pytest.raises(ConfigError, match="one kind at a time"):
        open_rows([str(tmp_path)], DataArguments())


def test_the_help_names_every_source() -> None:
    (text,) = [field.metadata["help"] for field in dataclasses.fields(DataArguments) if field.name == "data"]
    for name in SOURCES:
        assert name in text


def test_a_kind_of_file_is_one_row_of_the_table(tmp_path, monkeypatch) -> None:
    (tmp_path / "a.md").write_text("one\ntwo\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"'.md' can't be read"):
        open_rows([str(tmp_path / "a.md")], DataArguments())
    monkeypatch.setitem(FILE_KINDS, ".md", FileSource(text_rows))
    assert open_rows([str(tmp_path)], DataArguments(text_unit="line")).dataset["text"] == ["one", "two"]


def test_generated_data_stands_alone() -> None:
    assert generated_source(["embedded"]) is SOURCES["embedded"]
    assert generated_source(["a.txt", "b.txt"]) is None
    with pytest.raises(ConfigError, match=r"embedded stands alone.*embedded a\.txt"):
        generated_source(["embedded", "a.txt"])

"""Files of every kind are read, and what is damaged is refused with its place."""

import pytest

from moe_hf.base.errors import ConfigError
from moe_hf.training.data.arguments import DataArguments
from moe_hf.training.data.sources import open_rows


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("bad.jsonl", '{"text": "a"}\n' * 16 + '{"text": "b\n', "line 17 is not JSON"),
        ("list.jsonl", "[1, 2]\n", "line 1 is not a JSON object"),
        ("column.jsonl", '{"body": "a"}\n', "--text_column"),
        ("number.jsonl", '{"text": 5}\n', "must be text"),
        ("mixed.jsonl", '{"text": "a"}\n{"messages": []}\n', "line 2 holds messages"),
        ("user.jsonl", '{"messages": [{"role": "user", "content": "hi"}]}\n', "no turn of the assistant"),
        ("role.jsonl", '{"messages": [{"content": "hi"}]}\n', "a role and a content"),
        ("empty.txt", "", "is empty"),
        ("blank.txt", " \n\n", "only blank lines"),
        ("blank.jsonl", "\n\n", "only blank lines"),
        ("latin.txt", b"caf\xe9\n", "line 1 is not UTF-8"),
        ("bad.parquet", "no table", "not a readable Parquet file"),
        ("table.csv", "a,b\n1,2\n", "--text_column"),
        ("table.tsv", "a\tb\n", "'.tsv' can't be read"),
    ],
)
def test_damaged_files_are_refused_with_the_place(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as error:
        open_rows([str(path)], DataArguments())
    assert words in str(error.value)
    assert name in str(error.value)


@pytest.mark.parametrize(("unit", "rows"), [("file", 1), ("paragraph", 2), ("line", 3)])
def test_a_document_of_a_text_file_is_the_file_a_paragraph_or_a_line(tmp_path, unit, rows):
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\r\n\r\n\r\nthree\r\n")
    read = open_rows([str(tmp_path / "a.txt")], DataArguments(text_unit=unit)).dataset["text"]
    assert len(read) == rows
    assert "\r" not in "".join(read)

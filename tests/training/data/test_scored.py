"""Documents to score come with what counts of them, the bytes of that, and what they are about."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from moe_hf.base.errors import ConfigError
from moe_hf.training.data.arguments import DataArguments
from moe_hf.training.data.documents import DocumentEncoder
from moe_hf.training.data.scored import rows_to_score, scored_document
from moe_hf.training.data.sources import open_rows

TEXTS = [("the cat", "animals"), ("déjà vu", None), ("more", "words")]


def score_of(row, tokenizer):
    return scored_document(row, tokenizer, DocumentEncoder(tokenizer, row.kind, 1000))


@pytest.fixture
def folder(tmp_path):
    lines = [{"text": text, **({"domain": domain} if domain else {})} for text, domain in TEXTS]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (tmp_path / "b.csv").write_text('text,domain\nthe cat,animals\n"déjà vu",\nmore,words\n')
    table = {"domain": [domain for _, domain in TEXTS], "text": [text for text, _ in TEXTS]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "c.parquet")
    (tmp_path / "d.txt").write_text("plain\n\nand simple\n")
    return tmp_path


@pytest.mark.parametrize("name", ["a.jsonl", "b.csv", "c.parquet"])
def test_a_domain_is_a_column_or_the_file(folder, name: str) -> None:
    rows = rows_to_score(DataArguments(data=[str(folder / name)]))
    assert [(row.value, row.domain) for row in rows] == [(text, domain or name) for text, domain in TEXTS]


def test_files_of_one_name_are_told_by_their_folders(tmp_path) -> None:
    for name in ("p", "q"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "test.txt").write_text("text")
    rows = rows_to_score(DataArguments(data=[str(tmp_path / "p"), str(tmp_path / "q")]))
    assert [row.domain for row in rows] == [str(tmp_path / name / "test.txt") for name in ("p", "q")]


def test_training_reads_no_domain_and_a_domain_is_text(tmp_path) -> None:
    table = pyarrow.table([["a"], [1.5], [2.5]], names=["text", "domain", "domain"])
    pyarrow.parquet.write_table(table, tmp_path / "twice.parquet")
    (tmp_path / "list.jsonl").write_text('{"text": "a", "domain": ["x"]}')
    for name in ("twice.parquet", "list.jsonl"):
        arguments = DataArguments(data=[str(tmp_path / name)])
        assert open_rows(arguments.data, arguments, str(tmp_path / "cache")).dataset["text"][:] == ["a"]
        with pytest.raises(ConfigError, match=r"must be (one column of )?text"):
            rows_to_score(arguments)


def test_what_a_template_trims_is_not_counted(tmp_path, tokenizer) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes" + " " * 99}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": messages}))
    (row,) = rows_to_score(DataArguments(data=[str(tmp_path / "chat.jsonl")]))
    assert score_of(row, tokenizer).num_bytes == 3


def test_a_limit_counts_by_name(folder) -> None:
    names = [str(folder / "a.jsonl"), str(folder / "d.txt"), str(folder / "b.csv")]
    rows = rows_to_score(DataArguments(data=names), limit=2)
    assert [row.domain for row in rows] == ["animals", "a.jsonl", "d.txt", "animals", "b.csv"]


def test_of_a_text_every_token_counts(folder, tokenizer) -> None:
    (row,) = rows_to_score(DataArguments(data=[str(folder / "d.txt")]))
    document = score_of(row, tokenizer)
    assert document.labels[0] == -100
    assert document.labels[1:] == document.input_ids[1:]
    assert tokenizer.decode(document.input_ids[1:]) == row.value
    assert document.num_bytes == len(row.value.encode())
    assert tokenizer.eos_token_id not in document.input_ids[1:]


def test_of_a_conversation_what_the_assistant_says(tmp_path, tokenizer) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "é!"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": messages}))
    (row,) = rows_to_score(DataArguments(data=[str(tmp_path / "chat.jsonl")]))
    document = score_of(row, tokenizer)
    counted = [token for token in document.labels if token != -100]
    assert "é!" in tokenizer.decode(counted)
    assert "hi" not in tokenizer.decode(counted)
    assert document.num_bytes == 3


def test_questions_of_the_embedded_corpus_are_told_by_skill() -> None:
    rows = rows_to_score(DataArguments(data=["embedded"]), limit=31)
    assert [row.domain for row in rows] == ["addition"] * 30 + ["subtraction"]


def test_nothing_to_score_is_an_error(tmp_path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ConfigError, match="holds no document"):
        rows_to_score(DataArguments(data=[str(tmp_path / "empty.txt")]))

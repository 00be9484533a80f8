"""The data that a name stands for is encoded, packed and split, the same for the same seed."""

import json

import pytest

from moe_hf.base.errors import ConfigError
from moe_hf.training.data.arguments import DataArguments
from moe_hf.training.data.prepare import encoded_documents, prepare_data, split_rows
from tests.training.data.samples import CONTEXT, TEXTS, jsonl


def text_split(tmp_path, **flags):
    flags = {"data": [str(tmp_path / "texts.jsonl")], "eval_fraction": 0.0, **flags}
    jsonl(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS * 3])
    arguments = DataArguments(**flags)
    return split_rows(arguments, seed=0), arguments


def test_eos_packing_is_plain_concatenation_with_separators(tmp_path, tokenizer):
    split, arguments = text_split(tmp_path, packing="eos")
    data = prepare_data(split, tokenizer, arguments, CONTEXT, seed=0)
    text = tokenizer.decode([token for row in data.train for token in row["input_ids"]])
    pieces = text.replace("<|pad|>", "").split("<|endoftext|>")
    assert sorted(piece for piece in pieces if piece) == sorted(text for text in TEXTS * 3 if text)
    assert "position_ids" not in data.train.column_names
    assert data.num_tokens == sum(len(text) + 1 for text in TEXTS * 3 if text)


def test_documents_come_whole_and_one_by_one(tmp_path, tokenizer):
    rows = text_split(tmp_path)[0].train
    documents = list(encoded_documents(rows, tokenizer))
    assert [tokenizer.decode(ids).removesuffix("<|endoftext|>") for ids in documents] == rows.dataset["text"][:]


def test_unpacked_rows_are_pieces_of_one_document_each(tmp_path, tokenizer):
    split, arguments = text_split(tmp_path, packing="none")
    data = prepare_data(split, tokenizer, arguments, CONTEXT, seed=0)
    rows = [tokenizer.decode(row["input_ids"]) for row in data.train]
    assert max(len(row["input_ids"]) for row in data.train) == CONTEXT
    assert "one<|endoftext|>" in rows
    assert all(row.count("<|endoftext|>") <= 1 for row in rows)


def test_long_documents_are_counted_in_a_notice(tmp_path, tokenizer):
    split, arguments = text_split(tmp_path)
    data = prepare_data(split, tokenizer, arguments, CONTEXT, seed=0)
    assert data.notices == ("6 of 21 documents are longer than 24 tokens and are split",)


def test_the_same_seed_gives_the_same_blocks_and_another_seed_others(tmp_path, tokenizer):
    split, arguments = text_split(tmp_path)
    first, second, third = (
        prepare_data(split, tokenizer, arguments, CONTEXT, seed=seed).train[:]["input_ids"] for seed in (1, 1, 2)
    )
    assert first == second
    assert first != third


def test_held_out_documents_are_not_trained_on(tmp_path, tokenizer):
    path = jsonl(tmp_path / "numbers.jsonl", [{"text": f"number {i}."} for i in range(50)])
    arguments = DataArguments(data=[path], eval_fraction=0.2)
    data = prepare_data(split_rows(arguments, 0), tokenizer, arguments, CONTEXT, 0)

    def numbers(rows):
        text = tokenizer.decode([token for row in rows for token in row["input_ids"]], skip_special_tokens=True)
        return {part for part in text.split("number ") if part}

    assert len(numbers(data.held_out)) == 10
    assert numbers(data.train).isdisjoint(numbers(data.held_out))


def test_a_single_long_document_holds_out_its_last_blocks(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("word " * 500, encoding="utf-8")
    arguments = DataArguments(data=[str(tmp_path / "a.txt")], eval_fraction=0.1)
    data = prepare_data(split_rows(arguments, 0), tokenizer, arguments, CONTEXT, 0)
    assert (len(data.train), len(data.held_out)) == (95, 10)
    assert "blocks are held out" in data.notices[-1]


def test_data_without_any_token_is_refused(tmp_path, tokenizer):
    path = jsonl(tmp_path / "a.jsonl", [{"text": ""}])
    arguments = DataArguments(data=[path])
    with pytest.raises(ConfigError, match="no block"):
        prepare_data(split_rows(arguments, 0), tokenizer, arguments, CONTEXT, 0)


def test_the_embedded_corpus_is_read_in_its_own_order_and_evaluated_on_its_held_out_questions(tokenizer):
    arguments = DataArguments(num_conversations=30)
    split = split_rows(arguments, seed=0)
    assert len(split.train.dataset) == 30
    questions = {json.dumps(row["messages"]) for row in split.held_out.dataset}
    assert questions.isdisjoint(json.dumps(row["messages"]) for row in split.train.dataset)
    data = prepare_data(split, tokenizer, arguments, 256, seed=0)
    first = split.train.dataset[0]["messages"][0]["content"]
    assert first in tokenizer.decode(
        [token for row in data.train.select(range(len(data.train) // 2)) for token in row["input_ids"]]
    )


def test_too_few_streamed_documents_to_hold_out_are_refused(tmp_path):
    path = jsonl(tmp_path / "t.jsonl", [{"text": "a"}])
    with pytest.raises(ConfigError, match="--eval_documents"):
        split_rows(DataArguments(data=[path], streaming=True), 0)

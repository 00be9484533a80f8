"""A stream of packed blocks stops anywhere and goes on exactly there."""

import itertools
import json

import datasets
import pytest

from moe_hf.base.errors import ConfigError
from moe_hf.training.data.arguments import DataArguments
from moe_hf.training.data.prepare import prepare_data, split_rows
from tests.training.data.samples import CHATS, CONTEXT, TEXTS, jsonl


def stream_of(kind, tmp_path, tokenizer):
    flags = {"streaming": True, "eval_documents": 3, "shuffle_buffer": 4, "num_conversations": 20}
    if kind == "jsonl":
        flags["data"] = [jsonl(tmp_path / "t.jsonl", [{"text": f"{i} {TEXTS[i % 7]}"} for i in range(40)])]
    elif kind == "parquet":
        for part in range(3):
            table = datasets.Dataset.from_dict({"text": [f"{part} {i} {TEXTS[i % 7]}" for i in range(15)]})
            table.to_parquet(tmp_path / f"{part}.parquet")
        flags |= {"data": [str(tmp_path / "*.parquet")], "packing": "eos"}
    else:
        # Not the corpus's own questions, whose making takes longer than all the rest.
        flags["eval_data"] = [jsonl(tmp_path / "held_out.jsonl", [{"messages": CHATS[0]}])]
    arguments = DataArguments(**flags)
    return prepare_data(split_rows(arguments, 0), tokenizer, arguments, CONTEXT, seed=0).train


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "embedded"])
@pytest.mark.parametrize("stop", [0, 1, 30, 130])
def test_a_stream_goes_on_exactly_where_its_state_was_taken(tmp_path, tokenizer, kind, stop):
    whole = list(itertools.islice(stream_of(kind, tmp_path, tokenizer), 160))
    interrupted = stream_of(kind, tmp_path, tokenizer)
    reader = iter(interrupted)
    begun = [next(reader) for _ in range(stop)]
    state = json.loads(json.dumps(interrupted.state_dict()))
    resumed = stream_of(kind, tmp_path, tokenizer)
    resumed.load_state_dict(state)
    rest = list(itertools.islice(resumed, 160 - stop))
    assert begun + rest == whole


def test_a_stream_passes_over_its_data_again_in_another_order(tmp_path, tokenizer):
    stream = stream_of("jsonl", tmp_path, tokenizer)
    blocks = [tuple(block["input_ids"]) for block in itertools.islice(stream, 400)]
    assert stream.state_dict()["passes"] > 2
    assert blocks[:100] != blocks[100:200]


def test_iterating_a_stream_twice_gives_the_same_blocks(tmp_path, tokenizer):
    stream = stream_of("jsonl", tmp_path, tokenizer)
    assert list(itertools.islice(stream, 90)) == list(itertools.islice(stream, 90))


def test_a_stream_without_a_block_is_refused(tmp_path, tokenizer):
    path = jsonl(tmp_path / "t.jsonl", [{"text": "a"}, {"text": ""}])
    arguments = DataArguments(data=[path], streaming=True, eval_documents=1)
    stream = prepare_data(split_rows(arguments, 0), tokenizer, arguments, CONTEXT, seed=0).train
    with pytest.raises(ConfigError, match="no block"):
        next(iter(stream))

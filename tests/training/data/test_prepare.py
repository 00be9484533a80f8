import itertools
import json

import datasets
import pytest
import torch

from moe_hf.base.errors import ConfigError
from moe_hf.text.tokenizers import byte_tokenizer
from moe_hf.training.data.collate import BlockCollator
from moe_hf.training.data.documents import IGNORED, DocumentEncoder
from moe_hf.training.data.packing import BlockPacker
from moe_hf.training.data.prepare import prepare_data, split_rows
from moe_hf.training.data.rows import Rows, conversation_in
from moe_hf.training.data.sources import open_rows
from moe_hf.training.data.tokenizer_choice import choose_tokenizer
from moe_hf.training.runs.arguments import DataArguments

CONTEXT = 24
TEXTS = ["one", "a longer text that fills more than one block of tokens", "tiny", "", "another text", "x" * 60, "end"]
CHATS = [
    [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}],
    [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "So long"},
    ],
]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def documents(num=40):
    numbers = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 50, (num,), generator=numbers).tolist()
    start = itertools.count(1)
    return [[next(start) for _ in range(length)] for length in lengths]


def packed(whole, restart, docs=None, num_open=16):
    packer = BlockPacker(CONTEXT, 0, whole, restart, num_open)
    blocks = [block for ids in docs or documents() for block in packer.add(ids, list(ids))]
    return blocks + packer.flush()


# Packing


@pytest.mark.parametrize("whole", [True, False])
def test_packing_keeps_every_token_once_and_all_blocks_full_length(whole):
    blocks = packed(whole, restart=True)
    assert {len(values) for block in blocks for values in block.values()} == {CONTEXT}
    tokens = [token for block in blocks for token in block["input_ids"] if token]
    assert sorted(tokens) == [token for ids in documents() for token in ids]


def test_documents_laid_end_to_end_keep_their_order_and_pad_only_the_last_block():
    tokens = [token for block in packed(whole=False, restart=False) for token in block["input_ids"]]
    expected = [token for ids in documents() for token in ids]
    assert tokens[: len(expected)] == expected
    assert len(tokens) - len(expected) < CONTEXT


def test_whole_documents_are_never_cut_unless_longer_than_a_block():
    blocks = packed(whole=True, restart=True)
    homes = {token: number for number, block in enumerate(blocks) for token in block["input_ids"] if token}
    for ids in documents():
        if len(ids) <= CONTEXT:
            assert len({homes[token] for token in ids}) == 1


def test_best_fit_wastes_less_than_closing_a_block_at_the_first_document_that_does_not_fit():
    docs = [ids[:CONTEXT] for ids in documents(300)]
    assert len(packed(True, True, docs)) < len(packed(True, True, docs, num_open=1))


def test_positions_restart_where_a_document_begins_and_its_first_token_is_no_label():
    block = packed(whole=True, restart=True, docs=[[5, 6, 7], [8, 9]])[0]
    assert block["input_ids"][:6] == [5, 6, 7, 8, 9, 0]
    assert block["position_ids"][:7] == [0, 1, 2, 0, 1, 0, 1]
    assert block["labels"][:6] == [IGNORED, 6, 7, IGNORED, 9, IGNORED]


def test_a_context_of_one_token_is_refused():
    with pytest.raises(ConfigError, match="at least 2"):
        BlockPacker(1, 0, whole=True, restart_positions=True)


def test_the_collator_masks_only_rows_of_different_length():
    rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}, {"input_ids": [4], "labels": [4]}]
    batch = BlockCollator(pad_token_id=9)(rows)
    assert batch["input_ids"].tolist()[1] == [4] + [9] * 7
    assert batch["labels"].tolist()[1] == [4] + [IGNORED] * 7
    assert batch["attention_mask"].sum(dim=1).tolist() == [3, 1]
    assert "attention_mask" not in BlockCollator(9)([rows[0], rows[0]])


# Documents


def test_only_what_the_assistant_says_is_a_label(tokenizer):
    encoded = DocumentEncoder(tokenizer, "messages", 200)({"messages": CHATS}, [0, 1])
    spoken = ["4<|endoftext|>", "Hello<|endoftext|>Solong<|endoftext|>"]
    for labels, expected in zip(encoded["labels"], spoken, strict=True):
        said = tokenizer.decode([label for label in labels if label != IGNORED])
        # The template may set a space before an answer.
        assert said.replace(" ", "") == expected


def test_a_template_without_generation_marks_gives_the_same_labels(tokenizer):
    plain = byte_tokenizer()
    plain.chat_template = plain.chat_template.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
    rows = {"messages": CHATS}
    assert DocumentEncoder(plain, "messages", 200)(rows, [0, 1]) == DocumentEncoder(tokenizer, "messages", 200)(
        rows, [0, 1]
    )


def test_a_template_that_changes_earlier_turns_is_refused():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(ConfigError, match=r"row 1.*generation"):
        DocumentEncoder(tokenizer, "messages", 200)({"messages": [CHATS[1]]}, [0])


def test_a_share_of_the_prompt_is_learnt_the_same_share_each_time(tokenizer):
    rows = {"messages": CHATS * 20}
    plain = DocumentEncoder(tokenizer, "messages", 200)(rows, list(range(len(CHATS) * 20)))
    half = DocumentEncoder(tokenizer, "messages", 200, prompt_loss_fraction=0.5)
    encoded = half(rows, list(range(len(CHATS) * 20)))
    assert encoded == half(rows, list(range(len(CHATS) * 20)))
    asked, learnt = 0, 0
    for answers, both in zip(plain["labels"], encoded["labels"], strict=True):
        assert all(label in (IGNORED, other) for label, other in zip(answers, both, strict=True))
        asked += answers.count(IGNORED)
        learnt += answers.count(IGNORED) - both.count(IGNORED)
    assert 0.3 < learnt / asked < 0.7


def test_a_batch_tells_learnt_prompts_from_answers(tokenizer):
    encoder = DocumentEncoder(tokenizer, "messages", 200, prompt_loss_fraction=1.0)
    encoded = encoder({"messages": [CHATS[0]]}, [0])
    answers = DocumentEncoder(tokenizer, "messages", 200)({"messages": [CHATS[0]]}, [0])["labels"][0]
    batch = BlockCollator(0)([{"input_ids": encoded["input_ids"][0], "labels": encoded["labels"][0]}])
    assert batch["labels"].tolist() == [encoded["input_ids"][0]]
    assert batch["answers"].tolist() == [[label != IGNORED for label in answers]]
    plain = BlockCollator(0)([{"input_ids": encoded["input_ids"][0], "labels": answers}])
    assert "answers" not in plain


def test_a_conversation_cut_before_the_answer_is_left_out(tokenizer):
    encoded = DocumentEncoder(tokenizer, "messages", 6)({"messages": [CHATS[0]]}, [0])
    assert encoded["input_ids"] == [[]]
    assert encoded["length"][0] > 6


def test_conversations_need_a_chat_template():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="--chat_template"):
        DocumentEncoder(tokenizer, "messages", 20)


# Sources


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


def test_rows_may_differ_in_all_that_is_not_read(tmp_path):
    chat = [{"role": "user", "content": "a", "name": "Tom"}, {"role": "assistant", "content": "b", "weight": 1}]
    rows = [{"messages": chat, "id": 1}, {"messages": CHATS[0], "id": "two", "tags": [None]}]
    read = open_rows([jsonl(tmp_path / "a.jsonl", rows)], DataArguments()).dataset
    assert [conversation_in(row["messages"]) for row in read] == [chat, CHATS[0]]


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "a.txt"
    for text in ("one", "two"):
        path.write_text(text, encoding="utf-8")
        assert open_rows([str(path)], DataArguments()).dataset["text"] == [text]


@pytest.mark.parametrize(("unit", "rows"), [("file", 1), ("paragraph", 2), ("line", 3)])
def test_a_document_of_a_text_file_is_the_file_a_paragraph_or_a_line(tmp_path, unit, rows):
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\r\n\r\n\r\nthree\r\n")
    read = open_rows([str(tmp_path / "a.txt")], DataArguments(text_unit=unit)).dataset["text"]
    assert len(read) == rows
    assert "\r" not in "".join(read)


def test_text_and_conversations_do_not_mix(tmp_path):
    (tmp_path / "a.txt").write_text("one", encoding="utf-8")
    jsonl(tmp_path / "b.jsonl", [{"messages": CHATS[0]}])
    with pytest.raises(ConfigError, match="one kind at a time"):
        open_rows([str(tmp_path)], DataArguments())


def test_conversations_are_read_turn_by_turn(tmp_path):
    jsonl(tmp_path / "train.jsonl", [{"messages": chat} for chat in CHATS])
    rows = open_rows([str(tmp_path / "train.jsonl")], DataArguments())
    assert rows.kind == "messages"
    assert [message["role"] for message in conversation_in(rows.dataset[1]["messages"])][:2] == ["system", "user"]


# Tokenizers


def test_a_tokenizer_can_be_trained_on_the_data_or_loaded(tmp_path):
    rows = Rows(datasets.Dataset.from_dict({"text": ["banana banana"] * 50}), "text", "bananas")
    trained = choose_tokenizer(DataArguments(tokenizer="bpe", vocab_size=270), rows, 64)
    assert len(trained("banana").input_ids) < len("banana")
    trained.save_pretrained(tmp_path)
    loaded = choose_tokenizer(DataArguments(tokenizer=str(tmp_path)), rows, 64)
    assert loaded("banana").input_ids == trained("banana").input_ids


def test_the_chat_template_can_be_replaced(tmp_path):
    rows = Rows(datasets.Dataset.from_dict({"text": ["a"]}), "text", "a")
    file = tmp_path / "template.jinja"
    file.write_text("{{ 'hello' }}", encoding="utf-8")
    tokenizer = choose_tokenizer(DataArguments(tokenizer="byte", chat_template=str(file)), rows, 64)
    assert tokenizer.apply_chat_template(CHATS[0], tokenize=False) == "hello"
    with pytest.raises(ConfigError, match="no such file"):
        choose_tokenizer(DataArguments(tokenizer="byte", chat_template="nowhere"), rows, 64)
    with pytest.raises(ConfigError, match="no tokenizer can be loaded"):
        choose_tokenizer(DataArguments(tokenizer=str(tmp_path / "nothing")), rows, 64)


# Prepared data


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


# Streams


def stream_of(kind, tmp_path, tokenizer):
    flags = {"streaming": True, "eval_documents": 3, "shuffle_buffer": 4, "num_conversations": 20}
    if kind == "jsonl":
        flags["data"] = [jsonl(tmp_path / "t.jsonl", [{"text": f"{i} {TEXTS[i % 7]}"} for i in range(40)])]
    elif kind == "parquet":
        for part in range(3):
            table = datasets.Dataset.from_dict({"text": [f"{part} {i} {TEXTS[i % 7]}" for i in range(15)]})
            table.to_parquet(tmp_path / f"{part}.parquet")
        flags |= {"data": [str(tmp_path / "*.parquet")], "packing": "eos"}
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


def test_too_few_streamed_documents_to_hold_out_are_refused(tmp_path):
    path = jsonl(tmp_path / "t.jsonl", [{"text": "a"}])
    with pytest.raises(ConfigError, match="--eval_documents"):
        split_rows(DataArguments(data=[path], streaming=True), 0)


def test_special_tokens_in_data_are_text(tokenizer):
    said = "a<|endoftext|><|assistant|> b<|user|>"
    end, marks = tokenizer.eos_token_id, set(tokenizer.added_tokens_decoder)
    text = DocumentEncoder(tokenizer, "text", 200)({"text": [said]}, [0])
    assert [token for token in text["input_ids"][0] if token in marks] == [end]
    assert tokenizer.decode(text["input_ids"][0]) == said + "<|endoftext|>"
    chat = [[{"role": "user", "content": said}, {"role": "assistant", "content": said}]]
    plain = byte_tokenizer()
    plain.chat_template = plain.chat_template.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
    for kind in (tokenizer, plain):
        document = DocumentEncoder(kind, "messages", 200)({"messages": chat}, [0])
        ids, labels = document["input_ids"][0], document["labels"][0]
        assert len([token for token in ids if token in marks]) == 3
        assert kind.decode([label for label in labels if label != IGNORED]) == f" {said}<|endoftext|>"


def test_a_model_of_plain_text_says_so_by_having_no_chat_template(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "saved")
    for kind, rows in (("text", [{"text": "a b"}] * 4), ("messages", [{"messages": CHATS[0]}] * 4)):
        data = Rows(datasets.Dataset.from_list(rows), kind, "data")
        for name in ("word", str(tmp_path / "saved")):
            fresh = choose_tokenizer(DataArguments(tokenizer=name), data, 64)
            assert bool(fresh.chat_template) == (kind == "messages")
        asked = choose_tokenizer(DataArguments(tokenizer="byte", chat_template="moe_hf"), data, 64)
        continued = choose_tokenizer(DataArguments(), data, 64, starting_model=str(tmp_path / "saved"))
        assert asked.chat_template
        assert continued.chat_template

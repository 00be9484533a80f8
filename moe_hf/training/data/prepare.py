"""Prepares what the Trainer reads: from the data's name to blocks of tokens, with a part held out."""

import dataclasses
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import datasets
import numpy
from transformers import PreTrainedTokenizerBase

from moe_hf.base.errors import ConfigError
from moe_hf.training.data.arguments import DataArguments
from moe_hf.training.data.collate import BlockCollator
from moe_hf.training.data.documents import DocumentEncoder, require_chat_template
from moe_hf.training.data.packing import BlockPacker
from moe_hf.training.data.rows import RowKind, Rows
from moe_hf.training.data.sources import find_files, generated_source, open_rows
from moe_hf.training.data.stream import PackedStream


class RowSplit(NamedTuple):
    """Rows to train on and rows to evaluate on; None where the latter are cut from the packed blocks, or not wanted."""

    train: Rows
    held_out: Rows | None


class TrainingData(NamedTuple):
    """What the Trainer gets, and what is told about it.

    `num_documents` and `num_tokens` (padding aside) are those of one pass, None for a stream. `row_tokens` are the
    tokens of a mean row that is padded for its batch, None where rows are full. `notices` are sentences about what was
    cut or left out.
    """

    train: datasets.Dataset | PackedStream
    held_out: datasets.Dataset | None
    collator: BlockCollator
    num_documents: int | None
    num_tokens: int | None
    notices: tuple[str, ...]
    row_tokens: float | None = None


def split_rows(arguments: DataArguments, seed: int, cache_dir: str | None = None) -> RowSplit:
    """The rows that the arguments name, opened, checked and split.

    Args:
        arguments: names, columns, sizes.
        seed: of the embedded corpus and of the choice of held-out documents.
        cache_dir: where `datasets` keeps its files; its own default if absent.

    Raises:
        ConfigError: the data can't be read; see `sources.open_rows`.
    """
    generated = generated_source(arguments.data)
    if generated is not None:
        rows = generated.train(arguments, seed)
        # Seconds of work, which other held-out data would throw away.
        held_out = None if arguments.eval_data else generated.held_out()
    else:
        for name in arguments.eval_data:
            # Before the other data is read, which may take hours.
            find_files(name, "--eval_data")
        rows, held_out = open_rows(arguments.data, arguments, cache_dir), None
    if arguments.eval_data:
        at_once = dataclasses.replace(arguments, streaming=False)
        held_out = open_rows(arguments.eval_data, at_once, cache_dir, "--eval_data")
        if held_out.kind != rows.kind:
            raise ConfigError(f"--eval_data holds {held_out.kind} but --data holds {rows.kind}; give the same kind")
    if held_out is not None or arguments.eval_fraction == 0:
        return RowSplit(rows, held_out)
    if isinstance(rows.dataset, datasets.IterableDataset):
        return _split_stream(rows, rows.dataset, arguments.eval_documents)
    num_held_out = int(len(rows.dataset) * arguments.eval_fraction)
    if num_held_out == 0:
        return RowSplit(rows, None)
    parts = rows.dataset.train_test_split(test_size=num_held_out, seed=seed)
    return RowSplit(rows._replace(dataset=parts["train"]), rows._replace(dataset=parts["test"]))


def prepare_data(
    split: RowSplit, tokenizer: PreTrainedTokenizerBase, arguments: DataArguments, context_length: int, seed: int
) -> TrainingData:
    """Encoded and packed rows, ready for the Trainer.

    Args:
        split: opened rows.
        tokenizer: makes the tokens.
        arguments: packing, streaming.
        context_length: tokens per block.
        seed: of the order of the documents.

    Raises:
        ConfigError: the tokenizer can't encode this kind of rows, a conversation is broken, or nothing is left to
            train on.
    """
    kind = split.train.kind
    encoder = DocumentEncoder(tokenizer, kind, context_length, arguments.prompt_loss_fraction)
    # What is held out measures answers only.
    held_out_encoder = DocumentEncoder(tokenizer, kind, context_length)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if pad is None:
        raise ConfigError("the tokenizer has neither a padding token nor an end-of-text token")

    def packer() -> BlockPacker:
        return BlockPacker(context_length, pad, kind == "messages", arguments.packing == "document_mask")

    held_out, notices = None, [*split.train.notices]
    if split.held_out is not None:
        if split.held_out.name != split.train.name:
            notices += split.held_out.notices
        documents = _encode(split.held_out, held_out_encoder)
        held_out = _rows_of(documents, arguments.packing, packer(), context_length)
        notices += _notices(documents, kind, context_length, "held-out ")
    if isinstance(split.train.dataset, datasets.IterableDataset):
        stream = PackedStream(split.train.dataset, encoder, packer(), arguments.shuffle_buffer, seed)
        return TrainingData(stream, held_out, BlockCollator(pad), None, None, tuple(notices))
    rows = split.train
    if generated_source(arguments.data) is None:
        # What is generated comes in the order in which it is best learnt.
        rows = rows._replace(dataset=rows.dataset.shuffle(seed=seed))
    documents = _encode(rows, encoder)
    notices = _notices(documents, kind, context_length, "") + notices
    train = _rows_of(documents, arguments.packing, packer(), context_length)
    num_rows = len(train)
    if split.held_out is None and arguments.eval_fraction > 0:
        train, held_out = _split_blocks(train, arguments.eval_fraction, notices)
    num_tokens = round(int(numpy.sum(documents.with_format("numpy")["kept"][:])) * len(train) / num_rows)
    row_tokens = num_tokens / len(train) if arguments.packing == "none" else None
    return TrainingData(train, held_out, BlockCollator(pad), len(documents), num_tokens, tuple(notices), row_tokens)


def encoded_documents(rows: Rows, tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """The token ids of each document, one after the other, encoded when it is asked for.

    Raises:
        ConfigError: the tokenizer has no chat template for conversations, or no end-of-text token, or a conversation is
            broken.
    """
    require_chat_template(rows.kind, tokenizer, rows.name)
    encoder = DocumentEncoder(tokenizer, rows.kind, sys.maxsize)
    for index, row in enumerate(rows.dataset):
        yield encoder({name: [value] for name, value in row.items()}, [index])["input_ids"][0]


def _split_stream(rows: Rows, stream: datasets.IterableDataset, num_held_out: int) -> RowSplit:
    held_out = list(stream.take(num_held_out))
    if len(held_out) < num_held_out:
        raise ConfigError(
            f"--data {rows.name} holds {len(held_out)} documents, too few to hold out --eval_documents {num_held_out}; "
            "lower it, turn it off with --eval_fraction 0, or leave out --streaming"
        )
    return RowSplit(
        rows._replace(dataset=stream.skip(num_held_out)), rows._replace(dataset=datasets.Dataset.from_list(held_out))
    )


def _encode(rows: Rows, encoder: DocumentEncoder) -> datasets.Dataset:
    def encode(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        encoded = encoder(batch, indices)
        # `length` is that of whole documents; what is trained are the tokens that are left of them.
        return {**encoded, "kept": [len(ids) for ids in encoded["input_ids"]]}

    columns = rows.dataset.column_names
    return rows.dataset.map(encode, batched=True, with_indices=True, remove_columns=columns, desc="tokens")


def _rows_of(documents: datasets.Dataset, packing: str, packer: BlockPacker, context_length: int) -> datasets.Dataset:
    """The rows of a data set of documents: packed blocks, or one piece of a document each."""

    def pieces(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        cut: dict[str, list[Any]] = {"input_ids": [], "labels": []}
        for name, rows in cut.items():
            for values in batch[name]:
                rows += [values[i : i + context_length] for i in range(0, len(values), context_length)]
        return cut

    def pack(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        blocks = [
            block
            for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True)
            for block in packer.add(ids, labels)
        ]
        # `map` tells of no end: the batch with the last document closes the blocks that are still open.
        if indices[-1] == last:
            blocks += packer.flush()
        return {name: [block[name] for block in blocks] for name in packed_names}

    last = len(documents) - 1
    packed_names = ["input_ids", "labels"] + (["position_ids"] if packer.restart_positions else [])
    names = ["input_ids", "labels"] if packing == "none" else packed_names
    function: Any = pieces if packing == "none" else pack
    # In this one process and in order: the packer carries its open blocks from batch to batch.
    rows = documents.map(
        function,
        batched=True,
        with_indices=packing != "none",
        remove_columns=documents.column_names,
        # `datasets` would infer int64: twice the space for the same ids.
        features=datasets.Features({name: datasets.Sequence(datasets.Value("int32")) for name in names}),
        desc="blocks",
    )
    if len(rows) == 0:
        raise ConfigError("the data gave no block to train on: every document is empty or was left out")
    return rows


def _split_blocks(
    blocks: datasets.Dataset, fraction: float, notices: list[str]
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    num_held_out = max(1, int(len(blocks) * fraction))
    if num_held_out >= len(blocks):
        notices.append("the data fills a single block, so nothing is held out for evaluation")
        return blocks, None
    border = len(blocks) - num_held_out
    notices.append(f"too few documents to hold some out: the last {num_held_out} of {len(blocks)} blocks are held out")
    return blocks.select(range(border)), blocks.select(range(border, len(blocks)))


def _notices(documents: datasets.Dataset, kind: RowKind, context_length: int, prefix: str) -> list[str]:
    columns = documents.with_format("numpy")
    length, kept = columns["length"][:], columns["kept"][:]
    long, lost = int((length > context_length).sum()), int(((kept == 0) & (length > 0)).sum())
    noun = f"{len(documents):,} {prefix}{'conversations' if kind == 'messages' else 'documents'}"
    notices = []
    if long and kind == "messages":
        notices.append(f"{long:,} of {noun} are longer than {context_length} tokens and are cut there")
    elif long:
        notices.append(f"{long:,} of {noun} are longer than {context_length} tokens and are split")
    if lost:
        notices.append(f"{lost:,} of {noun} are left out: within {context_length} tokens the assistant says nothing")
    return notices

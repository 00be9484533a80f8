"""Opens documents to score: their tokens, which of them count, the bytes of those, and what they are about."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from moe_hf.base.errors import ConfigError
from moe_hf.text.corpus import EmbeddedCorpus
from moe_hf.training.data.arguments import DataArguments
from moe_hf.training.data.documents import DocumentEncoder
from moe_hf.training.data.embedded import HELD_OUT_PER_SKILL
from moe_hf.training.data.rows import Columns, Row, conversation_in
from moe_hf.training.data.sources import EMBEDDED, find_files, open_rows, read_rows

DOMAIN = "domain"
"""The column of a file that says what a row is about."""


class ScoredDocument(NamedTuple):
    """A document with labels: of a text all tokens, of a conversation what the assistant says.

    Attributes:
        input_ids: the tokens.
        labels: the id of each token that counts, -100 elsewhere.
        num_bytes: of the text that counts, in UTF-8.
        domain: what it is about: its column of that name, the skill of a question of the embedded corpus, or the file.
    """

    input_ids: list[int]
    labels: list[int]
    num_bytes: int
    domain: str


def rows_to_score(arguments: DataArguments, limit: int | None = None) -> list[Row]:
    """The rows of files, folders, globs, the embedded corpus' held-out questions, or data sets of the hub.

    Args:
        arguments: names and columns.
        limit: of each name no more than so many rows.

    Raises:
        ConfigError: a name means nothing, or a row cannot be read; the text has the place.
    """
    columns = Columns(arguments.text_column, arguments.messages_column, arguments.text_unit, DOMAIN)
    files = {name: [] if name == EMBEDDED else find_files(name) for name in arguments.data}
    # Files of one name in several folders are told by their folders.
    names = Counter(file.name for found in files.values() for file in found)
    rows: list[Row] = []
    for name, found in files.items():
        if name == EMBEDDED:
            opened = _questions()
        elif found:
            labels = {file: file.name if names[file.name] == 1 else str(file) for file in found}
            opened = _rows_of(labels, columns)
        else:
            opened = _rows_of_hub(name, arguments)
        rows += islice(opened, limit)
    if not rows:
        raise ConfigError(f"--data {' '.join(arguments.data)} holds no document; name files with text")
    return rows


def scored_document(row: Row, tokenizer: PreTrainedTokenizerBase, encoder: DocumentEncoder) -> ScoredDocument:
    """A row's tokens and labels; none where nothing of it counts.

    A text gets the tokenizer's first token in front, so that its own first token counts as well, and no end-of-text
    token, as lm-eval's rolling log-likelihood has it.
    """
    domain = row.domain or ""
    if row.kind == "messages":
        encoded = encoder({"messages": [row.value], "place": [row.place]}, [0])
        said = [message for message in conversation_in(row.value) if message["role"] == "assistant"]
        # Templates trim what is said.
        num_bytes = sum(len(str(message["content"]).strip().encode()) for message in said)
        return ScoredDocument(encoded["input_ids"][0], encoded["labels"][0], num_bytes, domain)
    ids = encoder({"text": [row.value]}, [0])["input_ids"][0][:-1]
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return ScoredDocument([first, *ids], [-100, *ids], len(row.value.encode()), domain)


def _rows_of(labels: dict[Path, str], columns: Columns) -> Iterator[Row]:
    for file, label in labels.items():
        for row in read_rows(file, columns):
            yield row if row.domain else row._replace(domain=label)


def _rows_of_hub(name: str, arguments: DataArguments) -> Iterator[Row]:
    rows = open_rows([name], arguments)
    for index, cells in enumerate(rows.dataset):
        yield Row(f"{name} row {index + 1}", rows.kind, cells[rows.kind], name)


def _questions() -> Iterator[Row]:
    for question in EmbeddedCorpus().heldout_questions(HELD_OUT_PER_SKILL):
        messages: Sequence[object] = [*question.messages, {"role": "assistant", "content": question.answer}]
        yield Row(f"a question of the skill {question.skill}", "messages", messages, question.skill)

"""Real text of named domains: a tokenizer of its own, blocks to train on, and held-out sets by domain.

Shapes: N blocks, S positions of one block.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerFast

from moe_hf.base.errors import ConfigError
from moe_hf.bench.studies.language_data import IGNORED, HeldOut
from moe_hf.text.tokenizers import train_tokenizer

# Documents that the tokenizer is fitted to, evenly over the file: more change hardly a merge.
_TOKENIZER_DOCUMENTS = 3000
_CHUNK = 512


class Document(NamedTuple):
    """A text and the domain that it belongs to."""

    text: str
    domain: str


class RealText(NamedTuple):
    """Everything a run needs of the text.

    Attributes:
        tokenizer: fitted to the training documents.
        blocks_NS: all training documents, joined end to end in the file's order.
        heldout: by domain; every token but a block's first counts.
        bytes_per_token: of the held-out documents, by domain.
    """

    tokenizer: PreTrainedTokenizerFast
    blocks_NS: torch.Tensor
    heldout: dict[str, HeldOut]
    bytes_per_token: dict[str, float]


def read_documents(file: Path) -> list[Document]:
    """The rows {"text", "domain"} of a JSON lines file; empty lines are passed over.

    Raises:
        ConfigError: no such file, a line that is no such row, or no rows at all.
    """
    if not file.is_file():
        raise ConfigError(f'{file} is no file; give JSON lines of {{"text": ..., "domain": ...}}')
    documents = []
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            documents.append(Document(str(row["text"]), str(row["domain"])))
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                f'{file}, line {number} is {line[:60]!r}; every line has to be {{"text": ..., "domain": ...}}'
            ) from None
    if not documents:
        raise ConfigError(f"{file} has no documents")
    return documents


def real_text(train: Path, heldout: Path, vocab_size: int, context_length: int) -> RealText:
    """Read both files, fit a byte-level BPE to the training documents, and cut all into blocks.

    Raises:
        ConfigError: as `read_documents`, or fewer training tokens than a block.
    """
    documents, apart = read_documents(train), read_documents(heldout)
    stride = max(1, len(documents) // _TOKENIZER_DOCUMENTS)
    tokenizer = train_tokenizer((each.text for each in documents[::stride]), kind="bpe", vocab_size=vocab_size)
    ids = [token for row in _encoded(tokenizer, [each.text for each in documents]) for token in row]
    count = len(ids) // context_length
    if not count:
        raise ConfigError(f"{train} has {len(ids)} tokens; one block of context_length={context_length} is the least")
    blocks_NS = torch.tensor(ids[: count * context_length]).view(count, context_length)
    sets, bytes_per_token = {}, {}
    for domain in dict.fromkeys(each.domain for each in apart):
        texts = [each.text for each in apart if each.domain == domain]
        of_domain = [token for row in _encoded(tokenizer, texts) for token in row]
        sets[domain] = _blocks(of_domain, context_length)
        bytes_per_token[domain] = sum(len(text.encode()) for text in texts) / len(of_domain)
    return RealText(tokenizer, blocks_NS, sets, bytes_per_token)


def _encoded(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Iterator[list[int]]:
    """The ids of each text, with the end-of-text token behind it."""
    for start in range(0, len(texts), _CHUNK):
        for ids in tokenizer(list(texts[start : start + _CHUNK]), add_special_tokens=False)["input_ids"]:
            yield [*ids, tokenizer.eos_token_id]


def _blocks(ids: Sequence[int], context_length: int) -> HeldOut:
    rows = -(-len(ids) // context_length)
    input_ids = torch.zeros(rows * context_length, dtype=torch.long)
    labels = torch.full((rows * context_length,), IGNORED)
    input_ids[: len(ids)] = labels[: len(ids)] = torch.tensor(ids)
    return HeldOut(input_ids.view(rows, context_length), labels.view(rows, context_length))


def draw_blocks(blocks_NS: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """`count` blocks in a random order; each comes once before any comes again."""
    generator = torch.Generator().manual_seed(seed)
    orders: list[torch.Tensor] = []
    while sum(map(len, orders)) < count:
        orders.append(torch.randperm(len(blocks_NS), generator=generator))
    return blocks_NS[torch.cat(orders)[:count]] if orders else blocks_NS[:0]

"""Packing keeps every token once, and documents whole or in order."""

import itertools

import pytest
import torch

from moe_hf.base.errors import ConfigError
from moe_hf.training.data.documents import IGNORED
from moe_hf.training.data.packing import BlockPacker
from tests.training.data.samples import CONTEXT


def documents(num=40):
    numbers = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 50, (num,), generator=numbers).tolist()
    start = itertools.count(1)
    return [[next(start) for _ in range(length)] for length in lengths]


def packed(whole, restart, docs=None, num_open=16):
    packer = BlockPacker(CONTEXT, 0, whole, restart, num_open)
    blocks = [block for ids in docs or documents() for block in packer.add(ids, list(ids))]
    return blocks + packer.flush()


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

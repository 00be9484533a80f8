"""Documents, their blocks, and the order in which blocks are drawn."""

import pytest
import torch

from moe_hf.base.errors import ConfigError
from moe_hf.bench.studies.language_data import IGNORED
from moe_hf.bench.studies.worth.real_text import draw_blocks, read_documents, real_text
from tests.bench.studies.worth.toy import write_rows


def test_every_training_token_is_in_a_block_but_for_the_last_part(tmp_path):
    text = real_text(write_rows(tmp_path / "t.jsonl", 20), write_rows(tmp_path / "h.jsonl", 6, start=50), 300, 32)
    joined = text.tokenizer.decode(text.blocks_NS.flatten().tolist())
    whole = "".join(f"{each.text}<|endoftext|>" for each in read_documents(tmp_path / "t.jsonl"))
    assert whole.startswith(joined)
    assert len(whole) - len(joined) < 32 * 20


def test_heldout_sets_are_by_domain_and_count_every_token_once(tmp_path):
    text = real_text(write_rows(tmp_path / "t.jsonl", 20), write_rows(tmp_path / "h.jsonl", 6, start=50), 300, 32)
    assert list(text.heldout) == ["prose", "code"]
    for domain, (input_ids, labels) in text.heldout.items():
        counted = labels != IGNORED
        assert torch.equal(input_ids[counted], labels[counted])
        documents = [each.text for each in read_documents(tmp_path / "h.jsonl") if each.domain == domain]
        assert text.tokenizer.decode(labels[counted].tolist()) == "".join(f"{each}<|endoftext|>" for each in documents)
        assert text.bytes_per_token[domain] == pytest.approx(sum(map(len, documents)) / int(counted.sum()))


def test_a_block_comes_again_only_after_all_others():
    blocks = torch.arange(5)[:, None]
    drawn = draw_blocks(blocks, 12, seed=3).flatten().tolist()
    assert sorted(drawn[:5]) == sorted(drawn[5:10]) == [0, 1, 2, 3, 4]
    assert len(drawn) == 12
    assert drawn == draw_blocks(blocks, 12, seed=3).flatten().tolist() != draw_blocks(blocks, 12, 4).flatten().tolist()


@pytest.mark.parametrize("line", ["{", "[]", '{"text": "a"}', "7"])
def test_a_line_that_is_no_document_is_named(tmp_path, line):
    file = tmp_path / "t.jsonl"
    file.write_text(f'{{"text": "a", "domain": "b"}}\n{line}\n')
    with pytest.raises(ConfigError, match="line 2"):
        read_documents(file)


def test_a_text_may_hold_any_line_separator_of_unicode(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "a\u2028b\u0085c", "domain": "d"}\n', encoding="utf-8")
    assert read_documents(tmp_path / "t.jsonl")[0].text == "a\u2028b\u0085c"


def test_missing_and_empty_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="is no file"):
        read_documents(tmp_path / "nosuch.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ConfigError, match="no documents"):
        read_documents(tmp_path / "empty.jsonl")
    rows = write_rows(tmp_path / "t.jsonl", 1)
    with pytest.raises(ConfigError, match="one block of context_length=4096"):
        real_text(rows, rows, 300, 4096)

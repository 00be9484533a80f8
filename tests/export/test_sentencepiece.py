"""A SentencePiece BPE tokenizer is in the file with the scores that say the order of its merges."""

import itertools
from pathlib import Path

import pytest
from tokenizers import normalizers
from transformers import LlamaTokenizer, PreTrainedTokenizerBase

from moe_hf.base.errors import CheckpointError
from moe_hf.export.gguf_file import export_gguf
from moe_hf.export.sentencepiece import puts_space_first, scores_of
from tests.export.conftest import ReadBack, SaveModel

WORDS = "the cats and other dogs sat there then they were running over 1234 hills with naive café owners".split()


def llama_tokenizer(folder: Path, normalizes: bool = True) -> PreTrainedTokenizerBase:
    """A tokenizer as Llama-2's: trained by SentencePiece, read by transformers.

    Args:
        folder: where SentencePiece writes.
        normalizes: whether spaces are marked by a normalizer, as in the files of Llama-2 and Mistral, or, as
            transformers makes them now, by a splitter.
    """
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is in the gguf extra")
    texts = [" ".join(words) for words in itertools.permutations(WORDS[:9], 3)] + [" ".join(WORDS)] * 9
    (folder / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "texts.txt"),
        model_prefix=str(folder / "trained"),
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "pieces").mkdir()
    (folder / "trained.model").rename(folder / "pieces" / "tokenizer.model")
    tokenizer = LlamaTokenizer.from_pretrained(folder / "pieces")
    if normalizes:
        tokenizer.backend_tokenizer.pre_tokenizer = None
        tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    return tokenizer


@pytest.mark.parametrize("normalizes", [True, False])
def test_tokens_have_scores_and_types(normalizes: bool, saved: SaveModel, tmp_path: Path) -> None:
    tokenizer = llama_tokenizer(tmp_path, normalizes)
    folder = saved("mixtral", vocab_size=len(tokenizer))
    tokenizer.save_pretrained(folder)
    report = export_gguf(str(folder), folder / "out.gguf")
    assert report.tokenizer is not None
    assert report.tokenizer.split == "SentencePiece"
    assert ["SentencePiece does" in notice for notice in report.notices] == ([] if normalizes else [True])
    fields = ReadBack(report.path).fields
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert tokens == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    unknown, control, byte = 2, 3, 6
    assert types[:3] == [unknown, control, control]
    assert types[3:259] == [byte] * 256
    assert set(types[259:]) == {1}
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.add_space_prefix"]) == ("llama", True)
    scores = fields["tokenizer.ggml.scores"]
    merged = [score for score in scores if score > min(scores)]
    # SentencePiece numbers the pieces in the order in which they are merged.
    assert merged[0] == 0.0
    assert merged == sorted(merged, reverse=True)
    assert set(scores[:259]) == {min(scores)}


def test_scores_say_which_merge_comes_first() -> None:
    content = {"model": {"merges": [["a", "b"], "c d", ["ab", "cd"], ["abc", "d"]]}}
    assert scores_of(content, ["a", "cd", "ab", "abcd"]) == [-4.0, -1.0, 0.0, -2.0]


def test_where_a_space_comes_first_is_seen_in_the_steps() -> None:
    prepend, replace = {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "content": "▁"}
    for content, first in (
        ({"normalizer": {"type": "Sequence", "normalizers": [prepend, replace]}}, True),
        ({"normalizer": replace}, False),
        ({"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "first", "split": False}}, True),
        ({"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "never", "split": False}}, False),
    ):
        assert puts_space_first("m", content) == first
    for content in ({}, {"normalizer": {"type": "NFC"}}, {"pre_tokenizer": {"type": "Metaspace", "split": True}}):
        with pytest.raises(CheckpointError, match="tokenizer of m normalizes or splits text in another way than Sent"):
            puts_space_first("m", content)

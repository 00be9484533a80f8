import threading

import pytest
import torch

from moe_hf.inference.streaming import StopWhenSet, TextPieces
from moe_hf.text.tokenizers import train_tokenizer

TEXTS = ["plain words, 12 of them", "café, naïve", "日本語 and 🦊 tails", "line\nbreak \n", " leading", "a  b"]


def stream(tokenizer, ids, stop_ids=frozenset()):
    shown: list[str] = []
    pieces = TextPieces(tokenizer, stop_ids, shown.append)
    pieces.put(torch.tensor([[1, 2, 3]]))
    for token in ids:
        pieces.put(torch.tensor([token]))
    pieces.end()
    return shown, pieces


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_text_without_half_characters(tokenizer, text):
    shown, pieces = stream(tokenizer, tokenizer(text)["input_ids"])
    assert "".join(shown) == text == pieces.text
    assert not any("\ufffd" in piece for piece in shown)


def test_a_character_of_four_bytes_is_one_piece_of_four_tokens(tokenizer):
    _, pieces = stream(tokenizer, tokenizer("a🦊b")["input_ids"])
    assert [tuple(piece) for piece in pieces.pieces] == [("a", 1), ("🦊", 4), ("b", 1)]


def test_a_character_that_is_never_finished_is_left_out(tokenizer):
    shown, pieces = stream(tokenizer, tokenizer("ab🦊")["input_ids"][:-1])
    assert "".join(shown) == "ab"
    assert sum(piece.num_tokens for piece in pieces.pieces) == len(pieces.token_ids) == 5


def test_bytes_that_never_become_text_do_not_hold_back_the_rest(tokenizer):
    lone = tokenizer("🦊")["input_ids"][1]
    shown, _ = stream(tokenizer, [lone] * 40 + tokenizer("ok")["input_ids"])
    assert len(shown) > 3
    assert "".join(shown).endswith("ok")


def test_a_stop_token_is_neither_shown_nor_counted(tokenizer):
    eos = tokenizer.eos_token_id
    shown, pieces = stream(tokenizer, [*tokenizer("ab")["input_ids"], eos], frozenset([eos]))
    assert (shown, pieces.stopped, len(pieces.token_ids)) == (["a", "b"], True, 2)


def test_a_special_token_inside_an_answer_shows_no_text_but_counts(tokenizer):
    ids = tokenizer("a<|user|>b")["input_ids"]
    shown, pieces = stream(tokenizer, ids)
    assert "".join(shown) == "ab"
    assert sum(piece.num_tokens for piece in pieces.pieces) == 3


def test_blanks_before_the_first_word_are_left_out_if_asked(tokenizer):
    shown: list[str] = []
    pieces = TextPieces(tokenizer, frozenset(), shown.append, strip_start=True)
    pieces.put(torch.tensor([[1]]))
    for token in tokenizer(" \n a b ")["input_ids"]:
        pieces.put(torch.tensor([token]))
    pieces.end()
    assert shown == ["a", " ", "b", " "]
    assert pieces.pieces[0] == ("a", 4)


def test_words_keep_the_spaces_between_them():
    text = "the fox met the duck near the river"
    tokenizer = train_tokenizer([text] * 3, kind="word", vocab_size=300)
    shown, _ = stream(tokenizer, tokenizer(text)["input_ids"])
    assert shown[:3] == ["the", " fox", " met"]
    assert "".join(shown) == text


def test_the_event_stops_every_sequence():
    stop = threading.Event()
    criterion = StopWhenSet(stop)
    ids = torch.zeros(3, 5, dtype=torch.long)
    assert criterion(ids, None).tolist() == [False] * 3
    stop.set()
    assert criterion(ids, None).tolist() == [True] * 3

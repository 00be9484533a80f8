"""Text of an answer, piece by piece."""

import pytest

from moe_hf.serving.answer_text import AnswerText
from moe_hf.text.tokenizers import byte_tokenizer


def pieces_of(text: str, *stops: str, strip_start: bool = False) -> tuple[list[str], bool]:
    tokenizer = byte_tokenizer()
    pieces: list[str] = []
    answer = AnswerText(tokenizer, stops, keep_special=False, strip_start=strip_start, on_text=pieces.append)
    for token in tokenizer(text)["input_ids"]:
        answer.add(token)
    answer.end()
    return pieces, answer.is_stopped


def test_a_character_of_several_tokens_comes_whole() -> None:
    assert pieces_of("aé") == (["a", "é"], False)


@pytest.mark.parametrize(
    ("text", "stops", "shown", "stopped"),
    [
        ("one END two", ["END"], "one ", True),
        ("one EN two", ["END"], "one EN two", False),
        ("one EN", ["END"], "one EN", False),
        ("aaab", ["aab"], "a", True),
        ("a b c", ["c", "b"], "a ", True),
        ("né!", ["é"], "n", True),
        ("stop", ["stop"], "", True),
    ],
)
def test_a_stop_string_ends_the_text_before_it(text, stops, shown, stopped) -> None:
    pieces, is_stopped = pieces_of(text, *stops)
    assert ("".join(pieces), is_stopped) == (shown, stopped)


def test_blanks_before_the_first_word_are_left_out_where_asked() -> None:
    assert "".join(pieces_of("  a b", strip_start=True)[0]) == "a b"
    assert "".join(pieces_of("  a b")[0]) == "  a b"

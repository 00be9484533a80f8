"""Whatever a model's weights say, its answers are JSON by the schema."""

import json

import pytest
import torch

from moe_hf.base.errors import BackendUnavailableError, ConfigError
from moe_hf.base.optional import is_available
from moe_hf.inference.chat_session import ChatSession
from moe_hf.inference.json_answers import JsonAnswers, read_schema
from moe_hf.inference.settings import GenerationSettings
from moe_hf.inference.text_model import CausalTextModel
from moe_hf.text.tokenizers import train_tokenizer
from tests.inference.conftest import small_model

needs_llguidance = pytest.mark.skipif(not is_available("llguidance"), reason="needs the extra `json`")
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "colour": {"enum": ["red", "green"]},
        "likes": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "colour", "likes"],
    "additionalProperties": False,
}


def is_person(value) -> bool:
    return (
        list(value) == ["name", "age", "colour", "likes"]
        and 1 <= len(value["name"]) <= 6
        and type(value["age"]) is int
        and 0 <= value["age"] <= 120
        and value["colour"] in ("red", "green")
        and 1 <= len(value["likes"]) <= 3
        and all(isinstance(like, bool) for like in value["likes"])
    )


SCHEMAS = {
    "object": (PERSON, is_person),
    "enum": ({"enum": ["yes", "no", None, 3]}, lambda value: value in ("yes", "no", None, 3)),
    "number": (
        {"type": "integer", "minimum": 10, "maximum": 99},
        lambda value: type(value) is int and 10 <= value <= 99,
    ),
    "pattern": (
        {"type": "string", "pattern": "^[a-c]{2}-[0-9]{3}$"},
        lambda value: len(value) == 6 and set(value[:2]) <= set("abc") and value[3:].isdecimal(),
    ),
    "nested": (
        {
            "type": "array",
            "items": {"$ref": "#/$defs/pair"},
            "minItems": 2,
            "maxItems": 2,
            "$defs": {
                "pair": {
                    "type": "array",
                    "prefixItems": [{"const": "x"}, {"type": "null"}],
                    "items": False,
                    "minItems": 2,
                }
            },
        },
        lambda value: value == [["x", None], ["x", None]],
    ),
    "either": (
        {"anyOf": [{"type": "boolean"}, {"type": "string", "maxLength": 3}]},
        lambda value: isinstance(value, bool) or len(value) <= 3,
    ),
}


@pytest.fixture(scope="module", params=["byte", "bpe", "word"])
def untrained(request, tokenizer) -> CausalTextModel:
    """A model with random weights."""
    if request.param != "byte":
        texts = ["red and green are colours", "the age of a name"] * 50
        tokenizer = train_tokenizer(texts, request.param, 300)
    return CausalTextModel(small_model(tokenizer, max_position_embeddings=400), tokenizer, "untrained")


@needs_llguidance
@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("do_sample", [True, False])
def test_answers_are_by_the_schema(untrained, name, do_sample) -> None:
    schema, is_right = SCHEMAS[name]
    untrained.answer_by(schema)
    settings = GenerationSettings(temperature=1.0, top_p=1.0, top_k=2, max_new_tokens=200, do_sample=do_sample)
    session = ChatSession(untrained, settings)
    for seed in range(3 if do_sample else 1):
        session.settings = settings._replace(seed=seed)
        reply = session.ask("say something", lambda text: None)
        assert reply.finish_reason == "stop"
        assert is_right(json.loads(reply.text)), reply.text


@needs_llguidance
def test_without_a_schema_answers_are_free_again(untrained) -> None:
    prompt, settings = untrained.encode([{"role": "user", "content": "hi"}]), GenerationSettings(max_new_tokens=20)
    untrained.json_answers = None
    free = untrained.complete(prompt, settings, 0, print).text
    untrained.answer_by({"const": "x"})
    assert untrained.complete(prompt, settings, 0, print).text == '"x"'
    untrained.json_answers = None
    assert untrained.complete(prompt, settings, 0, print).text == free


@needs_llguidance
def test_no_control_token_is_chosen(untrained) -> None:
    untrained.answer_by({"type": "string"})
    processor = untrained.json_answers.processor()
    scores = torch.zeros(1, untrained.model.config.vocab_size)
    open_quote = untrained.encoder.encode_texts(['"'])[0]
    first = processor(torch.tensor([[1, 2]]), scores)
    assert first[0, open_quote[0]] == 0
    inside = processor(torch.tensor([[1, 2, *open_quote]]), scores)
    special = [token for token, added in untrained.tokenizer.added_tokens_decoder.items() if added.special]
    assert special
    assert torch.isneginf(inside[0, special]).all()
    assert torch.isfinite(inside).sum() > 50


@needs_llguidance
@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "strnig"}, "can't be held to"),
        ({"type": "object", "not": {}}, "not"),
        ({"$ref": "http://198.51.100.7/schema.json"}, "can't be held to"),
        ({"type": "integer", "minimum": 3, "maximum": 1}, "can't be held to"),
    ],
)
def test_a_schema_that_cant_be_held_to_is_refused(untrained, schema, message) -> None:
    with pytest.raises(ConfigError, match=message):
        untrained.answer_by(schema)


@needs_llguidance
def test_a_model_that_ends_no_answer_is_refused(tokenizer) -> None:
    with pytest.raises(ConfigError, match="no token that ends an answer"):
        JsonAnswers({"const": 1}, tokenizer, len(tokenizer), [])


def test_without_llguidance_it_says_how_to_get_it(tokenizer, monkeypatch) -> None:
    monkeypatch.setattr("moe_hf.base.optional.is_available", lambda name: False)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'moe_hf\[json\]'"):
        JsonAnswers({"const": 1}, tokenizer, len(tokenizer), [0])


@pytest.mark.parametrize("content", ["", "{", "3", "[]", None])
def test_a_file_that_holds_no_schema_is_refused(tmp_path, content) -> None:
    path = tmp_path / "schema.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=r"schema\.json"):
        read_schema(path)

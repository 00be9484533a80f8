"""A card says how its model is loaded, and promises nothing that would fail."""

import pytest

from moe_hf.models.cards.loading import Loading, how_to_load, task_of


@pytest.mark.parametrize(
    ("is_own", "has_code", "says", "says_not"),
    [
        (True, False, ["import moe_hf", "Without `moe_hf` it cannot be loaded", "`gpt2_moe`"], ["trust_remote_code"]),
        (True, True, ["import moe_hf", "Without `moe_hf`: the Python files", "trust_remote_code=True)"], ["cannot"]),
        (False, False, ["transformers' own"], ["import moe_hf", "trust_remote_code"]),
        (False, True, ["Without another package: the Python files", "trust_remote_code=True)"], ["import moe_hf"]),
    ],
)
def test_it_says_what_is_needed(is_own, has_code, says, says_not):
    text = how_to_load("me/moe", Loading("gpt2_moe", is_own, has_code))
    assert all(words in text for words in says)
    assert not any(words in text for words in says_not)
    assert "`moe-hf chat --model me/moe`" in text


def test_a_model_without_a_tokenizer_is_loaded_without_one():
    text = how_to_load("me/moe", Loading("gpt2_moe", True, has_tokenizer=False))
    assert "okenizer" not in text
    assert "chat" not in text
    assert "# where this repository has a tokenizer" in how_to_load("m/e", Loading("x", True, has_tokenizer=None))


def test_a_classifier_is_loaded_as_one():
    auto_class, task = task_of("GPT2WithMoEForSequenceClassification")
    assert task == "text-classification"
    text = how_to_load("me/moe", Loading("gpt2_moe", True, auto_class=auto_class))
    assert 'AutoModelForSequenceClassification.from_pretrained("me/moe")' in text
    assert "chat" not in text
    assert task_of("GPT2LMHeadModel") == task_of("OlmoeForCausalLM") == task_of("") == task_of("GPT2WithMoE")
    assert task_of("GPT2WithMoEModel") == ("AutoModel", "feature-extraction")


@pytest.mark.parametrize("code", [False, True])
def test_its_code_is_python(code):
    text = how_to_load("me/moe", Loading("gpt2_moe", True, code))
    blocks = text.split("```python\n")[1:]
    assert len(blocks) == 1 + code
    for block in blocks:
        compile(block.split("```")[0], "card", "exec")


@pytest.mark.parametrize(("is_own", "has_code"), [(False, False), (True, False), (True, True)])
def test_quantised_experts_need_the_package(is_own, has_code):
    text = how_to_load("me/moe", Loading("mixtral", is_own, has_code, is_quantized=True))
    assert "import moe_hf" in text
    assert "leaves them random" in text
    assert not any(words in text for words in ("nothing else is needed", "Python files"))

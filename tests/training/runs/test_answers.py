"""Many questions are answered at once as each would be alone."""

from moe_hf.text.tokenizers import byte_tokenizer
from moe_hf.training.runs.answers import batch_answerer


def test_answers_in_a_batch_are_those_that_each_question_gets_alone(tiny_model) -> None:
    tokenizer = byte_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, max_position_embeddings=96)
    answer = batch_answerer(model.train(), tokenizer, max_new_tokens=5)
    questions = [[{"role": "user", "content": text}] for text in ("Hi", "What is 2 + 2?", "Why")]
    together = answer(questions)
    assert together == [answer([question])[0] for question in questions]
    assert len(set(together)) > 1
    assert all(text == text.strip() and "<|" not in text for text in together)
    assert model.training
    assert tokenizer.padding_side == byte_tokenizer().padding_side

import pytest
import torch

from moe_hf.bench.studies.language_data import IGNORED, corpus_tokenizer, heldout_answers, training_blocks


@pytest.fixture(scope="module")
def tokenizer():
    return corpus_tokenizer(320)


def test_a_longer_stream_begins_with_the_shorter_one(tokenizer):
    short, long = (training_blocks(tokenizer, num, 32, seed=3) for num in (10, 700))
    assert torch.equal(short, long[:10])
    assert not torch.equal(short, training_blocks(tokenizer, 10, 32, seed=4))


def test_only_answers_count_in_the_heldout_answers(tokenizer):
    heldout = heldout_answers(tokenizer, 1, 32)
    assert heldout.input_ids.shape[1] <= 32
    for ids, labels in zip(heldout.input_ids.tolist(), heldout.labels.tolist(), strict=True):
        counted = [i for i, label in enumerate(labels) if label != IGNORED]
        assert ids[counted[0] - 1] == tokenizer.convert_tokens_to_ids("<|assistant|>")
        assert ids[counted[-1]] == tokenizer.eos_token_id
        assert [labels[i] for i in counted] == ids[counted[0] : counted[-1] + 1]

"""Rows become a batch, masked only where their lengths differ."""

from moe_hf.training.data.collate import BlockCollator
from moe_hf.training.data.documents import IGNORED, DocumentEncoder
from tests.training.data.samples import CHATS


def test_the_collator_masks_only_rows_of_different_length():
    rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}, {"input_ids": [4], "labels": [4]}]
    batch = BlockCollator(pad_token_id=9)(rows)
    assert batch["input_ids"].tolist()[1] == [4] + [9] * 7
    assert batch["labels"].tolist()[1] == [4] + [IGNORED] * 7
    assert batch["attention_mask"].sum(dim=1).tolist() == [3, 1]
    assert "attention_mask" not in BlockCollator(9)([rows[0], rows[0]])


def test_a_batch_tells_learnt_prompts_from_answers(tokenizer):
    encoder = DocumentEncoder(tokenizer, "messages", 200, prompt_loss_fraction=1.0)
    encoded = encoder({"messages": [CHATS[0]]}, [0])
    answers = DocumentEncoder(tokenizer, "messages", 200)({"messages": [CHATS[0]]}, [0])["labels"][0]
    batch = BlockCollator(0)([{"input_ids": encoded["input_ids"][0], "labels": encoded["labels"][0]}])
    assert batch["labels"].tolist() == [encoded["input_ids"][0]]
    assert batch["answers"].tolist() == [[label != IGNORED for label in answers]]
    plain = BlockCollator(0)([{"input_ids": encoded["input_ids"][0], "labels": answers}])
    assert "answers" not in plain

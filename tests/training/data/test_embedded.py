"""The embedded corpus is generated as training data: as much as asked for, from a seed."""

import datasets

from moe_hf.training.data.arguments import DataArguments
from moe_hf.training.data.embedded import HELD_OUT_PER_SKILL, embedded_held_out, embedded_rows


def test_it_has_as_many_conversations_as_are_asked_for_and_the_same_for_the_same_seed() -> None:
    rows = embedded_rows(DataArguments(num_conversations=12), seed=3)
    assert (rows.kind, len(rows.dataset)) == ("messages", 12)
    again, other = (embedded_rows(DataArguments(num_conversations=12), seed) for seed in (3, 4))
    assert list(again.dataset) == list(rows.dataset)
    assert list(other.dataset) != list(rows.dataset)


def test_streamed_it_has_the_same_rows_in_the_same_order() -> None:
    whole, streamed = (embedded_rows(DataArguments(num_conversations=5, streaming=s), 0) for s in (False, True))
    assert isinstance(streamed.dataset, datasets.IterableDataset)
    assert list(streamed.dataset) == list(whole.dataset)


def test_held_out_questions_of_every_skill_end_with_their_answer() -> None:
    held_out = embedded_held_out().dataset
    assert len(held_out) > 5 * HELD_OUT_PER_SKILL
    assert all(row["messages"][-1]["role"] == "assistant" and row["messages"][-1]["content"] for row in held_out)

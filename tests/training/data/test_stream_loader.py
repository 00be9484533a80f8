"""A stream goes on where it stood, without replaying."""

import datasets
import pytest
import torch

from moe_hf.base.errors import ConfigError
from tests.training.tiny import EndlessStream, StopAfter, assert_same_run, make_trainer, rows


@pytest.mark.parametrize("stop", [2, 5, 6])
def test_a_shuffled_stream_of_datasets_resumes_exactly_also_in_a_later_pass(tmp_path, stop):
    table = datasets.Dataset.from_list([{k: v.tolist() for k, v in row.items()} for row in rows(10)])

    def build(folder, *callbacks):
        stream = table.to_iterable_dataset(num_shards=5).shuffle(seed=3, buffer_size=1)
        return make_trainer(tmp_path / folder, data=stream, callbacks=callbacks, save_strategy="steps", save_steps=stop)

    whole = build("whole")
    whole.train()
    build("parts", StopAfter(stop)).train()
    resumed = build("parts")
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(whole, resumed)


def test_a_stream_is_not_replayed(tmp_path):
    make_trainer(tmp_path, data=EndlessStream(), save_strategy="steps", save_steps=6, max_steps=6).train()
    stream = EndlessStream()
    make_trainer(tmp_path, data=stream, max_steps=8).train(resume_from_checkpoint=True)
    assert stream.reads == 2 * 2


def test_a_stream_without_saved_place_is_replayed(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 5}
    whole = make_trainer(tmp_path / "whole", data=EndlessStream(), **options)
    whole.train()
    make_trainer(tmp_path / "parts", data=EndlessStream(), callbacks=[StopAfter(5)], **options).train()
    checkpoint = tmp_path / "parts" / "checkpoint-5"
    (checkpoint / "run_state.pt").unlink()
    (checkpoint / "manifest.json").unlink()
    resumed = make_trainer(tmp_path / "parts", data=EndlessStream(), **options)
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(whole, resumed)


def test_a_stream_with_workers_is_left_to_transformers(tmp_path):
    trainer = make_trainer(tmp_path, data=EndlessStream(), dataloader_num_workers=1)
    assert isinstance(trainer.get_train_dataloader(), torch.utils.data.DataLoader)


def test_a_stream_without_examples_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="holds no example"):
        make_trainer(tmp_path, data=EndlessStream(end=0)).train()

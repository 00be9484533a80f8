"""Ctrl-C: the first saves and stops, the second aborts."""

import signal
import threading

import pytest

from moe_hf.training.checkpoint import newest_valid_checkpoint
from moe_hf.training.interrupt import InterruptRequest
from tests.training.tiny import DROPOUT, InterruptAt, assert_same_run, make_trainer, rows, tiny_moe


def test_ctrl_c_saves_after_the_step_and_the_run_can_go_on_exactly(tmp_path):
    whole = make_trainer(tmp_path / "whole", tiny_moe(**DROPOUT))
    whole.train()
    before = signal.getsignal(signal.SIGINT)
    stopped = make_trainer(tmp_path / "parts", tiny_moe(**DROPOUT), callbacks=[InterruptAt(3)])
    stopped.train()
    assert stopped.interrupted
    assert stopped.state.global_step == 3
    assert signal.getsignal(signal.SIGINT) is before
    checkpoint = newest_valid_checkpoint(str(tmp_path / "parts"))
    assert checkpoint == str(tmp_path / "parts" / "checkpoint-3")
    resumed = make_trainer(tmp_path / "parts", tiny_moe(**DROPOUT))
    resumed.train(resume_from_checkpoint=checkpoint)
    assert not resumed.interrupted
    assert_same_run(whole, resumed)


def test_ctrl_c_does_not_start_the_evaluation_due_at_the_end_of_the_epoch(tmp_path):
    trainer = make_trainer(
        tmp_path, callbacks=[InterruptAt(2)], eval_data=rows(2), eval_strategy="epoch", save_strategy="epoch"
    )
    trainer.train()
    assert not any("eval_loss" in record for record in trainer.state.log_history)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


def test_ctrl_c_saves_even_when_only_the_best_is_saved(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "best", "metric_for_best_model": "loss"}
    # Learning backwards: every evaluation after the first is worse.
    trainer = make_trainer(
        tmp_path, callbacks=[InterruptAt(3)], eval_data=rows(2, seed=9), learning_rate=1.0, optim="sgd", **options
    )
    trainer.train()
    assert newest_valid_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-3")


def test_the_second_ctrl_c_aborts_at_once(tmp_path):
    trainer = make_trainer(tmp_path, callbacks=[InterruptAt(3, times=2)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.state.global_step == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_first_request_is_noted_and_the_handler_before_is_put_back():
    before = signal.getsignal(signal.SIGINT)
    with InterruptRequest() as request:
        assert not request.requested
        signal.raise_signal(signal.SIGINT)
        assert request.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    with request:
        assert not request.requested


def test_where_ctrl_c_is_ignored_it_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with InterruptRequest() as request:
            signal.raise_signal(signal.SIGINT)
        assert not request.requested
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_nothing_is_changed():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with InterruptRequest():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]

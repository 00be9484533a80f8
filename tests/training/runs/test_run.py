import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.training.metrics import read_metrics
from moe_hf.training.runs.run import train
from moe_hf.training.runs.settings import parse_arguments
from tests.training.runs.tiny_runs import Recorder, log_lines, same_weights


def test_a_finished_run_leaves_a_model_that_others_can_load(finished):
    report, _, _ = finished
    names = {path.name for path in report.model_dir.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json", "README.md"} <= names
    assert {"run.yaml", "metrics.jsonl", "loss.png", "expert_utilization.png"} <= names
    assert "training_args.bin" not in names
    assert not [name for name in names if name.startswith("tmp-")]
    model = AutoModelForCausalLM.from_pretrained(report.model_dir)
    tokenizer = AutoTokenizer.from_pretrained(report.model_dir)
    assert model.config.vocab_size % 8 == 0
    assert model.config.vocab_size >= len(tokenizer)
    for config in (model.config, model.generation_config):
        assert (config.bos_token_id, config.pad_token_id) == (tokenizer.bos_token_id, tokenizer.pad_token_id)
        # Older releases of transformers make a list of it.
        assert config.eos_token_id in (tokenizer.eos_token_id, [tokenizer.eos_token_id])
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert model.generate(**prompt, max_new_tokens=3).shape[1] <= prompt["input_ids"].shape[1] + 3


def test_the_report_has_the_numbers_of_the_run(finished):
    report, listener, _ = finished
    assert report.finished
    assert report.steps == 6
    assert report.trained_tokens == 6 * 2 * 64
    losses = [event["cross_entropy"] for event in read_metrics(str(report.model_dir)) if "loss" in event]
    assert len(losses) == 3
    assert report.train_loss == losses[-1]
    model = AutoModelForCausalLM.from_pretrained(report.model_dir)
    assert listener.plan.info["total_params"] == model.num_parameters()
    assert listener.plan.total_tokens == report.trained_tokens
    assert [progress.step for progress in listener.steps] == [1, 2, 3, 4, 5, 6]
    assert listener.steps[-1].balance >= 1 - 1e-6
    assert listener.events[-1].eval_loss == report.eval_loss


def test_the_evaluation_is_cross_entropy_on_the_assistants_words(finished, eval_data):
    report, _, _ = finished
    model = AutoModelForCausalLM.from_pretrained(report.model_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(report.model_dir)
    chat = json.loads(eval_data.read_text(encoding="utf-8"))["messages"]
    encoded = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    ids = torch.tensor([encoded["input_ids"]])
    labels = ids.masked_fill(torch.tensor([encoded["assistant_masks"]]) == 0, -100)
    with torch.no_grad():
        logits = model(ids).logits[:, :-1].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=-100)
    assert report.eval_loss == pytest.approx(expected.item(), abs=1e-5)


def test_an_interrupted_run_is_continued_by_the_same_command_to_the_same_end(finished, go):
    whole, _, _ = finished
    stopped = go(listener=Recorder(interrupt_at=3))
    assert not stopped.finished
    assert stopped.model_dir.name == "checkpoint-3"
    assert not (Path("runs/tiny-moe") / "config.json").exists()
    resumed = Recorder()
    report = go(listener=resumed)
    assert resumed.plan.checkpoint.endswith("checkpoint-3")
    assert [progress.step for progress in resumed.steps] == [4, 5, 6]
    assert report.model_dir == Path("runs/tiny-moe")
    assert same_weights(report.model_dir, whole.model_dir)
    assert log_lines(report.model_dir) == log_lines(whole.model_dir)


def test_a_streamed_run_is_continued_to_the_same_end(go):
    flags = "--streaming --shuffle_buffer 8"
    go(f"{flags} --output_dir whole")
    assert not go(f"{flags} --output_dir cut", Recorder(interrupt_at=4)).finished
    assert go(f"{flags} --output_dir cut").finished
    assert same_weights("cut", "whole")


@pytest.mark.parametrize("flag", ["--eval_strategy epoch", "--eval_on_start"])
def test_an_evaluation_without_held_out_data_is_refused_before_anything_is_written(go, flag):
    Path("one.txt").write_text("a short text", encoding="utf-8")
    with pytest.raises(ConfigError, match="nothing is held out to evaluate on"):
        train(parse_arguments(f"--data one.txt --tokenizer byte {flag}".split()))
    assert not Path("runs").exists()


def test_a_start_without_a_tokenizer_is_refused_in_one_line(tmp_path):
    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path / "dense")
    with pytest.raises(ConfigError, match=r"dense holds no tokenizer .*give --tokenizer") as error:
        train(parse_arguments(["--upcycle", str(tmp_path / "dense"), "--num_conversations", "40"]))
    assert "\n" not in str(error.value)
    assert not Path("runs").exists()


def test_a_run_file_repeats_the_run(finished, go):
    report, _, _ = finished
    again = train(parse_arguments(["--config", str(report.model_dir / "run.yaml"), "--output_dir", "again"]))
    assert same_weights(again.model_dir, report.model_dir)


def test_a_dry_run_tries_two_steps_and_leaves_nothing(go):
    recorder = Recorder()
    report = go("--dry_run --gradient_accumulation_steps 4", recorder)
    assert list(Path().iterdir()) == []
    assert report.steps == 2
    assert report.model_dir is None
    assert recorder.plan.tokens_per_step == 4 * 2 * 64
    assert recorder.plan.num_steps == 6
    assert report.tokens_per_second > 0


def test_a_dry_run_of_what_does_not_fit_trains_nothing(go):
    recorder = Recorder()
    # A hundred million experts: never built, only counted.
    report = go("--dry_run --num_experts 100000000", recorder)
    assert report.steps == 0
    assert not recorder.plan.fits
    assert "no step is tried" in recorder.notices[-1]


def test_the_evaluation_is_told_in_bits_per_byte(finished):
    report, _, _ = finished
    evaluation = next(event for event in read_metrics(str(report.model_dir)) if "eval_loss" in event)
    # The answer is a space and a digit, one byte each, and the end of the text, which has none.
    assert evaluation["eval_bits_per_byte"] == pytest.approx(report.eval_loss / math.log(2) * 3 / 2)
    card = (report.model_dir / "README.md").read_text(encoding="utf-8")
    assert f"{evaluation['eval_bits_per_byte']:.4f}, whatever the tokenizer" in card


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--context_length 4096", "max_position_embeddings=4096"),
        ("--num_experts_per_tok 9", "num_experts_per_tok"),
        ("--model_overrides hidden_siz=3", "hidden_size"),
        ("--model_overrides hidden_size", "key=value"),
        ("--model_overrides num_experts=2 --num_experts 4", "given twice"),
        ("--upcycle nowhere", "nowhere"),
        ("--data nowhere.txt", "no file matches"),
        ("--data embedded other.txt", "stands alone"),
        ("--streaming --packing none", "--packing none"),
        ("--vocab_size 100 --tokenizer bpe", "261"),
    ],
)
def test_what_can_not_work_is_refused_before_a_folder_is_made(go, flags, words):
    with pytest.raises((ConfigError, CheckpointError)) as error:
        go(flags)
    assert words in str(error.value)
    assert not Path("runs").exists()


def test_a_run_that_reads_little_data_often_is_told(go):
    recorder = Recorder()
    go("--dry_run --max_steps 100000", recorder)
    assert any("reads the data" in notice for notice in recorder.notices)

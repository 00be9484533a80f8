import json
import math
import os
import shutil
import signal
from pathlib import Path

import datasets
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.text.tokenizers import byte_tokenizer
from moe_hf.training.metrics import read_metrics
from moe_hf.training.runs import run
from moe_hf.training.runs.listeners import RunListener
from moe_hf.training.runs.run import train
from moe_hf.training.runs.settings import parse_arguments

SMALL = (
    "--model_overrides hidden_size=16 num_attention_heads=2 num_hidden_layers=2 --num_conversations 150 "
    "--per_device_train_batch_size 2 --max_steps 6 --logging_steps 2 --save_steps 2 --context_length 64 "
    "--tokenizer byte --questions_per_skill 0 --eval_data {eval_data}"
)


class Recorder(RunListener):
    """Keeps what it hears, and presses Ctrl-C after a step if asked to."""

    def __init__(self, interrupt_at=None):
        self.events, self.plan, self.notices, self.steps = [], None, [], []
        self.interrupt_at = interrupt_at

    def noticed(self, text):
        self.notices.append(text)

    def working(self, what):
        self.events.append(what)

    def planned(self, plan):
        self.plan = plan

    def progressed(self, progress):
        self.steps.append(progress)
        if progress.step == self.interrupt_at:
            signal.raise_signal(signal.SIGINT)

    def ended(self, report):
        self.events.append(report)


@pytest.fixture(scope="module")
def eval_data(tmp_path_factory):
    path = tmp_path_factory.mktemp("eval") / "eval.jsonl"
    chat = [{"role": "user", "content": "What is 1 + 1?"}, {"role": "assistant", "content": "2"}]
    path.write_text(json.dumps({"messages": chat}) + "\n", encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture
def go(eval_data):
    def run(flags="", listener=None):
        settings = parse_arguments([*SMALL.format(eval_data=eval_data).split(), *flags.split()])
        return train(settings, [listener] if listener else [])

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory, eval_data):
    """A finished run, its listener, and the folder that it was called in."""
    folder = tmp_path_factory.mktemp("finished")
    listener = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        datasets.disable_progress_bars()
        report = train(parse_arguments(SMALL.format(eval_data=eval_data).split()), [listener])
    return report._replace(model_dir=folder / report.model_dir), listener, folder


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def same_weights(one, other):
    return all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())


def log_lines(folder):
    speed = ("tokens_per_second", "_runtime", "_per_second")
    lines = [
        {name: value for name, value in event.items() if not name.endswith(speed)}
        for event in read_metrics(str(folder))
    ]
    # A sum of float32 numbers in another order.
    return [line | {name: round(line[name], 5) for name in ("train_loss",) if name in line} for line in lines]


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


class Killed(BaseException):
    """Ends a call as a kill would: nothing in the package catches it."""


def kill_after(monkeypatch, number):
    """Die when the `number`-th rename, or removal of a folder, since the run's last step is done."""
    calls = []

    def mortal(real):
        def call(*args, **kwargs):
            answer = real(*args, **kwargs)
            calls.append(args)
            if len(calls) == number:
                raise Killed
            return answer

        return call

    class Trained(RunListener):
        def trained(self):
            monkeypatch.setattr(os, "replace", mortal(os.replace))
            monkeypatch.setattr(shutil, "rmtree", mortal(shutil.rmtree))

    return Trained()


@pytest.mark.slow
def test_a_run_killed_anywhere_in_its_end_is_ended_by_the_same_command(finished, go, monkeypatch):
    # One folder, killed again and again: each call finds what the kill before has left.
    kills = 0
    while not Path("runs/tiny-moe/config.json").exists():
        kills += 1
        with monkeypatch.context() as patch, pytest.raises(Killed):
            go("--output_dir runs/tiny-moe", kill_after(patch, kills))
    assert kills > 9
    files = {path.name for path in finished[0].model_dir.iterdir()}
    # Killed before the last removal, which is that of an empty folder.
    assert {path.name for path in Path("runs/tiny-moe").iterdir()} == files | {"tmp-model"}
    assert same_weights("runs/tiny-moe", finished[0].model_dir)
    assert log_lines("runs/tiny-moe") == log_lines(finished[0].model_dir)


@pytest.mark.parametrize("moment", ["_finalize_training", "evaluate", "final_model", "write_report"])
def test_a_run_killed_after_its_last_step_is_ended_and_not_trained_further(finished, go, monkeypatch, moment):
    def killed(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(run if hasattr(run, moment) else run.MoETrainer, moment, killed)
        with pytest.raises(Killed):
            go("--output_dir runs/tiny-moe")
    recorder = Recorder()
    report = go("--output_dir runs/tiny-moe", recorder)
    assert recorder.steps == []
    assert (report.steps, report.timed_steps, report.train_loss) == (6, 6, finished[0].train_loss)
    assert report.tokens_per_second > 0
    assert same_weights(report.model_dir, finished[0].model_dir)
    assert log_lines(report.model_dir) == log_lines(finished[0].model_dir)
    assert {path.name for path in report.model_dir.iterdir()} == {path.name for path in finished[0].model_dir.iterdir()}


def test_a_streamed_run_is_continued_to_the_same_end(go):
    flags = "--streaming --shuffle_buffer 8"
    go(f"{flags} --output_dir whole")
    assert not go(f"{flags} --output_dir cut", Recorder(interrupt_at=4)).finished
    assert go(f"{flags} --output_dir cut").finished
    assert same_weights("cut", "whole")


def test_a_finished_run_is_not_overwritten(finished, go):
    shutil.copytree(finished[2] / "runs", "runs")
    before = weights("runs/tiny-moe")
    assert go("--max_steps 2").model_dir == Path("runs/tiny-moe-2")
    assert all(torch.equal(before[name], value) for name, value in weights("runs/tiny-moe").items())
    with pytest.raises(ConfigError, match="already holds a model"):
        go("--output_dir runs/tiny-moe")


def test_an_interrupted_run_of_other_settings_is_left_alone(go):
    go("--output_dir cut", Recorder(interrupt_at=2))
    with pytest.raises(ConfigError, match="seed: 0 -> 5"):
        go("--output_dir cut --seed 5")
    with pytest.raises(ConfigError, match="interrupted run"):
        go("--output_dir cut --resume never")
    # What is only logged or kept may change.
    assert go("--output_dir cut --logging_steps 1 --license mit").finished


def test_two_runs_at_once_take_two_folders(go):
    class Beside(Recorder):
        def working(self, what):
            if what == "building the model" and not self.events:
                self.events.append(go())
                with pytest.raises(ConfigError, match="in use by another run"):
                    go("--output_dir runs/tiny-moe")

    beside = Beside()
    assert go(listener=beside).model_dir == Path("runs/tiny-moe")
    assert beside.events[0].model_dir == Path("runs/tiny-moe-2")
    # The lock is gone though its file stays, so that all processes lock the same one.
    with FileLock("runs/tiny-moe/.lock").acquire(timeout=0):
        assert Path("runs/tiny-moe/.lock").is_file()


@pytest.mark.parametrize("flag", ["--eval_strategy epoch", "--eval_on_start"])
def test_an_evaluation_without_held_out_data_is_refused_before_anything_is_written(go, flag):
    Path("one.txt").write_text("a short text", encoding="utf-8")
    with pytest.raises(ConfigError, match="nothing is held out to evaluate on"):
        train(parse_arguments(f"--data one.txt --tokenizer byte {flag}".split()))
    assert not Path("runs").exists()


@pytest.mark.parametrize("source", ["--model nothere", "--model ./nothere", "--upcycle no/such/folder"])
def test_a_start_that_is_no_folder_is_refused_without_the_network(go, source):
    with pytest.raises(CheckpointError, match="there is no folder"):
        train(parse_arguments(source.split()))


def test_a_start_without_a_tokenizer_is_refused_in_one_line(tmp_path):
    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path / "dense")
    with pytest.raises(ConfigError, match=r"dense holds no tokenizer .*give --tokenizer") as error:
        train(parse_arguments(["--upcycle", str(tmp_path / "dense"), "--num_conversations", "40"]))
    assert "\n" not in str(error.value)
    assert not Path("runs").exists()


def test_a_named_checkpoint_is_continued_and_a_wrong_one_refused(finished, go):
    shutil.copytree(finished[2] / "runs", "runs")
    recorder = Recorder()
    report = go("--resume runs/tiny-moe/checkpoint-4 --output_dir again", recorder)
    assert [progress.step for progress in recorder.steps] == [5, 6]
    assert same_weights(report.model_dir, "runs/tiny-moe")
    with pytest.raises(CheckpointError, match="no such folder"):
        go("--resume runs/tiny-moe/checkpoint-9")
    with pytest.raises(ConfigError, match="num_experts: None -> 8"):
        go("--resume runs/tiny-moe/checkpoint-4 --num_experts 8 --output_dir other")


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


def test_the_dense_twin_has_no_experts_and_the_promised_size(finished, go):
    report = go("--architecture dense")
    assert report.model_dir == Path("runs/tiny-dense")
    model = AutoModelForCausalLM.from_pretrained(report.model_dir)
    assert model.config.sparse_layers == []
    assert model.num_parameters() == finished[0].plan.info["dense_twin_params"]
    assert not (report.model_dir / "expert_utilization.png").exists()


@pytest.fixture
def dense():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=264, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0, pad_token_id=1
    )
    GPT2LMHeadModel(config).save_pretrained("dense")
    byte_tokenizer().save_pretrained("dense")
    return Path("dense")


MEGABYTE = "--architecture megabyte --context_length 64 --max_steps 2 --model_overrides hidden_size=32 patch_size=4"


@pytest.mark.parametrize("dense", [False, True])
def test_megabyte_and_its_dense_twin_train_on_bytes(go, dense):
    report = go(f"--output_dir run {MEGABYTE} {'--dense_twin' if dense else ''}")
    model = AutoModelForCausalLM.from_pretrained(report.model_dir)
    assert sum(parameter.numel() for parameter in model.parameters()) == report.plan.info["total_params"]
    assert any("experts" in name for name, _ in model.named_parameters()) is not dense
    assert report.plan.sparse_layers == (() if dense else (0, 2))


@pytest.mark.parametrize("tokenizer", ["word", "bpe"])
def test_megabyte_refuses_a_tokenizer_of_more_than_bytes(go, tokenizer):
    with pytest.raises(ConfigError, match="MegaByte reads bytes"):
        go(f"--output_dir run {MEGABYTE} --tokenizer {tokenizer}")
    assert not Path("run").exists()


def test_the_evaluation_is_told_in_bits_per_byte(finished):
    report, _, _ = finished
    evaluation = next(event for event in read_metrics(str(report.model_dir)) if "eval_loss" in event)
    # The answer is a space and a digit, one byte each, and the end of the text, which has none.
    assert evaluation["eval_bits_per_byte"] == pytest.approx(report.eval_loss / math.log(2) * 3 / 2)
    card = (report.model_dir / "README.md").read_text(encoding="utf-8")
    assert f"{evaluation['eval_bits_per_byte']:.4f}, whatever the tokenizer" in card


def test_upcycling_begins_with_the_dense_models_loss_and_its_tokenizer(dense, go):
    flags = "--tokenizer dense --model_overrides router_jitter_noise=0.0 --learning_rate 0 --max_steps 1 --optim sgd"
    moe = go(f"--upcycle dense --num_experts 4 --num_experts_per_tok 2 --output_dir moe {flags}")
    twin = go(f"--upcycle dense --architecture dense --output_dir twin {flags}")
    assert AutoModelForCausalLM.from_pretrained("moe").config.num_experts == 4
    assert moe.eval_loss == pytest.approx(twin.eval_loss, abs=1e-5)
    assert AutoTokenizer.from_pretrained("moe").get_vocab() == byte_tokenizer().get_vocab()


def test_training_goes_on_from_a_saved_model(finished, go, eval_data):
    argv = ["--model", str(finished[0].model_dir), "--max_steps", "1", "--optim", "sgd", "--learning_rate", "0"]
    argv += ["--num_conversations", "20", "--eval_data", str(eval_data), "--context_length", "64"]
    report = train(parse_arguments([*argv, "--questions_per_skill", "0", "--output_dir", "more"]))
    assert report.eval_loss == pytest.approx(finished[0].eval_loss, abs=1e-6)
    assert same_weights("more", finished[0].model_dir)


def test_training_does_not_go_on_from_a_model_that_lacks_experts(finished, eval_data, tmp_path):
    damaged = Path(shutil.copytree(finished[0].model_dir, tmp_path / "damaged"))
    weights = load_file(damaged / "model.safetensors")
    lost = next(name for name in weights if "experts" in name)
    save_file({name: x for name, x in weights.items() if name != lost}, damaged / "model.safetensors", {"format": "pt"})
    argv = ["--model", str(damaged), "--max_steps", "1", "--num_conversations", "20", "--eval_data", str(eval_data)]
    with pytest.raises(CheckpointError, match=f"lacks 1 of the model's tensors .{lost}"):
        train(parse_arguments([*argv, "--context_length", "64", "--output_dir", "more"]))


def test_the_scoreboard_asks_the_held_out_questions_of_every_skill(go):
    report = go("--questions_per_skill 1 --max_steps 1")
    assert len(report.scoreboard.scores) > 10
    assert "## Held-out questions" in (report.model_dir / "README.md").read_text(encoding="utf-8")


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

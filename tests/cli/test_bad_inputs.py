"""Everything that may be wrong with what a person gives `train.py` ends in one line that says where and what."""

import json
import os
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from moe_hf.cli.train import main
from moe_hf.text.tokenizers import byte_tokenizer

FLAGS = (
    "--model_overrides hidden_size=16 num_attention_heads=2 num_hidden_layers=2 --max_steps 2 "
    "--per_device_train_batch_size 2 --context_length 64 --tokenizer byte --save_strategy no --num_conversations 20"
).split()
GOOD = '{"text": "one"}\n'
USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


def chat(*messages, **more):
    return json.dumps({"messages": list(messages), **more}) + "\n"


def jsonl(content, *words, late=0, flags=()):
    return ("d.jsonl", GOOD * late + content, ["--data", "d.jsonl", *flags], ["d.jsonl", *words])


def conversations(content, *words, flags=()):
    return ("d.jsonl", chat(USER, ANSWER) + content, ["--data", "d.jsonl", *flags], ["d.jsonl line 2", *words])


def parquet(array, *words, name="text"):
    return ("d.parquet", pyarrow.table({name: array}), ["--data", "d.parquet"], ["d.parquet", *words])


def csv(content, *words):
    return ("d.csv", content, ["--data", "d.csv"], ["d.csv", *words])


def flags(argv, *words):
    return (None, None, argv.split(), list(words))


def run_file(content, *words):
    return ("run.yaml", content, ["--config", "run.yaml"], ["run.yaml", *words])


def template(content, *words):
    return ("t.jinja", content, ["--chat_template", "t.jinja"], ["t.jinja", *words])


def tokenizer(content, *words, file="tokenizer.json"):
    return (f"tok/{file}", content, ["--tokenizer", "tok"], ["tok", *words])


STREAMED = ["--streaming", "--eval_documents", "1"]
HALF = '"\\ud83d"'
DEEP = "[" * 100_000
ROLES = pyarrow.array([[USER, ANSWER], [USER, {"role": "assistant", "content": None}]])

DATA = {
    "not json": jsonl("text\n", "line 3 is not JSON", "text", late=2),
    "cut json": jsonl('{"text": "b\n', "line 1 is not JSON", "column 10"),
    "pretty-printed list": jsonl('[\n  {"text": "a"}\n]\n', "line 1 is not JSON"),
    "list": jsonl("[1, 2]\n", "line 1 is not a JSON object", "[1, 2]"),
    "number": jsonl("5\n", "line 1 is not a JSON object", "5"),
    "null": jsonl("null\n", "line 1 is not a JSON object"),
    "no column": jsonl('{"body": "a"}\n', "line 1", "body", "--text_column"),
    "no column later": jsonl('{"body": "a"}\n', "line 5", "body", late=4),
    "empty object": jsonl("{}\n", "line 1", "--text_column"),
    "text null": jsonl('{"text": null}\n', "line 2", "must be text, got None", late=1),
    "text number": jsonl('{"text": 5}\n', "line 2", "got 5", late=1),
    "text list": jsonl('{"text": ["a"]}\n', "line 2", "got ['a']", late=1),
    "deep": jsonl(f'{{"text": {DEEP}\n', "line 2 is nested too deep", late=1),
    "key twice": jsonl('{"text": "a", "text": "b"}\n', "line 2", "'text' stands twice", late=1),
    "key twice inside": jsonl('{"text": "a", "m": {"k": 1, "k": 2}}\n', "line 1", "'k' stands twice"),
    "huge number": jsonl(f'{{"text": "a", "n": {"9" * 5000}}}\n', "line 1", "digits"),
    "half a character": jsonl(f'{{"text": {HALF}}}\n', "line 3", "half a character", "\\ud83d", late=2),
    "latin-1": ("d.jsonl", b'{"text": "caf\xe9"}\n', ["--data", "d.jsonl"], ["d.jsonl line 1 is not UTF-8", "0xe9"]),
    "utf-16": ("d.txt", "hello".encode("utf-16"), ["--data", "d.txt"], ["d.txt line 1 is not UTF-8", "save"]),
    "kinds mixed": jsonl(chat(USER, ANSWER), "line 4 holds messages", "one at a time", late=3),
    "blank": jsonl(" \n\n", "only blank lines"),
    "empty": jsonl("", "d.jsonl is empty"),
    "blank text": ("d.txt", " \n\n", ["--data", "d.txt"], ["d.txt has only blank lines"]),
    "unknown kind": ("d.xls", "a", ["--data", "d.xls"], ["d.xls", "'.xls' can't be read", ".csv"]),
    "no file": flags("--data nowhere.jsonl", "nowhere.jsonl", "no file matches"),
    "no file in glob": flags("--data *.parquet", "*.parquet", "no file matches"),
    "empty name": (None, None, ["--data", ""], ["--data must not be empty"]),
    "empty folder": ("d/readme.md", "a", ["--data", "d"], ["--data d", "holds no .txt"]),
    "no held-out file": flags("--eval_data nowhere.jsonl", "--eval_data nowhere.jsonl", "no file matches"),
    "held-out of another kind": ("d.jsonl", GOOD, ["--eval_data", "d.jsonl"], ["holds text", "holds messages"]),
    "held-out broken": ("d.jsonl", "{\n", ["--eval_data", "d.jsonl"], ["d.jsonl line 1 is not JSON"]),
    "conversation empty": conversations(chat(), "got []"),
    "conversation text": conversations('{"messages": "Hi"}\n', "is not JSON", "Hi"),
    "conversation null": conversations('{"messages": null}\n', "got None"),
    "message text": conversations('{"messages": ["Hi"]}\n', "message 1", "got Hi"),
    "no content": conversations(chat(USER, {"role": "assistant"}), "message 2", "a role and a content"),
    "content null": conversations(chat(USER, {**ANSWER, "content": None}), "message 2", "got None"),
    "content parts": conversations(chat({"role": "user", "content": [{"type": "text"}]}, ANSWER), "message 1"),
    "role null": conversations(chat({**USER, "role": None}, ANSWER), "role of message 1", "got None"),
    "role number": conversations(chat({**USER, "role": 1}, ANSWER), "role of message 1", "got 1"),
    "role unknown": conversations(chat({**USER, "role": "narrator"}, ANSWER), "narrator", "user, assistant"),
    "role half": conversations(f'{{"messages": [{{"role": {HALF}, "content": "a"}}]}}\n', "half a character"),
    "content half": conversations(f'{{"messages": [{{"role": "user", "content": {HALF}}}]}}\n', "half a character"),
    "only the user": conversations(chat(USER), "no turn of the assistant", "user"),
    "human and gpt": conversations(chat({**USER, "role": "human"}, {**ANSWER, "role": "gpt"}), "human, gpt"),
    "parquet null": parquet(["a", None], "row 2", "got None"),
    "parquet binary": parquet([b"a", b"b"], "row 1", "got b'a'"),
    "parquet number": parquet([1, 2], "row 1", "got 1"),
    "parquet no column": parquet(["a"], "no column 'text'", "body", name="body"),
    "parquet no rows": parquet(pyarrow.array([], pyarrow.string()), "has no rows"),
    "parquet null content": parquet(ROLES, "row 2", "message 2", "got None", name="messages"),
    "parquet null chat": parquet(pyarrow.array([[USER, ANSWER], None]), "row 2", "got None", name="messages"),
    "parquet of text": ("d.parquet", "no table", ["--data", "d.parquet"], ["d.parquet is not a readable Parquet"]),
    "csv no column": csv("a,b\n1,2\n", "first line of d.csv", "a, b"),
    "csv ragged": csv("n,text\n1,a\n2,b,c\n", "line 3 has 3 cells", "2"),
    "csv open quote": csv('text\n"a\nb\n', "line 2 is not CSV"),
    "csv column twice": csv("text,text\na,b\n", "'text' stands twice"),
    "csv only head": csv("text\n", "has no rows"),
    "csv chat": csv('messages\n"[{""role"": ""user""}]"\n', "line 2", "a role and a content"),
    "late in a stream": jsonl('{"text": 5}\n', "line 1501", "got 5", late=1500, flags=STREAMED),
    "late in a short stream": jsonl("{\n", "line 901", late=900, flags=STREAMED),
}

TEXTS = {
    "template syntax": template("{% for %}", "line 1", "--chat_template"),
    "template raises": template("{{ raise_exception('no') }}", "no"),
    "template divides": template("{{ 1 / 0 }}", "ZeroDivisionError"),
    "template unknown name": template("{{ messages.nothing.at.all }}", "UndefinedError"),
    "template unknown filter": template("{{ messages | nofilter }}", "nofilter"),
    "template unknown test": template("{% include 'other' %}", "t.jinja"),
    "template latin-1": template(b"caf\xe9", "UTF-8"),
    "template of nothing": template("{# #}", "writes nothing"),
    "template absent": flags("--chat_template nowhere.jinja", "nowhere.jinja", "no such file"),
    "tokenizer cut": tokenizer('{"version": "1.0", "model": {', "the tokenizer of tok can't be read"),
    "tokenizer empty object": tokenizer("{}", "the tokenizer of tok can't be read"),
    "tokenizer list": tokenizer("[]", "the tokenizer of tok can't be read"),
    "tokenizer config list": tokenizer("[]", "no tokenizer can be loaded", file="tokenizer_config.json"),
    "tokenizer binary": tokenizer(b"\xff\xfe\x00", "the tokenizer of tok can't be read"),
    "tokenizer without files": tokenizer("a", "holds no tokenizer", file="readme.md"),
    "tokenizer absent": flags("--tokenizer ./nowhere", "nowhere", "give --tokenizer"),
    "vocabulary too small": flags("--tokenizer bpe --vocab_size 5", "vocab_size", "at least 261", "5"),
    "vocabulary of nothing": flags("--vocab_size 0", "vocab_size", "at least 1", "0"),
}

SETTINGS = {
    "seed": flags("--seed -1", "--seed", "at least 0", "-1"),
    "large seed": flags("--seed 99999999999999", "--seed", "at most 4294967295"),
    "data seed": flags("--data_seed -5", "--data_seed", "-5"),
    "rate nan": flags("--learning_rate nan", "--learning_rate", "finite", "nan"),
    "rate inf": flags("--learning_rate inf", "--learning_rate", "finite", "inf"),
    "rate negative": flags("--learning_rate -0.1", "--learning_rate", "at least 0"),
    "rate absurd": flags("--learning_rate 3", "--learning_rate 3", "--allow_any_learning_rate"),
    "rate absurd for adamw": flags("--optim adamw_torch --learning_rate 0.5", "0.5", "adamw_torch", "0.1"),
    "muon rate absurd": flags("--muon_learning_rate 2", "--muon_learning_rate 2", "--allow_any_learning_rate"),
    "decay nan": flags("--weight_decay nan", "--weight_decay", "finite"),
    "decay negative": flags("--weight_decay -1", "--weight_decay", "at least 0"),
    "warm-up nan": flags("--warmup_steps nan", "--warmup_steps", "finite"),
    "norm negative": flags("--max_grad_norm -1", "--max_grad_norm", "at least 0"),
    "beta": flags("--adam_beta2 1.5", "--adam_beta2", "below 1", "1.5"),
    "smoothing": flags("--label_smoothing_factor 2", "--label_smoothing_factor", "2"),
    "epochs nan": flags("--num_train_epochs nan", "--num_train_epochs", "finite"),
    "steps": flags("--max_steps -7", "--max_steps -7", "trains nothing"),
    "no steps": flags("--max_steps 0", "--max_steps 0", "trains nothing"),
    "batch": flags("--per_device_train_batch_size 0", "at least 1, got 0"),
    "accumulation": flags("--gradient_accumulation_steps -1", "at least 1, got -1"),
    "saves": flags("--save_steps 0 --save_strategy steps", "save_steps", "0"),
    "saves word": flags("--save_steps often", "--save_steps", "often"),
    "logs": flags("--logging_steps -1", "--logging_steps", "-1"),
    "evaluations": flags("--eval_strategy steps --eval_steps -3", "--eval_steps", "-3"),
    "workers": flags("--dataloader_num_workers -1", "--dataloader_num_workers", "-1"),
    "context": flags("--context_length 1", "--context_length", "at least 2"),
    "context too long": flags("--context_length 100000", "--context_length 100000"),
    "conversations": flags("--num_conversations 0", "--num_conversations", "at least 1"),
    "share": flags("--eval_fraction nan", "--eval_fraction", "nan"),
    "prompt share": flags("--prompt_loss_fraction 1.5", "--prompt_loss_fraction", "1.5"),
    "schedule": flags("--lr_scheduler_type cosine_with_min_lr", "cosine_with_min_lr", "min_lr"),
    "schedule word": flags("--lr_scheduler_type fast", "fast"),
    "schedule arguments": flags("--lr_scheduler_kwargs {bad", "{bad"),
    "schedule argument": flags('--lr_scheduler_kwargs {"speed":1}', "speed"),
    "optimizer": flags("--optim adamw_bnb_8bit", "adamw_bnb_8bit", "install"),
    "report": flags("--report_to wandb", "--report_to wandb", "pip install 'moe_hf[wandb]'"),
    "report of others": flags("--report_to mlflow", "--report_to mlflow", "pip install mlflow"),
    "report word": flags("--report_to wandbb", "wandbb", "did you mean 'wandb'"),
    "best model": flags(
        "--metric_for_best_model accuracy --eval_strategy steps --save_strategy steps", "accuracy", "give loss"
    ),
    "hub name": flags("--push_to_hub --hub_model_id a/b/c --hub_token x", "a/b/c"),
    "hub token": flags("--push_to_hub --hub_model_id a/b", "--push_to_hub", "hf auth login"),
    "no checkpoint": flags("--resume nowhere", "nowhere"),
    "model absent": flags("--model ./nowhere --max_steps 1", "nowhere"),
    "override": flags("--model_overrides hidden_size=wide", "hidden_size", "wide"),
    "override yaml": flags("--model_overrides hidden_size=[1", "hidden_size", "YAML"),
    "override twice as deep": (None, None, ["--model_overrides", f"hidden_size={DEEP}"], ["hidden_size", "YAML"]),
    "folder is a file": ("f", "a", ["--output_dir", "f/run"], ["f is a file"]),
    "deepspeed": flags("--deepspeed nowhere.json", "training arguments"),
    "accelerator": flags("--accelerator_config nowhere.json", "nowhere.json"),
    "best of nothing": flags("--save_strategy best", "--save_strategy best", "--metric_for_best_model loss"),
    "labels": flags("--label_names targets", "--label_names targets"),
    "shards of one process": flags("--fsdp full_shard", "fsdp"),
    "both halves": flags("--fp16 --bf16", "bf16"),
}

RUN_FILES = {
    "not yaml": run_file("seed: [1\n", "not valid YAML", "line 2"),
    "tab": run_file("seed:\t- 1\n\t- 2\n", "not valid YAML"),
    "control character": run_file("seed: \x00\n", "not valid YAML"),
    "latin-1": run_file(b"caf\xe9: 1\n", "not UTF-8"),
    "object": run_file("seed: !!python/object:os.system x\n", "not valid YAML"),
    "no date": run_file("run_name: 2024-13-45\n", "not valid YAML"),
    "deep": run_file(f"data: {DEEP}\n", "not valid YAML"),
    "list": run_file("- seed\n", "flag_name: value"),
    "text": run_file("seed\n", "flag_name: value"),
    "key twice": run_file("seed: 1\nseed: 2\n", "'seed' stands twice"),
    "key list": run_file("? [a]\n: 1\n", "run.yaml"),
    "unknown key": run_file("learning_rat: 1\n", "'learning_rat'", "learning_rate"),
    "rate nan": run_file("learning_rate: .nan\n", "learning_rate"),
    "steps infinite": run_file("max_steps: .inf\n", "max_steps", "a whole number"),
    "saves word": run_file("save_steps: often\n", "save_steps", "often", "a number"),
    "absent": flags("--config nowhere.yaml", "nowhere.yaml", "no such file"),
    "folder": ("conf/a", "a", ["--config", "conf"], ["conf", "YAML file"]),
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, pyarrow.Table):
        pyarrow.parquet.write_table(content, path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


TABLE = {
    f"{kind}: {name}": case
    for kind, cases in {"data": DATA, "text": TEXTS, "flag": SETTINGS, "file": RUN_FILES}.items()
    for name, case in cases.items()
}


@pytest.mark.parametrize("name", TABLE)
def test_a_bad_input_ends_in_one_line_that_names_place_and_value(name, capsys):
    file, content, argv, words = TABLE[name]
    if file is not None:
        put(Path(file), content)
    # The last one given counts, but a run file is overridden by any flag.
    flags = [] if "--config" in argv else FLAGS
    if "--model" in argv or "--model_overrides" in argv:
        flags = ["--num_conversations", "20"]
    code = main([*flags, *argv])
    captured = capsys.readouterr()
    assert code != 0
    lines = captured.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("train.py: error: ")
    assert len(lines[0]) < 700
    for word in words:
        assert word in lines[0]
    left = [path for path in Path("runs").rglob("*") if path.is_file()] if Path("runs").exists() else []
    # A stream is read while it trains: what was begun can go on when the line is mended.
    assert {path.name for path in left} <= ({"run.yaml", ".lock"} if "late in a stream" in name else set())


def test_a_good_run_of_the_same_flags_passes(capsys):
    """Else every case of the table could fail for a reason of its own."""
    put(Path("d.jsonl"), GOOD * 30)
    assert main([*FLAGS, "--data", "d.jsonl", "--eval_fraction", "0", "--dry_run"]) == 0
    assert capsys.readouterr().err == ""


@pytest.fixture
def quick(empty_pictures):
    """Flags of a run that neither makes the corpus's held-out questions nor draws pictures: both outlast its steps."""
    put(Path("chat.jsonl"), chat(USER, ANSWER))
    return [*FLAGS, "--eval_data", "chat.jsonl"]


def test_a_schedule_that_asks_the_optimizer_for_its_rate_trains(quick):
    assert main([*quick, "--questions_per_skill", "0", "--lr_scheduler_type", "polynomial"]) == 0


def test_an_absurd_learning_rate_can_be_insisted_on(quick, capsys):
    argv = ["--learning_rate", "3", "--allow_any_learning_rate", "--dry_run", "--questions_per_skill", "0"]
    assert main([*quick, *argv]) == 0


def test_a_tokenizer_that_leaves_ids_out_gets_an_embedding_for_its_last_one(tmp_path, quick, capsys):
    byte_tokenizer().save_pretrained(tmp_path / "tok")
    saved = json.loads((tmp_path / "tok" / "tokenizer.json").read_text(encoding="utf-8"))
    saved["model"]["vocab"] = {word: 3 * index for word, index in saved["model"]["vocab"].items()}
    for token in saved["added_tokens"]:
        token["id"] *= 3
    put(tmp_path / "tok" / "tokenizer.json", json.dumps(saved))
    assert main([*quick, "--tokenizer", "tok", "--dry_run"]) == 0
    assert os.listdir(tmp_path / "tok")

"""A Trainer shares whole checkpoints and the model at the end; what fails on the Hub takes nothing from the run."""

import logging
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainingArguments

from moe_hf import CheckpointError, ConfigError
from moe_hf.models.cards.card import CARD_FILE, is_unedited, split_card
from moe_hf.text.tokenizers import byte_tokenizer
from moe_hf.training.checkpoint import checkpoint_problems
from moe_hf.training.trainer import MoETrainer
from moe_hf.training.training_arguments import MoETrainingArguments
from tests.training.tiny import rows, tiny_moe, tiny_olmoe

REPO = "me/run"


def trainer_of(tmp_path, kind=MoETrainingArguments, model=None, **options):
    options = {"max_steps": 2, "save_steps": 1, "use_cpu": True, "disable_tqdm": True, "report_to": "none"} | options
    options = {"push_to_hub": True, "logging_steps": 1, "save_strategy": "steps"} | options
    args = kind(str(tmp_path / "run"), **options)
    tokenizer = byte_tokenizer()
    model = tiny_moe() if model is None else model
    return MoETrainer(model=model, args=args, train_dataset=rows(8), processing_class=tokenizer)


def card(hub):
    return hub.content(REPO, CARD_FILE).decode()


def same(one, other):
    other = dict(other.named_parameters())
    return all(torch.equal(value, other[name]) for name, value in one.named_parameters())


def messages(hub):
    return [commit.message for commit in hub.repos[REPO].commits.values()][1:]


@pytest.mark.parametrize("kind", [MoETrainingArguments, TrainingArguments])
def test_checkpoints_go_up_whole_while_it_trains_and_no_pickle_with_them(hub, tmp_path, kind):
    # One checkpoint is kept: the one that is uploaded may be deleted meanwhile.
    options = {"hub_always_push": True, "save_total_limit": 1, "hub_private_repo": True, "max_steps": 3}
    trainer = trainer_of(tmp_path, kind, hub_token=hub.token, **options)
    trainer.train()
    assert messages(hub) == [f"Training in progress, step {step}" for step in (1, 2, 3)]
    assert hub.repos[REPO].private
    names = hub.names(REPO)
    assert {"config.json", "model.safetensors", "tokenizer.json", "metrics.jsonl", CARD_FILE} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth")) or "trainer_state" in name]
    assert same(AutoModelForCausalLM.from_pretrained(REPO), trainer.model)
    assert "| steps | 3 |" in card(hub)
    assert "training loss" in card(hub)
    assert is_unedited(card(hub))
    # A folder with a config.json would be taken for a finished run.
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"checkpoint-3", "metrics.jsonl"}
    assert not any(hub.token.encode() in content for content in hub.blobs.values())


@pytest.mark.parametrize(
    ("strategy", "folder"), [("checkpoint", "last-checkpoint"), ("all_checkpoints", "checkpoint-2")]
)
def test_a_checkpoint_that_was_pushed_to_go_on_elsewhere_is_complete(hub, tmp_path, strategy, folder):
    trainer_of(tmp_path, hub_strategy=strategy, hub_always_push=True, hub_token=hub.token).train()
    inside = {name.removeprefix(f"{folder}/") for name in hub.names(REPO) if name.startswith(f"{folder}/")}
    for name in inside:
        (tmp_path / "there" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "there" / name).write_bytes(hub.content(REPO, f"{folder}/{name}"))
    assert checkpoint_problems(str(tmp_path / "there")) == []
    assert not any(hub.token.encode() in content for content in hub.blobs.values())


def test_the_model_at_the_end_has_a_card_with_its_numbers(hub, tmp_path):
    trainer = trainer_of(tmp_path, hub_strategy="end", hub_revision="v2", hub_model_id="run")
    trainer.train()
    assert messages(hub) == []
    info = trainer.push_to_hub(tags="mine", license="mit", finetuned_from="openai-community/gpt2")
    assert (info.oid, info.commit_message) == (hub.repos[REPO].branches["v2"], "End of training")
    text = hub.content(REPO, CARD_FILE, "v2").decode()
    metadata = split_card(text).metadata
    assert (metadata["license"], metadata["base_model"]) == ("mit", "openai-community/gpt2")
    assert "mine" in metadata["tags"]
    assert f'from_pretrained("{REPO}")' in text
    assert "| steps | 2 |" in text
    assert "training_args.bin" not in hub.names(REPO, "v2")
    assert hub.names(REPO) == set()
    again = trainer.push_to_hub(blocking=False, commit_message="again").result(timeout=60)
    assert again.oid == hub.repos[REPO].branches["v2"]
    assert "license" not in split_card(hub.content(REPO, CARD_FILE, "v2").decode()).metadata


def test_saving_pushes_too_and_a_card_of_somebody_stays(hub, tmp_path):
    trainer = trainer_of(tmp_path, hub_strategy="end", model=tiny_olmoe())
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / CARD_FILE).write_text("---\nlicense: mit\n---\n# Mine\n")
    trainer.save_model()
    assert messages(hub) == ["Model save"]
    assert card(hub) == "---\nlicense: mit\n---\n# Mine\n"
    assert same(AutoModelForCausalLM.from_pretrained(REPO), trainer.model)


def test_an_upload_that_fails_is_told_and_stops_no_training(hub, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr("moe_hf.training.hub.logger", logging.getLogger("told"))
    hub.cut_upload_after = 10
    trainer = trainer_of(tmp_path)
    trainer.train()
    assert trainer.state.global_step == 2
    said = [record.message for record in caplog.records if record.name == "told"]
    assert said
    assert all(re.match("a checkpoint was not pushed to me/run: .*cannot be reached", text) for text in said)
    assert hub.names(REPO) == set()
    assert checkpoint_problems(str(tmp_path / "run" / "checkpoint-2")) == []
    hub.cut_upload_after = None
    trainer.push_to_hub()
    assert "model.safetensors" in hub.names(REPO)


@pytest.mark.parametrize(
    ("token", "name", "error", "text"),
    [
        ("hf_wrong", None, CheckpointError, "the Hub does not know"),
        (None, "others/run", CheckpointError, "it needs the role write"),
        ("", None, ConfigError, "log in with `hf auth login`"),
    ],
)
def test_what_the_hub_would_refuse_at_the_end_is_refused_before_training(
    hub, tmp_path, monkeypatch, token, name, error, text
):
    if token == "":
        monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(error, match=text):
        trainer_of(tmp_path, hub_token=token or None, hub_model_id=name)


def test_a_private_run_is_not_pushed_to_a_public_repository(hub, tmp_path):
    hub.add(REPO, {"a.txt": b""})
    with pytest.raises(CheckpointError, match="me/run is there already and public"):
        trainer_of(tmp_path, hub_private_repo=True)


def test_a_card_on_the_hub_that_somebody_changed_stays(hub, tmp_path):
    hub.add(REPO, {CARD_FILE: b"---\nlicense: mit\n---\n# Mine\n"})
    trainer = trainer_of(tmp_path)
    trainer.train()
    trainer.push_to_hub()
    assert card(hub) == "---\nlicense: mit\n---\n# Mine\n"
    assert "model.safetensors" in hub.names(REPO)


# peft asks by a name that transformers calls old.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_is_pushed_as_peft_saves_it(hub, tmp_path):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_moe(), peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    trainer = trainer_of(tmp_path, model=model, max_steps=1)
    trainer.train()
    assert {"adapter_config.json", "adapter_model.safetensors"} <= hub.names(REPO)
    trainer.push_to_hub()
    assert split_card(card(hub)).metadata["library_name"] == "peft"
    assert not [name for name in hub.names(REPO) if name.endswith(".bin")]


def test_a_disk_that_takes_no_copy_is_told_and_stops_no_training(hub, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("moe_hf.training.hub.logger", logging.getLogger("told"))

    def full(*args, **kwargs):
        raise OSError(28, "no space left")

    # Of every kind: a file system without links asks for copies.
    monkeypatch.setattr("moe_hf.training.hub.os.link", full)
    monkeypatch.setattr("moe_hf.training.hub.shutil.copyfile", full)
    trainer = trainer_of(tmp_path)
    trainer.train()
    assert trainer.state.global_step == 2
    said = [record.message for record in caplog.records if record.name == "told"]
    assert len(said) == 2
    assert "no space left" in said[0]
    assert hub.names(REPO) == set()


def test_a_disk_without_links_gets_copies(hub, tmp_path, monkeypatch):
    def no_links(*args, **kwargs):
        raise OSError(95, "not supported")

    monkeypatch.setattr("moe_hf.training.hub.os.link", no_links)
    trainer_of(tmp_path, max_steps=1).train()
    assert "model.safetensors" in hub.names(REPO)

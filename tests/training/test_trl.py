"""TRL's trainers run on Mixtures of Experts, ours and transformers' own, and on their dense twins."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from moe_hf.base.optional import is_available
from moe_hf.text.tokenizers import byte_tokenizer
from tests.models.native_moes import native_moe
from tests.training.tiny import tiny_moe

pytestmark = [
    pytest.mark.skipif(not is_available("trl"), reason="trl is not installed"),
    # Of a library in motion: what it and its parts call outdated is no concern of ours.
    pytest.mark.filterwarnings("ignore"),
]
SHAPE: dict[str, Any] = {"vocab_size": 264, "max_position_embeddings": 128}


def twin() -> PreTrainedModel:
    config = tiny_moe(**SHAPE).config
    config.make_dense()
    torch.manual_seed(0)
    return type(tiny_moe())(config)


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "ours": lambda: tiny_moe(**SHAPE),
    "dense twin": twin,
    "mixtral": lambda: native_moe("mixtral", **SHAPE),
}


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    return {
        "output_dir": str(tmp_path),
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
    }


def make(kind: str) -> PreTrainedModel:
    model = MODELS[kind]()
    # TRL names the folder of its card by it.
    model.config._name_or_path = "tiny"
    return model


def check(trainer: Any, kind: str) -> None:
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == 2
    assert all(torch.isfinite(torch.tensor(line["loss"])) for line in lines)
    assert all(("aux_loss" in line) == (kind != "dense twin") for line in lines)
    assert any(not value.equal(before[name]) for name, value in trainer.model.named_parameters())


@pytest.mark.parametrize("kind", list(MODELS))
def test_supervised_fine_tuning(options: dict[str, Any], kind: str) -> None:
    import trl

    data = Dataset.from_list([{"text": "hello world, this is a text"}] * 8)
    trainer = trl.SFTTrainer(
        make(kind), trl.SFTConfig(**options), train_dataset=data, processing_class=byte_tokenizer()
    )
    check(trainer, kind)


@pytest.mark.parametrize("kind", list(MODELS))
def test_preferences(options: dict[str, Any], kind: str) -> None:
    import trl

    data = Dataset.from_list([{"prompt": "hi", "chosen": " hello", "rejected": " no"}] * 8)
    trainer = trl.DPOTrainer(
        make(kind), make(kind), trl.DPOConfig(**options), train_dataset=data, processing_class=byte_tokenizer()
    )
    check(trainer, kind)


@pytest.mark.parametrize("kind", list(MODELS))
def test_rewards(options: dict[str, Any], kind: str) -> None:
    import trl

    def letters(completions: list[str], **_: Any) -> list[float]:
        return [float(sum(map(str.isalpha, text))) for text in completions]

    data = Dataset.from_list([{"prompt": "hi there"}] * 8)
    arguments = trl.GRPOConfig(num_generations=2, max_completion_length=8, **options)
    trainer = trl.GRPOTrainer(make(kind), letters, arguments, train_dataset=data, processing_class=byte_tokenizer())
    check(trainer, kind)

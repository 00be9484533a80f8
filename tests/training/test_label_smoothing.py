"""Label smoothing: equal to torch's own, beside the router losses, whatever the accumulation steps."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments

from moe_hf import GPT2WithMoE, GPT2WithMoEConfig
from moe_hf.training.label_smoothing import label_smoothing_term
from moe_hf.training.trainer import MoETrainer
from moe_hf.training.training_arguments import MoETrainingArguments

FACTOR, ROWS, LENGTH, WORDS = 0.3, 4, 6, 23


@pytest.fixture
def labels() -> torch.Tensor:
    labels = torch.randint(0, WORDS, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    labels[1, :4] = -100
    return labels


def smoothed(logits: torch.Tensor, labels: torch.Tensor, factor: float, reduction: str = "mean") -> torch.Tensor:
    target = labels[:, 1:].flatten()
    return cross_entropy(logits[:, :-1].flatten(0, 1), target, label_smoothing=factor, reduction=reduction)


def test_the_term_is_what_torch_s_smoothing_adds(labels: torch.Tensor) -> None:
    logits = torch.randn(ROWS, LENGTH, WORDS, generator=torch.Generator().manual_seed(1))
    added = smoothed(logits, labels, FACTOR) - smoothed(logits, labels, 0.0)
    torch.testing.assert_close(FACTOR * label_smoothing_term(logits, labels), added)
    summed = smoothed(logits, labels, FACTOR, "sum") - smoothed(logits, labels, 0.0, "sum")
    torch.testing.assert_close(FACTOR * label_smoothing_term(logits, labels, 7), summed / 7)


@pytest.mark.parametrize("num_items", [None, 0, torch.tensor(0)])
def test_without_targets_the_term_and_its_gradient_are_zero(num_items) -> None:
    logits = torch.randn(ROWS, LENGTH, WORDS, requires_grad=True)
    term = label_smoothing_term(logits, torch.full((ROWS, LENGTH), -100), num_items)
    term.backward()
    assert term.item() == 0.0
    assert not logits.grad.any()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_trainer_smooths_next_tokens_and_keeps_the_router_losses(tmp_path, labels, accumulation: int) -> None:
    config = GPT2WithMoEConfig(
        vocab_size=WORDS, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=LENGTH,
        num_experts=4, router_aux_loss_coef=0.0, router_z_loss_coef=0.5, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = GPT2WithMoE(config)
    data = [{"input_ids": row.clamp(min=0), "labels": row} for row in labels]
    arguments = MoETrainingArguments(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=ROWS // accumulation, logging_steps=1,
        gradient_accumulation_steps=accumulation, label_smoothing_factor=FACTOR, save_strategy="no", use_cpu=True,
        disable_tqdm=True,
    )  # fmt: skip
    with torch.no_grad():
        out = model.train()(labels.clamp(min=0), labels=labels)
    expected = smoothed(out.logits, labels, FACTOR) + out.loss - smoothed(out.logits, labels, 0.0)
    trainer = MoETrainer(model=model, args=arguments, train_dataset=data, eval_dataset=data)
    with torch.no_grad():
        plain = smoothed(model.eval()(labels.clamp(min=0)).logits, labels, 0.0)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain.item(), rel=1e-5)
    trainer.train()
    logged = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    # The z-loss of two halves is weighted by their tokens, which is the mean over all only for equal halves.
    assert logged == pytest.approx(expected.item(), rel=1e-5 if accumulation == 1 else 5e-3)


def test_a_plain_trainer_smooths_next_tokens_too(tmp_path, labels) -> None:
    config = GPT2WithMoEConfig(
        vocab_size=WORDS, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=LENGTH,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = GPT2WithMoE(config).eval()
    arguments = TrainingArguments(str(tmp_path), label_smoothing_factor=FACTOR, use_cpu=True, disable_tqdm=True)
    ids = labels.clamp(min=0)
    with torch.no_grad():
        expected = smoothed(model(ids).logits, labels, FACTOR)
        loss = Trainer(model, arguments).compute_loss(model, {"input_ids": ids, "labels": labels})
    torch.testing.assert_close(loss, expected)

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from moe_hf.bench.studies.language_data import IGNORED, HeldOut
from moe_hf.bench.studies.timed_training import Recipe, heldout_losses, side_by_side, train
from moe_hf.models.gpt2_moe import GPT2WithMoE


def tiny_dense():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=320, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"
    return model


def test_heldout_loss_is_the_plain_cross_entropy_without_router_losses(tmp_path):
    tiny_dense().save_pretrained(tmp_path)
    moe = GPT2WithMoE.from_pretrained(tmp_path, num_experts=4, router_aux_loss_coef=100.0)
    ids = torch.randint(320, (5, 12), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[1:3, 4:] = IGNORED
    loss = heldout_losses(moe, {"all": HeldOut(ids, labels)}, batch_size=2)["all"]
    moe.eval()
    expected = torch.nn.functional.cross_entropy(moe(ids).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert loss == pytest.approx(expected.item(), rel=1e-5)


def test_runs_advance_in_turns_and_scoring_is_not_on_the_clock(monkeypatch):
    clock = {"now": 0.0}
    monkeypatch.setattr("time.process_time", lambda: clock["now"])
    order = []

    def score(model, heldout):
        clock["now"] += 1000.0
        order.append(model)
        return {}

    def step(model, optimizer, batch):
        clock["now"] += 1.0

    monkeypatch.setattr("moe_hf.bench.studies.timed_training.heldout_losses", score)
    monkeypatch.setattr("moe_hf.bench.studies.timed_training.train_step", step)
    a, b = tiny_dense(), tiny_dense()
    blocks = torch.zeros(8, 4, dtype=torch.long)
    recipe = Recipe(learning_rate=1e-3, batch_size=2, warmup_steps=1, eval_every=2)
    points = side_by_side({"a": train(a, blocks, recipe, {}), "b": train(b, blocks[:4], recipe, {})})
    assert [(point.step, point.cpu_seconds) for point in points["a"]] == [(0, 0), (2, 2), (4, 4)]
    assert [point.step for point in points["b"]] == [0, 2]
    assert order == [a, b, a, b, a]

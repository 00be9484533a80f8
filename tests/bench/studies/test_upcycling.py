import json

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from moe_hf.base.errors import CheckpointError
from moe_hf.bench.studies import upcycling
from moe_hf.models.gpt2_moe import GPT2WithMoE

MINIATURE = (
    "--seeds 2 --vocab_size 320 --context_length 32 --hidden_size 16 --num_hidden_layers 2 --num_attention_heads 2 "
    "--batch_size 4 --pretrain_steps 30 --steps 10 --warmup_steps 2 --points 5 --learning_rates 0.0005 0.003 "
    "--num_experts 4 --questions_per_skill 1 --fresh_blocks 4"
).split()


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("upcycling")
    upcycling.main(["--output_dir", str(directory), *MINIATURE])
    return directory


@pytest.fixture(scope="module")
def result(output_dir):
    return json.loads((output_dir / "data" / "upcycling.json").read_text())


def tiny_dense():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=320, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"
    return model


def test_every_arm_has_one_curve_per_seed_and_ends_at_its_last_step(result):
    assert set(result["curves"]) == {upcycling.DENSE, upcycling.DENSE_LONGER, upcycling.MOE}
    for arm, of_seed in result["curves"].items():
        assert len(of_seed) == 2
        for points in of_seed:
            assert points[0]["step"] == 0
            assert points[0]["cpu_seconds"] == 0
            if arm != upcycling.DENSE_LONGER:
                assert [point["step"] for point in points] == [0, 2, 4, 6, 8, 10]
            seconds = [point["cpu_seconds"] for point in points]
            assert seconds == sorted(seconds)
            assert seconds[-1] > 0


def test_all_arms_begin_with_the_loss_that_dense_pretraining_ended_with(result):
    for seed, pretraining in enumerate(result["pretraining"]):
        for arm in result["curves"].values():
            assert arm[seed][0]["losses"] == pytest.approx(pretraining[-1]["losses"], abs=1e-5)


def test_copied_experts_give_the_dense_logits_and_dropped_ones_do_not(result):
    assert len(result["step_0"]) == 2
    assert all(0 <= seed["largest_difference"] < 1e-5 for seed in result["step_0"])
    extra = result["extra_arms"]
    assert extra["MoE, top-1"]["step_0"]["largest_difference"] < 1e-5
    assert extra["MoE, expert_init=drop"]["step_0"]["largest_difference"] > 1e-3
    assert extra["MoE, top-1, norm_topk_prob=False"]["step_0"]["largest_difference"] > 1e-3


def test_training_lowers_the_heldout_loss(result):
    for points in result["pretraining"]:
        assert points[-1]["losses"][upcycling.RESULT_SET] < points[0]["losses"][upcycling.RESULT_SET] - 0.3


def test_each_arm_keeps_the_learning_rate_that_was_best_on_the_tuning_set(result):
    for arm, of_rate in result["tuning"].items():
        best = min(of_rate, key=lambda rate: of_rate[rate]["losses"][upcycling.TUNING_SET])
        assert result["learning_rates"][arm] == float(best)
        assert result["curves"][arm][0][-1]["losses"] == pytest.approx(of_rate[best]["losses"], abs=1e-5)


def test_longer_dense_arm_has_as_many_steps_as_the_moe_has_time_for(result):
    cost = result["cpu_seconds_per_step"]
    expected = max(10, min(30, round(10 * cost[upcycling.MOE] / cost[upcycling.DENSE])))
    assert [points[-1]["step"] for points in result["curves"][upcycling.DENSE_LONGER]] == [expected] * 2


def test_picture_is_written_and_can_be_drawn_again_from_the_data(output_dir):
    image = output_dir / "images" / "upcycling.png"
    assert image.read_bytes().startswith(b"\x89PNG")
    image.unlink()
    upcycling.main(["--output_dir", str(output_dir), "--report_only"])
    assert image.stat().st_size > 10_000


def test_summary_compares_the_arms_seed_by_seed(result):
    final = {
        arm: [points[-1]["losses"][upcycling.RESULT_SET] for points in of_seed]
        for arm, of_seed in result["curves"].items()
    }
    by_seed = [moe - dense for moe, dense in zip(final[upcycling.MOE], final[upcycling.DENSE], strict=True)]
    summary = result["summary"]
    assert summary["moe_minus"][upcycling.DENSE][upcycling.RESULT_SET] == pytest.approx(
        {"mean": sum(by_seed) / 2, "lowest": min(by_seed), "highest": max(by_seed)}
    )
    assert summary["arms"][upcycling.DENSE]["tokens"] == 10 * 4 * 32
    cost = result["cpu_seconds_per_step"]
    assert summary["tokens_per_cpu_second_moe_over_dense"] == cost[upcycling.DENSE] / cost[upcycling.MOE]


def test_broken_upcycling_stops_the_experiment(tmp_path):
    tiny_dense().save_pretrained(tmp_path / "dense")
    moe = GPT2WithMoE.from_pretrained(tmp_path / "dense", num_experts=4)
    with torch.no_grad():
        moe.model.layers[0].mlp.experts.up_proj_bias[1] += 0.1
    with pytest.raises(CheckpointError, match="upcycling is broken"):
        upcycling.require_same_logits([upcycling.step0_difference(tmp_path / "dense", moe)])

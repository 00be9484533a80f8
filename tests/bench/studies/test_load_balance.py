"""The load-balance measurement: counts by hand, domains that add up, tables, pictures, and the page's marks."""

import json
import math
from pathlib import Path

import pytest
import torch

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.bench.studies import load_balance
from moe_hf.bench.studies.language_data import corpus_tokenizer
from moe_hf.bench.studies.load_balance import HeldOutConversation, check_floor, count_slots, heldout_conversations
from moe_hf.text.skills import SKILLS

PER_SKILL, VOCABULARY, CONTEXT = 2, 320, 160

RUN = {
    "README.md": "| held-out questions | 87.5% exact match, mean over skills |",
    "config.json": json.dumps(
        {
            "model_type": "gpt2_moe",
            "router_type": "switch",
            "router_balance_loss": "batch",
            "router_aux_loss_coef": 0.01,
            "router_capacity_factor": 1.25,
            "num_experts": 4,
            "num_experts_per_tok": 1,
        }
    ),
    "metrics.jsonl": "\n".join(
        json.dumps(record)
        for record in (
            {"step": 25, "layers": {"load_max": [3.0, 4.0], "dead_experts": [2, 3], "entropy": [0.1, 0.1]}},
            {
                "step": 50,
                "tokens_per_second": 900.0,
                "layers": {
                    "load_max": [1.25, 1.5],
                    "dead_experts": [0, 1],
                    "entropy": [0.5, 0.75],
                    "dropped": [0.0, 0.031],
                },
            },
            {"step": 55, "train_runtime": 90.0},
            {"step": 55, "eval_loss": 0.5},
        )
    ),
}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tiny_model) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = corpus_tokenizer(VOCABULARY)
    model = tiny_model(
        vocab_size=len(tokenizer),
        max_position_embeddings=CONTEXT,
        num_hidden_layers=3,
        mlp_layer_types=["sparse", "dense", "sparse"],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "switch-run"
    folder.mkdir()
    for name, text in RUN.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, run_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    page = "".join(
        f"Before {name}.\n<!-- measured: {name} -->\nold\n<!-- end of {name} -->\n"
        for name in ("floor", "layers", "domains", "runs")
    )
    (folder / load_balance.PAGE).write_text(page + "The end.\n")
    sizes = f"--questions_per_skill {PER_SKILL} --batch_size 7".split()
    folders = ["--model", str(model_folder), "--runs", str(run_folder), "--output_dir", str(folder)]
    load_balance.main([*folders, *sizes])
    return folder


@pytest.fixture(scope="module")
def result(output_dir: Path) -> dict:
    return json.loads((output_dir / "data" / "load_balance.json").read_text())


def conversations_of(lengths: list[int], vocabulary: int = 61) -> list[HeldOutConversation]:
    generator = torch.Generator().manual_seed(0)
    return [
        HeldOutConversation("story", "talk", torch.randint(3, vocabulary, (length,), generator=generator).tolist())
        for length in lengths
    ]


@pytest.mark.parametrize("overrides", [{}, {"router_type": "hash"}, {"router_type": "expert_threshold"}])
def test_padding_and_batches_change_no_count(tiny_model, overrides: dict) -> None:
    model = tiny_model(**overrides)
    conversations = conversations_of([3, 11, 6, 9, 1])
    alone = torch.cat([count_slots(model, [conversation], 1).count_CLE for conversation in conversations])
    together = count_slots(model, conversations, 4)
    assert torch.equal(together.count_CLE, alone)
    assert together.dropped == [None, None]
    if overrides.get("router_type") != "expert_threshold":
        assert together.count_CLE.sum(dim=-1).tolist() == [[2 * n, 2 * n] for n in (3, 11, 6, 9, 1)]


def test_counts_are_those_of_the_router(tiny_model) -> None:
    model = tiny_model()
    (conversation,) = conversations_of([9])
    outputs = model(input_ids=torch.tensor([conversation.ids]), output_router_logits=True)
    for layer, logits_TE in enumerate(outputs.router_logits):
        expected = torch.bincount(logits_TE.topk(2, dim=-1).indices.flatten(), minlength=4)
        assert torch.equal(count_slots(model, [conversation], 1).count_CLE[0, layer], expected)


def test_what_a_capacity_drops_is_reported(tiny_model) -> None:
    model = tiny_model(router_eval_capacity_factor=0.1)
    # An expert takes ceil(0.1 * 40 * 2 / 4) = 2 slots of a sequence.
    slots = count_slots(model, conversations_of([20, 20]), 2)
    kept_L = slots.count_CLE.clamp(max=2).sum(dim=(0, 2))
    expected = (1 - kept_L / slots.count_CLE.sum(dim=(0, 2))).tolist()
    assert slots.dropped == pytest.approx(expected)
    assert min(slots.dropped) > 0.5


def test_held_out_conversations_fit_and_cover_all_skills() -> None:
    tokenizer = corpus_tokenizer(VOCABULARY)
    everything = heldout_conversations(tokenizer, 1, 10_000)
    assert {conversation.skill for conversation in everything} == {skill.name for skill in SKILLS}
    short = heldout_conversations(tokenizer, 1, 40)
    assert 0 < len(short) < len(everything)
    assert max(len(conversation.ids) for conversation in short) <= 40


def test_a_tokenizer_without_a_template_is_refused() -> None:
    tokenizer = corpus_tokenizer(VOCABULARY)
    tokenizer.chat_template = None
    with pytest.raises(CheckpointError, match="no chat template"):
        heldout_conversations(tokenizer, 1, CONTEXT)


def test_domains_add_up_to_the_whole(result: dict) -> None:
    sorts = [domain for domain in result["domains"] if domain["kind"] == "sort"]
    skills = [domain for domain in result["domains"] if domain["kind"] == "skill"]
    assert [sort["name"] for sort in sorts] == ["generalise", "facts", "talk"]
    for parts in (sorts, skills):
        assert sum(part["tokens"] for part in parts) == result["tokens"]
        for index, layer in enumerate(result["layers"]):
            slots = torch.tensor([part["layers"][index]["num_slots"] for part in parts])
            load = torch.tensor([part["layers"][index]["load"] for part in parts])
            assert slots.sum() == layer["num_slots"] == 2 * result["tokens"]
            torch.testing.assert_close((load * slots[:, None]).sum(dim=0) / slots.sum(), torch.tensor(layer["load"]))


def test_distance_is_half_the_sum_of_differences(result: dict) -> None:
    for domain in result["domains"]:
        for layer, whole in zip(domain["layers"], result["layers"], strict=True):
            gaps = [abs(a - b) for a, b in zip(layer["load"], whole["load"], strict=True)]
            assert layer["distance"] == pytest.approx(sum(gaps) / 2, abs=1e-6)
            assert 0 < layer["chance_distance"] < 0.5


def test_growth_ends_with_all_text(result: dict) -> None:
    growth = result["growth"]
    assert growth["tokens"] == sorted(set(growth["tokens"]))
    assert growth["tokens"][-1] == result["tokens"]
    assert growth["relative_std"][-1] == pytest.approx([layer["relative_std"] for layer in result["layers"]])
    floor = [math.sqrt((4 - 2) / (2 * tokens)) for tokens in growth["tokens"]]
    assert [row[0] for row in growth["sampling_floor"]] == pytest.approx(floor)


def test_layers_are_numbered_among_all_layers(result: dict) -> None:
    assert [layer["layer"] for layer in result["layers"]] == [0, 2]
    assert [layer["router"] for layer in result["layers"]] == ["top_k", "top_k"]


def test_the_floor_s_formula_meets_its_simulation() -> None:
    check = check_floor(300, 3, 6, repeats=150)
    assert check["independent"]["formula"] == pytest.approx(math.sqrt(5 / 900))
    assert check["different"]["formula"] == pytest.approx(math.sqrt(3 / 900))
    for draw in ("independent", "different"):
        assert check[draw]["simulated"] == pytest.approx(check[draw]["formula"], rel=0.08)
        assert check[draw]["simulated_mean"] < check[draw]["simulated"]


def test_pictures_are_written(output_dir: Path) -> None:
    for name in ("layers", "domains", "std"):
        image = output_dir / "images" / f"load_balance_{name}.png"
        assert image.read_bytes().startswith(b"\x89PNG")
        assert image.stat().st_size > 5_000


def test_the_page_s_tables_are_filled_and_the_rest_is_kept(output_dir: Path, result: dict) -> None:
    page = (output_dir / load_balance.PAGE).read_text()
    assert "old" not in page
    assert page.endswith("<!-- end of runs -->\nThe end.\n")
    assert f"| 2 | top_k | {result['layers'][1]['relative_std']:.3f} |" in page
    assert "| 2,048 | 2 | 16 | 0.0605 |" in page
    assert "| **facts** |" in page
    cells = [
        "switch-run (50 steps)",
        "switch, capacity 1.25, 1 of 4",
        "batch",
        "1.25, 1.50",
        "1",
        "0.0%, 3.1%",
        "0.50, 0.75",
    ]
    assert "| " + " | ".join([*cells, "87.5%", "0.500"]) + " |" in page


def test_a_run_without_balance_loss_or_score_leaves_its_cells_empty(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(RUN["config.json"].replace("0.01", "0.0"))
    (tmp_path / "metrics.jsonl").write_text(RUN["metrics.jsonl"].splitlines()[0])
    (row,) = load_balance.compare_runs([tmp_path])
    assert row["balance_loss"] is None
    assert (row["heldout_score"], row["heldout_loss"], row["dropped"]) == (None, None, None)
    assert "| none | 3.00, 4.00 | 5 |" in load_balance.runs_table([row])


def test_a_router_that_no_loss_balances_is_not_said_to_have_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(RUN["config.json"].replace("switch", "hash"))
    (tmp_path / "metrics.jsonl").write_text(RUN["metrics.jsonl"])
    (row,) = load_balance.compare_runs([tmp_path])
    assert (row["router"], row["balance_loss"]) == ("hash", None)


def test_what_cannot_be_measured_is_refused(tmp_path: Path, dense_folder: Path) -> None:
    with pytest.raises(ConfigError, match="give --model FOLDER, --runs FOLDER"):
        load_balance.main(["--output_dir", str(tmp_path)])
    with pytest.raises(CheckpointError, match=r"holds GPT2LMHeadModel without experts"):
        load_balance.measure_model(dense_folder, 1, 2)
    with pytest.raises(CheckpointError, match=r"no config.json or no metrics.jsonl"):
        load_balance.compare_runs([tmp_path])
    (tmp_path / "config.json").write_text(RUN["config.json"])
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    with pytest.raises(CheckpointError, match="says nothing about routers"):
        load_balance.compare_runs([tmp_path])

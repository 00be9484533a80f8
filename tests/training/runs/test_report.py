from pathlib import Path

import yaml

from moe_hf.config.presets import create_moe_config
from moe_hf.models.info import get_moe_model_info
from moe_hf.text.scoreboard import Scoreboard, SkillScore
from moe_hf.training.runs.listeners import RunPlan, TrainingReport
from moe_hf.training.runs.report import model_card
from moe_hf.training.runs.settings import resolve_settings


def report_of(**values):
    plan = RunPlan(
        title="Mixture of Experts, tiny, fresh weights",
        info=get_moe_model_info(create_moe_config("tiny")),
        sparse_layers=(0, 2),
        data="the embedded corpus",
        device="cpu",
        output_dir=Path("runs/tiny-moe"),
        checkpoint=None,
        num_steps=10,
        tokens_per_step=64,
        num_documents=5,
        tokens_per_pass=640,
        train_state_bytes=1,
        activation_bytes=1,
        memory_bytes=10,
    )
    values = {"steps": 10, "timed_steps": 10, "seconds": 60.0} | values
    return TrainingReport(plan=plan, finished=True, model_dir=plan.output_dir, **values)


def test_the_card_says_which_steps_the_time_is_of():
    assert "| trained in | 1.0 minutes on cpu |" in model_card(report_of(), resolve_settings({}), [])
    later = model_card(report_of(timed_steps=4), resolve_settings({}), [])
    assert "| trained in | the last 4 steps in 1.0 minutes on cpu |" in later


def front_matter(card):
    return yaml.safe_load(card.split("---")[1])


def test_the_card_tells_the_hub_how_to_load_it_and_names_a_license_only_if_told():
    card = model_card(report_of(), resolve_settings({}), [])
    assert front_matter(card)["library_name"] == "transformers"
    assert "moe_hf" in front_matter(card)["tags"]
    assert "license" not in front_matter(card)
    assert "import moe_hf" in card
    assert front_matter(model_card(report_of(), resolve_settings({"license": "mit"}), []))["license"] == "mit"


def test_the_card_has_the_numbers_of_the_run():
    board = Scoreboard((SkillScore("addition", "generalise", 3, 4, None),))
    report = report_of(train_loss=1.25, eval_loss=1.125, scoreboard=board, notices=("3 were cut",))
    card = model_card(report, resolve_settings({}), ["loss.png"])
    for words in ("1.1250", "75.0%", "3 were cut", "![loss](loss.png)", f"{report.plan.info['active_params']:,}"):
        assert words in card


def test_the_card_names_the_hubs_data_and_model_but_no_local_paths(tmp_path):
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")
    settings = resolve_settings({"data": ["someone/books", str(tmp_path / "a.txt")], "upcycle": "openai/gpt2"})
    metadata = front_matter(model_card(report_of(), settings, []))
    assert metadata["datasets"] == ["someone/books"]
    assert metadata["base_model"] == "openai/gpt2"

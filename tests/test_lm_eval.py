"""The language model evaluation harness (lm_eval) scores models of this package as their logits do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from moe_hf import create_moe_config
from moe_hf.inference.scoring import score_document
from moe_hf.inference.text_model import CausalTextModel
from moe_hf.text.tokenizers import byte_tokenizer

pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")

TEXTS = ["a text of some words", "another, which is longer than the first one"]
CHOICES = [" 4", " four and more"]

# The line that docs/training.md gives, with the words behind it as they come.
COMMAND = "import moe_hf; from lm_eval.__main__ import cli_evaluate; cli_evaluate()"

TASKS = {
    "rolling": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
    "metric_list: [{metric: bits_per_byte}]\n",
    "choice": "output_type: multiple_choice\ndoc_to_text: '{{text}}'\ntarget_delimiter: ''\n"
    f"doc_to_choice: {json.dumps(CHOICES)}\ndoc_to_target: 0\nmetric_list: [{{metric: acc}}]\n",
    "answer": "output_type: generate_until\ndoc_to_text: '{{text}}'\ndoc_to_target: 'x'\n"
    "generation_kwargs: {until: ['\\n'], max_gen_toks: 6, do_sample: false}\n"
    "metric_list: [{metric: exact_match}]\n",
}


def folder_of(architecture: str, folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 128}
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = create_moe_config("tiny", architecture=architecture, vocab_size=len(tokenizer), **sizes, **ids)
    model = AutoModelForCausalLM.from_config(config)
    # Decisive weights: a new model's answers lie too close together to compare.
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run_tasks(model: Path, folder: Path) -> dict[str, list[dict]]:
    """What the harness writes down of each task's documents."""
    data = folder / "data.jsonl"
    data.write_text("".join(f"{json.dumps({'text': text})}\n" for text in TEXTS))
    for name, lines in TASKS.items():
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        (folder / f"{name}.yaml").write_text(head + lines)
    words = ["run", "--model", "hf", "--model_args", f"pretrained={model},dtype=float32", "--device", "cpu"]
    words += ["--tasks", ",".join(TASKS), "--include_path", str(folder), "--batch_size", "2"]
    words += ["--log_samples", "--output_path", str(folder / "out")]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([sys.executable, "-c", COMMAND, *words], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    return {
        name: [json.loads(line) for line in next((folder / "out").rglob(f"samples_{name}_*")).read_text().splitlines()]
        for name in TASKS
    }


def nats(talker: CausalTextModel, context: list[int], target: list[int]) -> float:
    """What the target costs behind the context, from one pass over both."""
    ids = context + target
    return score_document(talker, ids, [-100] * len(context) + target, num_bytes=1).nats


@pytest.mark.parametrize("architecture", ["gpt2", "retnet", "megabyte"])
def test_scores_choices_and_answers_equal_the_models_own(architecture: str, tmp_path: Path) -> None:
    folder = folder_of(architecture, tmp_path / "model")
    samples = run_tasks(folder, tmp_path)
    talker = CausalTextModel.load(str(folder), device="cpu")
    encode = talker.tokenizer.encode
    for sample, text in zip(samples["rolling"], TEXTS, strict=True):
        expected = nats(talker, [talker.tokenizer.eos_token_id], encode(text))
        assert float(sample["filtered_resps"][0]) == pytest.approx(-expected, rel=1e-5)
        assert sample["bits_per_byte"][1] == len(text.encode())
    for sample, text in zip(samples["choice"], TEXTS, strict=True):
        expected = [-nats(talker, encode(text), encode(text + choice)[len(encode(text)) :]) for choice in CHOICES]
        assert [float(response[0]) for response in sample["filtered_resps"]] == pytest.approx(expected, rel=1e-5)
    for sample, text in zip(samples["answer"], TEXTS, strict=True):
        ids = torch.tensor([encode(text)])
        made = talker.model.generate(ids, max_new_tokens=6, do_sample=False, attention_mask=torch.ones_like(ids))
        answer = talker.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
        assert sample["resps"][0][0] == answer.split("\n")[0]

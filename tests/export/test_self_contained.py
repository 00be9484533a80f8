"""A model exported with its code does without the package what it does with it."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from moe_hf.base.errors import CheckpointError
from moe_hf.export.self_contained import SelfContainedReport, auto_map_of, code_of, export_self_contained
from moe_hf.models.auto import FAMILIES
from moe_hf.models.cards.card import is_unedited
from moe_hf.models.cards.described import card_of_folder
from moe_hf.models.info import get_moe_model_info
from moe_hf.text.tokenizers import byte_tokenizer
from tests.models.families import KINDS, tiny_family
from tests.models.native_moes import native_moe

REPOSITORY = Path(__file__).parents[2]
# Every family, each version of a mixer, and a hybrid; with a plus sign those that are also saved again.
FAMILY_KINDS = "gpt2 llama retnet+ mamba1 mamba-attention hyena rwkv7 rwkv4 megabyte+".split()


def export_tiny(kind: str, folder: Path, **fields: Any) -> tuple[PreTrainedModel, SelfContainedReport]:
    """A small model in `<kind>-source`, its export in `<kind>`, and what it computes in `<kind>.expected`."""
    model = tiny_family(kind, **fields)
    model.save_pretrained(folder / f"{kind}-source")
    report = export_self_contained(str(folder / f"{kind}-source"), folder / kind)
    ids = torch.randint(3, 61, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(ids).logits
    generated = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
    save_file({"ids": ids, "logits": logits, "generated": generated}, folder / f"{kind}.expected")
    return model, report


def run_without_the_package(folder: Path, kinds: list[str]) -> str:
    """What `without_the_package.py` says of the exports in a folder."""
    script = [sys.executable, "-I", str(Path(__file__).with_name("without_the_package.py")), str(REPOSITORY)]
    # Its own cache of code: an export of an earlier run must not stand in for this one.
    environment = {**os.environ, "HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([*script, str(folder), *kinds], capture_output=True, text=True, env=environment, timeout=600)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_every_family_works_where_the_package_cannot_be_imported(tmp_path: Path) -> None:
    for kind in FAMILY_KINDS:
        router = "sigmoid_bias" if kind == "gpt2" else "top_k"
        export_tiny(kind.removesuffix("+"), tmp_path, router_type=router)
    assert {KINDS[kind.removesuffix("+")][0] for kind in FAMILY_KINDS} == {*FAMILIES}
    assert "all passed" in run_without_the_package(tmp_path, FAMILY_KINDS)


@pytest.mark.slow
def test_every_kind_of_mixer_does_all_of_it(tmp_path: Path) -> None:
    for kind in KINDS:
        export_tiny(kind, tmp_path)
    assert "all passed" in run_without_the_package(tmp_path, [f"{kind}+" for kind in KINDS])


@pytest.mark.slow
@pytest.mark.parametrize("router", ["sigmoid_bias", "expert_threshold", "hash"])
def test_routers_with_a_state_are_trained_as_the_notice_says(router: str, tmp_path: Path) -> None:
    fields = {"router_type": router, "router_capacity_factor": None if router == "expert_threshold" else 1.5}
    _, report = export_tiny("gpt2", tmp_path, **fields)
    assert any(router in notice for notice in report.notices) == (router != "hash")
    assert "all passed" in run_without_the_package(tmp_path, ["gpt2"])


@pytest.mark.parametrize("kind", ["mamba-attention", "megabyte"])
def test_code_stands_on_itself_transformers_and_torch(kind: str) -> None:
    model_type, _ = KINDS[kind]
    code = code_of(tiny_family(kind).config, FAMILIES[model_type])
    defined = {name.removesuffix(".py"): _top_level(text) for name, text in code.items()}
    for name, text in code.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1, name
                assert {alias.name for alias in node.names} <= defined[str(node.module)], f"{name}: {node.module}"
                continue
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            # What a file imports transformers demands of whoever loads the model.
            packages = {module.partition(".")[0] for module in found} - {*sys.stdlib_module_names}
            assert packages <= {"torch", "transformers", "safetensors", "huggingface_hub", "yaml"}, (
                f"{name}: {packages}"
            )


def _top_level(text: str) -> set[str]:
    names: set[str] = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def test_only_the_mixers_of_the_model_are_in_its_code() -> None:
    def mixers(kind: str) -> set[str]:
        names = code_of(tiny_family(kind).config, FAMILIES[KINDS[kind][0]])
        return {name for name in names if name.startswith("layers_mixers_")} - {"layers_mixers_base.py"}

    assert mixers("gpt2") == {"layers_mixers_attention.py"}
    assert mixers("retnet") == {"layers_mixers_recurrent.py", "layers_mixers_retention.py"}
    assert mixers("retnet-attention") == mixers("gpt2") | mixers("retnet")


def test_folder_holds_the_weights_the_tokenizer_and_a_card(tmp_path: Path) -> None:
    model = tiny_family("llama", vocab_size=300)
    source = tmp_path / "source"
    model.save_pretrained(source, max_shard_size="40KB")
    byte_tokenizer().save_pretrained(source)
    (source / "README.md").write_text("---\nlicense: mit\n---\n\n# Mine\n", encoding="utf-8")
    steps: list[tuple[int, int]] = []
    report = export_self_contained(str(source), tmp_path / "out", on_progress=lambda *step: steps.append(step))
    shards = sorted(path.name for path in source.glob("*.safetensors*"))
    assert len(shards) > 2
    assert sorted(path.name for path in (tmp_path / "out").glob("*.safetensors*")) == shards
    assert steps[-1] == (len(shards), len(shards))
    assert report.weight_bytes == sum((source / name).stat().st_size for name in shards)
    assert "tokenizer.json" in report.carried
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("a b").input_ids == byte_tokenizer()("a b").input_ids
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: mit\n---\n\n# Mine\n\n## Without moe_hf\n")
    described = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert described["auto_map"] == auto_map_of(FAMILIES["llama_moe"])
    assert report.code_files[0] == "modeling_llama_moe.py"
    assert {path.name for path in (tmp_path / "out").glob("*.py")} == {*report.code_files}


@pytest.mark.parametrize("has_card", [False, True])
def test_card_that_nobody_wrote_says_how_to_load_the_folder(tmp_path: Path, has_card: bool) -> None:
    source = tmp_path / "source"
    tiny_family("llama").save_pretrained(source)
    if has_card:
        card = card_of_folder(source, "YOUR-NAME/source", get_moe_model_info)
        assert "cannot be loaded" in card
        (source / "README.md").write_text(card, encoding="utf-8")
    export_self_contained(str(source), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert is_unedited(card)
    assert 'from_pretrained("YOUR-NAME/out", trust_remote_code=True)' in card
    assert "They are a part of moe_hf, under the Apache License 2.0." in card
    assert "cannot be loaded" not in card


def test_export_of_an_export_is_the_same(tmp_path: Path) -> None:
    export_tiny("rwkv4", tmp_path)
    export_self_contained(str(tmp_path / "rwkv4"), tmp_path / "b" / "rwkv4")
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / p).iterdir()} for p in ("rwkv4", "b/rwkv4"))
    assert first == second


def test_what_cannot_be_exported_is_refused_before_anything_is_lost(tmp_path: Path) -> None:
    native_moe("mixtral").save_pretrained(tmp_path / "mixtral")
    with pytest.raises(
        CheckpointError, match=r"is a mixtral, not one of gpt2_moe, .*; it loads without moe_hf as it is"
    ):
        export_self_contained(str(tmp_path / "mixtral"), tmp_path / "out")
    tiny_family("gpt2").save_pretrained(tmp_path / "own")
    with pytest.raises(CheckpointError, match=r"holds the source .*own, which would be lost"):
        export_self_contained(str(tmp_path / "own"), tmp_path / "own", overwrite=True)
    with pytest.raises(CheckpointError, match="already exists and is not empty"):
        export_self_contained(str(tmp_path / "own"), tmp_path / "mixtral")
    path = tmp_path / "own" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_experts": "many"}))
    with pytest.raises(CheckpointError, match=r"the config.json of .*own is not allowed"):
        export_self_contained(str(tmp_path / "own"), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mixtral", "own"]


def test_a_model_is_loaded_by_the_class_of_its_head(tmp_path: Path) -> None:
    config = tiny_family("gpt2").config
    FAMILIES["gpt2_moe"].sequence_classification(config).save_pretrained(tmp_path / "labels")
    (tmp_path / "labels" / "README.md").write_text("# Mine\n", encoding="utf-8")
    report = export_self_contained(str(tmp_path / "labels"), tmp_path / "out")
    assert report.auto_class == "AutoModelForSequenceClassification"
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "from transformers import AutoModelForSequenceClassification\n" in card
    (tmp_path / "labels" / "README.md").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"README\.md is no text in UTF-8"):
        export_self_contained(str(tmp_path / "labels"), tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_failed_export_leaves_the_folder_that_was_there(tmp_path: Path) -> None:
    export_tiny("gpt2", tmp_path)
    before = load_file(tmp_path / "gpt2" / "model.safetensors")

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_self_contained(str(tmp_path / "gpt2-source"), tmp_path / "gpt2", overwrite=True, on_progress=stop)
    assert before.keys() == load_file(tmp_path / "gpt2" / "model.safetensors").keys()
    assert AutoConfig.from_pretrained(tmp_path / "gpt2").model_type == "gpt2_moe"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpt2", "gpt2-source", "gpt2.expected"]


def test_what_came_while_it_was_written_stays(tmp_path: Path) -> None:
    tiny_family("gpt2").save_pretrained(tmp_path / "source")
    out = tmp_path / "out"

    def come(done: int, total: int) -> None:
        out.mkdir()
        (out / "letter.txt").write_text("dear")

    with pytest.raises(CheckpointError, match="out already exists"):
        export_self_contained(str(tmp_path / "source"), out, on_progress=come)
    assert [path.name for path in out.iterdir()] == ["letter.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]

"""A folder of quantised experts is whole, carries its tokenizer, and is written only where it may be."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from moe_hf import CheckpointError, ConfigError, GPT2WithMoEForSequenceClassification, MoEQuantizationConfig
from moe_hf.base.optional import is_available
from moe_hf.export.gguf_file import export_gguf
from moe_hf.models.cards.card import CARD_FILE, split_card
from moe_hf.models.upcycling.directory import upcycle_directory
from moe_hf.quantization.directory import quantize_directory
from moe_hf.quantization.quantizer import quantized_modules
from moe_hf.text.tokenizers import byte_tokenizer
from tests.models.families import tiny_family
from tests.models.native_moes import native_moe


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "float"
    native_moe("mixtral", intermediate_size=64, vocab_size=300).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("config", [MoEQuantizationConfig(8), MoEQuantizationConfig(4)], ids=["int8", "int4"])
def test_it_is_written_whole_with_what_belongs_to_it(source, config, tmp_path) -> None:
    report = quantize_directory(str(source), tmp_path / "out", config)
    original = AutoModelForCausalLM.from_pretrained(source)
    assert report.parameters == original.num_parameters()
    assert report.expert_weights == sum(p.numel() for name, p in original.named_parameters() if ".experts." in name)
    assert report.weight_bytes == (tmp_path / "out" / "model.safetensors").stat().st_size
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    in_memory = sum(buffer.nbytes for _, module in quantized_modules(model) for buffer in module.buffers())
    assert report.expert_bytes == in_memory
    assert "tokenizer.json" in report.carried
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("an example").input_ids == byte_tokenizer()("an example").input_ids
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"rounded to {config.bits} bits" in card
    assert "import moe_hf" in card


def test_a_classifier_keeps_its_head(tmp_path) -> None:
    shape = {"num_labels": 3, "moe_intermediate_size": 32}
    model = GPT2WithMoEForSequenceClassification(tiny_family("gpt2", **shape).config)
    model.save_pretrained(tmp_path / "float")
    quantize_directory(str(tmp_path / "float"), tmp_path / "out", MoEQuantizationConfig(4))
    found = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert found.score.weight.equal(model.score.weight)
    assert list(quantized_modules(found))


def test_what_is_there_stays_unless_it_may_go(source, tmp_path) -> None:
    config = MoEQuantizationConfig()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").write_text("dear")
    for overwrite in (False, True):
        with pytest.raises(CheckpointError, match="taken"):
            quantize_directory(str(source), tmp_path / "taken", config, overwrite=overwrite)
    with pytest.raises(CheckpointError, match=r"holds the source .* which would be lost"):
        quantize_directory(str(source), source, config, overwrite=True)
    assert (tmp_path / "taken" / "letter.txt").read_text() == "dear"
    quantize_directory(str(source), tmp_path / "out", config)
    with pytest.raises(CheckpointError, match="already exists"):
        quantize_directory(str(source), tmp_path / "out", config)
    quantize_directory(str(source), tmp_path / "out", MoEQuantizationConfig(4), overwrite=True)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["bits"] == 4


def test_nothing_is_left_of_what_failed(source, tmp_path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(source, broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(CheckpointError, match=r"missing tensors \(.*not a whole checkpoint"):
        quantize_directory(str(broken), tmp_path / "out", MoEQuantizationConfig())
    with pytest.raises(ConfigError, match="rows of 32 weights are no whole groups"):
        quantize_directory(str(source), tmp_path / "out", MoEQuantizationConfig(4, 64))
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_a_quantised_folder_is_no_source_of_another(source, tmp_path) -> None:
    quantize_directory(str(source), tmp_path / "out", MoEQuantizationConfig())
    folder = str(tmp_path / "out")
    for make in (
        lambda: quantize_directory(folder, tmp_path / "again", MoEQuantizationConfig(4)),
        lambda: upcycle_directory(folder, tmp_path / "again", num_experts=8),
        lambda: upcycle_directory(folder, tmp_path / "again", target="dense"),
        *([lambda: export_gguf(folder, tmp_path / "again.gguf")] if is_available("gguf") else []),
    ):
        with pytest.raises(CheckpointError, match=r"out is quantised \(moe_hf\); name the model in float32"):
            make()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_came_while_it_worked_stays(source, overwrite, tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"

    def carry_over(*_: object) -> list[str]:
        out.mkdir()
        (out / "letter.txt").write_text("dear")
        return []

    monkeypatch.setattr("moe_hf.quantization.directory.carry_over", carry_over)
    with pytest.raises(CheckpointError, match="out"):
        quantize_directory(str(source), out, MoEQuantizationConfig(), overwrite=overwrite)
    assert (out / "letter.txt").read_text() == "dear"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_can_not_be_is_refused_before_anything_is_loaded(source, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("moe_hf.quantization.directory._loaded", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(ConfigError, match="max_shard_size='banana' is not allowed"):
        quantize_directory(str(source), tmp_path / "out", MoEQuantizationConfig(), max_shard_size="banana")
    if is_available("gguf"):
        (tmp_path / "m.gguf").touch()
        with pytest.raises(CheckpointError, match=r"is a GGUF file \(m\.gguf\)"):
            quantize_directory(str(tmp_path / "m.gguf"), tmp_path / "out", MoEQuantizationConfig())
    assert not (tmp_path / "out").exists()


def test_the_card_names_no_folder_and_keeps_the_license(source, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    shutil.copytree(source, tmp_path / "home")
    said = "---\nlicense: mit\ndatasets: [owner/texts]\ntags: [x]\n---\n\n# Mine\n"
    (tmp_path / "home" / "README.md").write_text(said)
    monkeypatch.chdir(tmp_path / "home")
    for name, destination in (("~/home", "~/first"), (".", tmp_path / "second")):
        report = quantize_directory(name, destination, MoEQuantizationConfig())
        card = split_card((report.folder / CARD_FILE).read_text())
        assert "`home` with the weights" in card.body
        assert "with random experts" in card.body
        assert "base_model" not in card.metadata
        assert (card.metadata["license"], card.metadata["datasets"]) == ("mit", ["owner/texts"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "home", "second"]
    (tmp_path / "home" / "README.md").write_bytes(b"---\nlicense: [\n---\n")
    quantize_directory(".", tmp_path / "third", MoEQuantizationConfig())
